"""Heads on disk and their arithmetic: bit for bit there and back, each fault noticed, honest ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from item.adapters.files import read_adapter, write_adapter
from item.adapters.head import (
    HEADS_FILE,
    HEADS_FOLDER,
    PATTERNS,
    RANKS,
    TENSORS_FILE,
    Array,
    Category,
    Heads,
    Novelty,
    levels_of,
    patterns_of,
    read_heads,
    unit,
)
from item.errors import ModelError
from item.model.config import ItemConfig
from tests.adapters.random_heads import SPACE, WORDS, F, make_head, make_novelty, seen_by
from tests.adapters.test_files import random_values

OTHER = "6" * 64  # another model's space
TREE: dict[Category, tuple[Category, ...]] = {
    (): (("shoes",), ("mugs",)),
    ("shoes",): (("shoes", "boots"), ("shoes", "sandals", "größe 50"), ("shoes", "sandals", "flat")),
}
quickly = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_heads(seed: int = 0, temperature: float = 1.0, novelty: Novelty | None = None) -> Heads:
    rng = np.random.default_rng(seed)
    heads = tuple(make_head(rng, category, paths, temperature) for category, paths in TREE.items())
    return Heads(model_space=SPACE, words_width=WORDS, heads=heads, novelty=novelty)


def same(a: Heads, b: Heads) -> bool:
    """Whether both say the same, tensors bit for bit."""
    pairs = [(one, other) for one, other in zip(a.heads, b.heads, strict=True)]
    tensors = [pair for one, other in pairs for pair in ((one.weight, other.weight), (one.bias, other.bias))]
    if a.novelty is not None and b.novelty is not None:
        tensors += [(a.novelty.centres, b.novelty.centres), (a.novelty.ranks, b.novelty.ranks)]
    return (
        (a.model_space, a.words_width, a.novelty is None) == (b.model_space, b.words_width, b.novelty is None)
        and [(one.category, one.paths, one.temperature) for one in a.heads]
        == [(one.category, one.paths, one.temperature) for one in b.heads]
        and (a.novelty is None or b.novelty is None or a.novelty.threshold == b.novelty.threshold)
        and all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in tensors)
    )


@quickly
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.05, 20),
    threshold=st.none() | st.floats(0, 1),
    names=st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True),
)
def test_there_and_back_bit_for_bit(
    tmp_path: Path, seed: int, temperature: float, threshold: float | None, names: list[str]
) -> None:
    novelty = None if threshold is None else make_novelty(seed, threshold)
    heads = make_heads(seed, temperature, novelty)
    more = make_head(np.random.default_rng([seed, 1]), (names[0],), tuple((names[0], name) for name in names))
    heads = replace(heads, heads=(*heads.heads, more))
    heads.write(tmp_path)
    assert same(Heads.read(tmp_path, SPACE), heads)


def test_a_model_folder_has_heads_or_none(tmp_path: Path) -> None:
    assert read_heads(tmp_path, SPACE) is None
    (tmp_path / HEADS_FOLDER).mkdir()
    with pytest.raises(ModelError, match=r"cannot be read .* train it again"):
        read_heads(tmp_path, SPACE)
    heads = make_heads(novelty=make_novelty())
    heads.write(tmp_path / HEADS_FOLDER)
    read = read_heads(tmp_path, SPACE)
    assert read is not None
    assert same(read, heads)
    assert read.of(("shoes",)) is read.heads[1]
    assert read.of(("mugs",)) is None


@pytest.mark.parametrize("name", [HEADS_FILE, TENSORS_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    make_heads().write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}.* train it again with training.adapt, or remove the folder"):
        Heads.read(tmp_path, SPACE)


def test_tensors_that_were_not_given_are_damage(tmp_path: Path) -> None:
    make_heads().write(tmp_path)
    with pytest.raises(ModelError, match=TENSORS_FILE):
        Heads.parse(tmp_path, {HEADS_FILE: (tmp_path / HEADS_FILE).read_bytes()}, SPACE)


@settings(quickly, max_examples=200)
@given(name=st.sampled_from([HEADS_FILE, TENSORS_FILE]), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_of_either_file_is_noticed(tmp_path: Path, name: str, place: int, bit: int) -> None:
    heads = make_heads(temperature=1.75, novelty=make_novelty())
    heads.write(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[place % len(content)] ^= 1 << bit
    (tmp_path / name).write_bytes(content)
    try:
        read = Heads.read(tmp_path, SPACE)
    except ModelError:
        return
    assert name == HEADS_FILE  # of JSON, some bits mean nothing: a space or a newline, e or E
    assert same(read, heads)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"temperature": 1.75', '"temperature": 1.25', "digest"),
        ('"boots"', '"roots"', "digest"),
        ('"unknown_threshold": 0.99', '"unknown_threshold": 0.98', "digest"),
        ('"words_width": 4', '"words_width": 5', "digest"),
        ('"format": 1', '"format": 2', r"format 2 is not the 1 that this version reads"),
        ('"format": 1', '"former": 1', r"damaged \(KeyError"),
        ("{", "[", "damaged"),
    ],
)
def test_a_changed_description_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    make_heads(temperature=1.75, novelty=make_novelty()).write(tmp_path)
    path = tmp_path / HEADS_FILE
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"{fault}.*train it again"):
        Heads.read(tmp_path, SPACE)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"format"', b"\xff\xfe\xfd", b""])
def test_what_is_no_description_is_damage(tmp_path: Path, content: bytes) -> None:
    make_heads().write(tmp_path)
    (tmp_path / HEADS_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{HEADS_FILE}: damaged"):
        Heads.read(tmp_path, SPACE)


def test_heads_of_another_model_are_refused(tmp_path: Path) -> None:
    make_heads().write(tmp_path)
    with pytest.raises(ModelError, match=r"another model \(space 555555555555, not 666666666666\)"):
        Heads.read(tmp_path, OTHER)


def test_a_wrong_number_of_paths_is_refused(tmp_path: Path) -> None:
    root, shoes = make_heads().heads
    for wrong in (replace(shoes, paths=shoes.paths[:-1]), replace(shoes, bias=shoes.bias[:-1])):
        replace(make_heads(), heads=(root, wrong)).write(tmp_path)
        with pytest.raises(ModelError, match=r"head of shoes: \d paths"):
            Heads.read(tmp_path, SPACE)
    replace(make_heads(), heads=(replace(root, paths=root.paths[:-1]), shoes)).write(tmp_path)
    with pytest.raises(ModelError, match="head of the root: 1 paths"):
        Heads.read(tmp_path, SPACE)


def test_an_adapter_carries_its_heads(tmp_path: Path, tiny_config: ItemConfig) -> None:
    heads = replace(make_heads(), heads=make_heads().heads[1:])
    values = random_values(tiny_config, "road_1")

    def write(name: str, heads: Heads | None) -> Path:
        more = None if heads is None else heads.write
        return write_adapter(
            tmp_path, name, values, method="road_1", config=tiny_config, model_space=SPACE, write_more=more
        )

    place = write("shoes", heads)
    read = read_adapter(tmp_path, "shoes", tiny_config, SPACE).heads
    assert read is not None
    assert same(read, heads)
    write("plain", None)
    assert read_adapter(tmp_path, "plain", tiny_config, SPACE).heads is None
    for name in (HEADS_FILE, TENSORS_FILE):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        with pytest.raises(ModelError, match=rf"{name}: damaged, its digest"):
            read_adapter(tmp_path, "shoes", tiny_config, SPACE)
        (place / name).write_bytes(whole)
    write("theirs", replace(heads, model_space=OTHER))
    with pytest.raises(ModelError, match="another model"):
        read_adapter(tmp_path, "theirs", tiny_config, SPACE)


@quickly
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 1e4), colder=st.floats(0.05, 5), factor=st.floats(1.1, 10))
def test_probabilities_sum_to_1_and_a_higher_temperature_flattens(
    seed: int, scale: float, colder: float, factor: float
) -> None:
    rng = np.random.default_rng(seed)
    head = make_head(rng, ("shoes",), TREE["shoes",])
    features = (scale * rng.normal(size=(7, F))).astype(np.float32)
    z = head.logits(features)
    cold, warm = (replace(head, temperature=t).probabilities(features) for t in (colder, colder * factor))
    for p in (cold, warm):
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
        assert (p >= 0).all()
        assert (np.diff(np.take_along_axis(p, z.argsort(axis=1), axis=1), axis=1) >= 0).all()  # the logits' order
    besides_best = [np.sort(p, axis=1)[:, :-1].sum(axis=1) for p in (cold, warm)]
    assert (besides_best[0] <= besides_best[1] + 1e-6).all()
    if scale < 1:  # no probability is so small that it is 0
        assert (besides_best[0] < besides_best[1]).all()
    exact = np.exp((z.astype(np.float64) - z.max(axis=1, keepdims=True)) / colder)
    np.testing.assert_allclose(cold, exact / exact.sum(axis=1, keepdims=True), atol=1e-3)


def test_a_level_is_the_sum_of_the_paths_below_it() -> None:
    levels = levels_of(TREE["shoes",], np.array([0.5, 0.25, 0.125]))
    assert levels == {
        ("shoes",): 0.875,
        ("shoes", "boots"): 0.5,
        ("shoes", "sandals"): 0.375,
        ("shoes", "sandals", "größe 50"): 0.25,
        ("shoes", "sandals", "flat"): 0.125,
    }


@pytest.mark.parametrize("pattern", range(len(PATTERNS)))
def test_patterns(pattern: int) -> None:
    features = seen_by(np.random.default_rng(0).normal(size=(4, F)), pattern)
    assert patterns_of(features, WORDS).tolist() == [pattern] * 4


def draw(rng: np.random.Generator, count: int, pattern: int) -> Array:
    """Listings around one direction, seen by a pattern."""
    return seen_by((np.ones(F) + 0.7 * rng.normal(size=(count, F))).astype(np.float32), pattern)


def test_unknown_is_the_share_of_held_back_listings_that_are_less_novel() -> None:
    """Each modality pattern has ranks of its own, with which it is uniform; with another's it would not be."""
    rng = np.random.default_rng(0)
    centres = unit(np.ones((1, F)) + 0.1 * rng.normal(size=(3, F))).astype(np.float32)
    bare = Novelty(centres=centres, ranks=np.zeros((3, RANKS), np.float32))
    held = [bare.novelty(draw(rng, 20_000, pattern)) for pattern in range(3)]
    ranks = np.array([np.quantile(one, np.linspace(0, 1, RANKS)) for one in held], np.float32)
    known, grid = replace(bare, ranks=ranks), np.linspace(0, 1, 20_000)
    fresh = [draw(rng, 20_000, pattern) for pattern in range(3)]
    mixed = known.unknown(np.concatenate(fresh), WORDS).reshape(3, -1)
    for pattern in range(3):
        v = novelty_by_hand(centres, fresh[pattern])
        oracle = np.searchsorted(np.sort(held[pattern]), v) / len(held[pattern])
        np.testing.assert_allclose(mixed[pattern], oracle, atol=2.5 / RANKS)
        assert abs(np.sort(mixed[pattern]) - grid).max() < 0.02
        assert 0.005 < (mixed[pattern] > known.threshold).mean() < 0.016
        turned = replace(known, ranks=np.roll(ranks, 1, axis=0)).unknown(fresh[pattern], WORDS)
        assert abs(np.sort(turned) - grid).max() > 0.05
    far = known.unknown(-np.ones((1, F), np.float32), WORDS)
    assert far.tolist() == [1.0]
    assert known.unknown(centres, WORDS).max() < 0.01


def novelty_by_hand(centres: Array, features: Array) -> Array:
    """1 - the greatest cosine, in float64."""
    x = features.astype(np.float64)
    cosines = [x @ c / np.linalg.norm(x, axis=1) / np.linalg.norm(c) for c in centres.astype(np.float64)]
    return 1 - np.max(cosines, axis=0)
