"""The two passes against an oracle in float64 that goes listing by listing and path by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from item.adapters.head import PATTERNS, Array, Category, Features, Head, Heads
from item.adapters.predict import LIKELY, Prediction, Specialist, predict
from tests.adapters.random_heads import SPACE, WORDS, F, make_head, make_novelty, seen_by

N = 12
TREE: dict[Category, tuple[Category, ...]] = {
    (): (("a",), ("b",), ("c",), ("d",)),
    ("a",): (("a", "x"), ("a", "y", "1"), ("a", "y", "2"), ("a", "z")),
    ("b",): (("b", "x"), ("b", "y")),
    ("c",): (("c", "x", "1"), ("c", "x", "2"), ("c", "y")),
}  # no head knows what is below d
STARTS: list[Category] = [(), ("a",), ("a", "y"), ("a", "z"), ("b",), ("c", "x"), ("d",)]
quickly = settings(max_examples=60)


class World:
    """Heads, specialists of some top levels, and features by the model alone and by each adapter."""

    def __init__(self, seed: int, tops: str) -> None:
        rng = np.random.default_rng(seed)
        heads = tuple(make_head(rng, category, paths, rng.uniform(0.5, 2)) for category, paths in TREE.items())
        self.heads = Heads(model_space=SPACE, words_width=WORDS, heads=heads, novelty=make_novelty(seed))
        self.features: Features = rng.normal(size=(N, F)).astype(np.float32)
        for pattern in range(len(PATTERNS)):
            self.features[pattern::4] = seen_by(self.features[pattern::4], pattern)
        self.specialists: dict[Category, Specialist] = {
            (top,): Specialist(
                name=f"of-{top}", head=make_head(rng, (top,), (*TREE[top,], (top, "new")), rng.uniform(0.5, 2))
            )
            for top in tops
        }
        self.by_adapter = {one.name: rng.normal(size=(N, F)).astype(np.float32) for one in self.specialists.values()}
        self.asked: list[list[tuple[int, str]]] = []

    def adapted(self, pairs: Sequence[tuple[int, str]]) -> Features:
        """The second pass: what each adapter makes of a listing."""
        self.asked.append(list(pairs))
        return np.array([self.by_adapter[name][row] for row, name in pairs])

    def predict(self, top_k: int = 99, start: Category = ()) -> list[Prediction]:
        return predict(self.heads, self.features, self.specialists, self.adapted, top_k=top_k, start=start)

    def p_top(self, row: int) -> dict[Category, float]:
        return by_hand(self.heads.heads[0], self.features[row])

    def pairs(self, start: Category = ()) -> set[tuple[int, str]]:
        """Those that the second pass has to be asked for."""
        return {
            (row, one.name)
            for row in range(N)
            for top, one in self.specialists.items()
            if (top == start[:1] if start else self.p_top(row)[top] >= LIKELY)
        }

    def oracle(self, row: int, start: Category = ()) -> dict[Category, tuple[float, str]]:
        """The probability of each path of a listing, and the adapter that it is from."""
        pairs, found = self.pairs(start), dict[Category, tuple[float, str]]()
        for top, p_top in self.p_top(row).items():
            specialist, head = self.specialists.get(top), self.heads.of(top)
            if specialist is not None and (row, specialist.name) in pairs:
                given, name = by_hand(specialist.head, self.by_adapter[specialist.name][row]), specialist.name
            else:
                given, name = by_hand(head, self.features[row]) if head is not None else {top: 1.0}, ""
            found |= {path: (p_top * p, name) for path, p in given.items()}
        below = {path: one for path, one in found.items() if path[: len(start)] == start}
        total = sum(p for p, _ in below.values())
        return {path: (p / total, name) for path, (p, name) in below.items()}


def by_hand(head: Head, features: Array) -> dict[Category, float]:
    """The head's probabilities of one listing, in float64."""
    z = (head.weight.astype(np.float64) @ features.astype(np.float64) + head.bias.astype(np.float64)) / head.temperature
    e = np.exp(z - z.max())
    return dict(zip(head.paths, (e / e.sum()).tolist(), strict=True))


@quickly
@given(
    seed=st.integers(0, 2**32 - 1),
    tops=st.sampled_from(["", "a", "ac", "abc"]),
    start=st.sampled_from(STARTS),
    top_k=st.integers(1, 12),
)
def test_predictions_are_the_oracles(seed: int, tops: str, start: Category, top_k: int) -> None:
    world = World(seed, tops)
    assume(all(abs(p - LIKELY) > 1e-6 for row in range(N) for p in world.p_top(row).values()))
    predictions = world.predict(top_k, start)
    assert {pair for call in world.asked for pair in call} == world.pairs(start)
    assert len(world.asked) == bool(world.pairs(start))  # all in one batch
    assert sum(map(len, world.asked)) == len(world.pairs(start))
    assert len(predictions) == N
    for row, prediction in enumerate(predictions):
        oracle = world.oracle(row, start)
        best = [path for path, _ in prediction.paths]
        ordered = sorted((p for p, _ in oracle.values()), reverse=True)[:top_k]
        assert len({*best}) == len(ordered)
        np.testing.assert_allclose([oracle[path][0] for path in best], ordered, atol=2e-6)
        assert prediction.adapter == oracle[best[0]][1]
        for path, levels in prediction.paths:
            expected = [
                sum(p for other, (p, _) in oracle.items() if other[:depth] == path[:depth])
                for depth in range(1, len(path) + 1)
            ]
            np.testing.assert_allclose(levels, expected, atol=2e-6)
            np.testing.assert_allclose(levels[: len(start)], 1, atol=1e-12)
            assert all(above >= below for above, below in zip([1.0, *levels], levels, strict=False))


def test_all_paths_sum_to_1_and_levels_to_the_root() -> None:
    for prediction in World(0, "ab").predict():
        assert sum(levels[-1] for _, levels in prediction.paths) == pytest.approx(1)
        firsts = {path[0]: levels[0] for path, levels in prediction.paths}
        assert sum(firsts.values()) == pytest.approx(1)


def test_a_specialist_changes_its_own_paths_alone_and_not_its_top_level() -> None:
    alone, world = World(3, ""), World(3, "a")
    plain, special, asked = alone.predict(), world.predict(), {row for row, _ in world.pairs()}
    assert 0 < len(asked) < N
    assert alone.asked == []
    assert {one.adapter for one in plain} == {""}
    for row in range(N):
        a, b = dict(plain[row].paths), dict(special[row].paths)
        assert (("a", "new") in b) == (row in asked)
        assert a["a", "x"][0] == pytest.approx(b["a", "x"][0])
        assert (a["a", "x"][-1] == pytest.approx(b["a", "x"][-1], abs=1e-9)) == (row not in asked)
        for path in a:
            assert path[0] == "a" or a[path] == pytest.approx(b[path], abs=1e-12)


def test_exactly_likely_is_asked_and_just_less_is_not() -> None:
    world = World(0, "b")
    root = world.heads.heads[0]
    for p, expected in ((LIKELY * 1.001, N), (LIKELY * 0.999, 0)):
        bias = np.log(np.array([1 - p - 0.2, p, 0.1, 0.1], np.float32))
        level = replace(root, weight=np.zeros_like(root.weight), bias=bias, temperature=1.0)
        world.heads = replace(world.heads, heads=(level, *world.heads.heads[1:]))
        world.asked.clear()
        world.predict()
        assert sum(map(len, world.asked)) == expected


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_a_start_category_holds_however_sure_the_root_is_of_another(temperature: float) -> None:
    world = World(5, "a")
    root = world.heads.heads[0]
    sure = replace(root, bias=np.array([-40, 0, 0, 60], np.float32), temperature=temperature)
    world.heads = replace(world.heads, heads=(sure, *world.heads.heads[1:]))
    for row, prediction in enumerate(world.predict(start=("a",))):
        given = by_hand(world.specialists["a",].head, world.by_adapter["of-a"][row])
        assert prediction.adapter == "of-a"
        assert {path: levels[-1] for path, levels in prediction.paths} == pytest.approx(given, abs=2e-6)


@pytest.mark.parametrize("start", [("e",), ("a", "w"), ("b", "x", "1"), ("d", "x")])
def test_a_start_category_that_no_head_knows_has_no_paths(start: Category) -> None:
    for prediction in World(0, "ab").predict(start=start):
        assert (prediction.paths, prediction.adapter, prediction.abstained) == ([], "", True)


def test_equal_probabilities_are_in_the_order_of_their_paths() -> None:
    world = World(0, "")
    even = [replace(one, weight=0 * one.weight, bias=0 * one.bias) for one in world.heads.heads]
    shuffled = replace(even[1], paths=even[1].paths[::-1])
    world.heads = replace(world.heads, heads=(even[0], shuffled, *even[2:]))
    for prediction in world.predict():
        paths = [path for path, _ in prediction.paths]
        assert [path for path in paths if path[0] == "a"] == sorted(TREE["a",])
        assert paths[0] == ("d",)


def test_unknown_and_abstention_are_the_novelties() -> None:
    world = World(1, "ab")
    novelty = world.heads.novelty
    assert novelty is not None
    unknown = novelty.unknown(world.features, WORDS)
    at = float(np.sort(unknown)[N // 2])
    world.heads = replace(world.heads, novelty=replace(novelty, threshold=at))
    predictions = world.predict()
    assert [one.unknown for one in predictions] == unknown.tolist()
    assert [one.abstained for one in predictions] == (unknown > at).tolist()
    assert 0 < sum(one.abstained for one in predictions) < N  # the one at the threshold does not abstain
    assert all(one.paths for one in predictions)
    world.heads = replace(world.heads, novelty=None)
    assert {(one.unknown, one.abstained) for one in world.predict()} == {(0.0, False)}


def test_words_alone_and_a_picture_alone_are_predicted_as_in_any_batch() -> None:
    world = World(2, "ac")
    whole = world.predict()
    for row in range(N):
        one = World(2, "ac")
        one.features = one.features[row : row + 1]
        one.by_adapter = {name: features[row : row + 1] for name, features in one.by_adapter.items()}
        (alone,) = one.predict()
        a, b = dict(alone.paths), dict(whole[row].paths)
        assert a.keys() == b.keys()
        assert all(a[path] == pytest.approx(b[path], abs=1e-6) for path in a)
        assert alone.unknown == pytest.approx(whole[row].unknown, abs=2e-3)


def test_no_listings() -> None:
    world = World(0, "abc")
    world.features = world.features[:0]
    for start in ((), ("a",)):
        assert world.predict(start=start) == []
    assert world.asked == []
