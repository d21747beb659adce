"""The guard: what it asks, what it keeps, and that it says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from item.model.config import ItemConfig
from item.model.vector import VectorHead
from item.preprocessing.prepared import MODALITIES, Modality
from item.preprocessing.spelling import SPELLING_WIDTH
from training import guard as module
from training.alignment import Fit, HeadSettings
from training.config import AlignOptions
from training.guard import CHANGED, CHOICES, IMPORTANCE, HeldOut, Values, choose_settings, judge, score, sit_all
from training.labels import Labels
from training.pooled import Pooled, embed

WIDTH, NUM, KNOWN = 8, 60, 40
ACROSS = ("words to picture across", "picture to words across")


def make_pooled(num: int = NUM, views: int = 3, seed: int = 0, noise: float = 1.0) -> Pooled:
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(9).normal(size=(2, WIDTH))  # of the views' noise
    product = rng.normal(size=(num, 1, WIDTH))

    def draw() -> torch.Tensor:
        x = product + noise * rng.normal(size=(num, 1 + views, 2)) @ directions
        return torch.from_numpy(x + 0.3 * rng.normal(size=x.shape)).float()

    there = np.ones(num, np.bool_)
    words = draw()
    return Pooled(
        words=torch.stack([words, words], dim=2),
        spelling=torch.zeros(num, 1 + views, SPELLING_WIDTH),
        picture=draw(),
        has_words=there,
        has_picture=there,
    )


def make_exam(pooled: Pooled, **changes: object) -> HeldOut:
    exam = HeldOut(
        pooled=pooled,
        num_known=KNOWN,
        products=[f"p{row}" for row in range(len(pooled))],
        categories=[("shop", f"kind {row % 3}") for row in range(len(pooled))],
    )
    return replace(exam, **changes)  # type: ignore[arg-type]


def make_start(pooled: Pooled) -> VectorHead:
    config = ItemConfig(vocab_size=10, cls_id=1, sep_id=2, width=WIDTH, num_heads=4, vector_width=24)
    head = VectorHead(config, WIDTH)
    head.fit(pooled.words[:, 0], pooled.picture[:, 0], 0.5, whiten=False)
    return head


def lacking(pooled: Pooled, words: list[int], picture: list[int]) -> Pooled:
    """The rows `words` have no words, `picture` no picture."""
    has_words, has_picture = np.ones(len(pooled), np.bool_), np.ones(len(pooled), np.bool_)
    has_words[words], has_picture[picture] = False, False
    return replace(pooled, has_words=has_words, has_picture=has_picture)


def asked(values: Values) -> list[int]:
    """The places of those that were asked."""
    return np.flatnonzero(~np.isnan(values)).tolist()


def make_labels(num: int, levels: tuple[int, ...] = ()) -> Labels:
    """Each a product of its own; categories as `make_exam` numbers them."""
    rows = np.arange(num)
    categories = np.stack([rows % count for count in levels], axis=1) if levels else np.zeros((num, 0), np.int64)
    paths = tuple(
        ("top",) * depth + (f"category {number}",) for depth, count in enumerate(levels) for number in range(count)
    )
    return Labels(categories=categories, levels=levels, paths=paths, leaves=rows % 3, products=rows)


# The exam.


def test_the_values_are_those_of_an_oracle() -> None:
    """Reciprocal ranks and votes of five neighbours, one query after the other."""
    pooled = make_pooled()
    products = [f"p{row // 2}" for row in range(NUM)]
    exam, head = make_exam(pooled, products=products), make_start(pooled)
    found = exam.sit(head)
    tasks = ("same listing", "same product", "leaf category")
    assert sorted(found) == sorted([*ACROSS, *(f"{task} by {modality}" for task in tasks for modality in MODALITIES)])
    assert {values.shape for values in found.values()} == {(NUM - KNOWN,)}
    assert {values.dtype for values in found.values()} == {np.dtype(np.float64)}
    for modality in MODALITIES:
        base, *views = (embed(head, pooled, modality, view).astype(np.float64) for view in range(3))
        for place, row in enumerate(range(KNOWN, NUM)):
            ranks = [1 + (base @ view[row] > base[row] @ view[row] + 1e-9).sum() for view in views]
            assert found[f"same listing by {modality}"][place] == pytest.approx(np.mean([1 / rank for rank in ranks]))
            similar = base @ base[row]
            other = row ^ 1
            rank = 1 + (np.delete(similar, row) > similar[other] + 1e-9).sum()
            assert found[f"same product by {modality}"][place] == pytest.approx(1 / rank)
        assert set(found[f"leaf category by {modality}"]) <= {0.0, 1.0}


@pytest.mark.parametrize("together", [1, 2])
def test_the_own_picture_is_found_by_words_and_back(together: int) -> None:
    """Among the pictures of those held out that have both; any picture of the product is right."""
    pooled = lacking(make_pooled(), words=[KNOWN + 2], picture=[KNOWN + 7, 3])
    products = [f"p{row // together}" for row in range(NUM)]
    head = make_start(pooled)
    with torch.no_grad():  # words and pictures are the same numbers with some noise: one projection lets them meet
        head.picture.projection.copy_(head.words.projection[:, WIDTH:])
        head.picture.mean.zero_()
    found = make_exam(pooled, products=products).sit(head)
    both = [row for row in range(KNOWN, NUM) if row not in (KNOWN + 2, KNOWN + 7)]
    words, picture = (embed(head, pooled, modality, 0).astype(np.float64)[both] for modality in MODALITIES[:2])
    ranks = np.zeros((2, len(both)))
    for task, similar in enumerate((words @ picture.T, picture @ words.T)):
        for i, row in enumerate(both):
            right = max(similar[i, j] for j, other in enumerate(both) if products[other] == products[row])
            ranks[task, i] = 1 + (similar[i] > right + 1e-9).sum()
    for name, expected in zip(ACROSS, ranks, strict=True):
        assert [KNOWN + place for place in asked(found[name])] == both
        np.testing.assert_allclose(found[name][asked(found[name])], 1 / expected)
    assert 0.1 < (1 / ranks).mean() < 0.99
    assert (ranks[0] != ranks[1]).any()


@pytest.mark.parametrize(("num_pairs", "there"), [(0, False), (1, False), (2, True)])
def test_of_a_single_pair_nothing_is_asked_across(num_pairs: int, there: bool) -> None:
    """It would find itself."""
    pooled = make_pooled()
    found = make_exam(lacking(pooled, words=[*range(KNOWN + num_pairs, NUM)], picture=[])).sit(make_start(pooled))
    assert [name in found for name in ACROSS] == [there, there]
    assert ("same listing by picture") in found


def test_votes_name_the_leaf_of_known_listings_alone() -> None:
    """Each held-out listing equals five known ones of its leaf; the other held-out ones have the same vector too."""
    pooled = make_pooled()
    for row in range(NUM):
        pooled.words[row] = torch.eye(WIDTH)[row % 3]
        pooled.picture[row] = torch.eye(WIDTH)[row % 3]
    head = make_start(make_pooled(seed=1))
    right = make_exam(pooled).sit(head)
    swapped = [("shop", f"kind {row % 3 if row < KNOWN else (row + 1) % 3}") for row in range(NUM)]
    wrong = make_exam(pooled, categories=swapped).sit(head)
    for modality in MODALITIES:
        assert right[f"leaf category by {modality}"].all()
        assert not wrong[f"leaf category by {modality}"].any()


def test_what_a_listing_lacks_is_not_asked() -> None:
    """Each task has a value for each held-out listing, in their order; nan where it does not have what is asked by."""
    pooled = make_pooled()
    found = make_exam(lacking(pooled, words=[*range(KNOWN, KNOWN + 5)], picture=[57, 58, 59])).sit(make_start(pooled))
    there = {"words": [*range(5, 20)], "picture": [*range(17)], "both": [*range(20)], "across": [*range(5, 17)]}
    for name, values in found.items():
        assert len(values) == NUM - KNOWN
        assert asked(values) == there[name.rsplit(" ", 1)[1]], name
    none = make_exam(lacking(pooled, words=[*range(KNOWN, NUM)], picture=[])).sit(make_start(pooled))
    assert {name.rsplit(" ", 1)[1] for name in none} == {"picture", "both"}


def test_without_categories_and_groups_only_the_listing_is_asked_for() -> None:
    pooled = make_pooled()
    found = make_exam(pooled, categories=[()] * NUM).sit(make_start(pooled))
    assert sorted(found) == sorted([*ACROSS, *(f"same listing by {modality}" for modality in MODALITIES)])


def test_where_some_have_labels_the_others_are_not_counted() -> None:
    pooled, head = make_pooled(), make_start(make_pooled())
    categories: list[tuple[str, ...]] = [("shop", "a") if row % 2 else () for row in range(NUM)]
    products = [*(f"p{row}" for row in range(NUM - 2)), "pair", "pair"]
    found = make_exam(pooled, categories=categories, products=products).sit(head)
    for modality in MODALITIES:
        assert np.isnan(found[f"leaf category by {modality}"]).tolist() == [row % 2 == 0 for row in range(KNOWN, NUM)]
        assert np.isnan(found[f"same product by {modality}"]).tolist() == [True] * 18 + [False] * 2
    only_asked = [() if row < KNOWN else ("shop",) for row in range(NUM)]
    assert not any("leaf" in name for name in make_exam(pooled, categories=only_asked).sit(head))


def test_words_that_are_those_of_the_product_show_nothing() -> None:
    """Two photos under one text: by the picture alone they are asked about, by words and by both they are not; what
    another product says in the same words, or a product in others, changes nothing."""
    pooled = make_pooled()
    words = pooled.words.clone()
    words[57] = words[56] * (1 + 1e-5)  # of one product
    words[59] = words[10]  # of another product
    products = [f"p{row // 2}" for row in range(NUM)]
    found = make_exam(replace(pooled, words=words), products=products).sit(make_start(pooled))
    assert asked(found["same product by picture"]) == [*range(20)]
    for modality in ("words", "both"):
        assert asked(found[f"same product by {modality}"]) == [*range(16), 18, 19]
        assert asked(found[f"same listing by {modality}"]) == [*range(20)]


def test_no_held_out_listing_gives_no_values() -> None:
    pooled = make_pooled()
    assert make_exam(pooled, num_known=NUM).sit(make_start(pooled)) == {}


def test_the_score_is_the_weighted_mean_of_the_kinds_of_queries() -> None:
    one = np.array([1.0, np.nan]), np.array([0.5, 0.5]), np.array([0.2, 0.4])
    values = {"a by words": one[0], "a by picture": one[1], "b by picture": one[2], "a by both": one[1]}
    whole = {**values, "c across": one[2], "d across": one[0]}
    assert sum(IMPORTANCE.values()) == pytest.approx(1)
    assert score(whole) == pytest.approx(0.2 * 1.0 + 0.2 * (0.5 + 0.3) / 2 + 0.4 * 0.5 + 0.2 * (0.3 + 1.0) / 2)
    assert score(values) == pytest.approx((0.2 * 1.0 + 0.2 * (0.5 + 0.3) / 2 + 0.4 * 0.5) / 0.8)
    assert score({"a by words": one[0], "a by both": one[1]}) == pytest.approx((0.2 * 1.0 + 0.4 * 0.5) / 0.6)
    assert score({}) == 0


# Several exams.


def make_folds(pooled: Pooled, num: int = 3) -> list[HeldOut]:
    """Each third is asked about after the others."""
    rows, exams = np.arange(len(pooled)), []
    for fold in range(num):
        order = np.concatenate([rows[rows % num != fold], rows[rows % num == fold]])
        exams.append(
            HeldOut(
                pooled=pooled[order],
                num_known=int((rows % num != fold).sum()),
                products=[f"p{row}" for row in order],
                categories=[("shop", f"kind {row // 3 % 3}") for row in order],
            )
        )
    return exams


def test_all_exams_are_sat_one_after_the_other() -> None:
    """Each by its own head; what one of them does not ask is nan there."""
    pooled = lacking(make_pooled(), words=[row for row in range(NUM) if row % 3 == 1], picture=[5])
    exams, heads = make_folds(pooled), [make_start(make_pooled(seed=seed)) for seed in range(3)]
    found, single = sit_all(heads, exams), [exam.sit(head) for head, exam in zip(heads, exams, strict=True)]
    assert found.keys() == single[0].keys() | single[1].keys() | single[2].keys()
    assert "same listing by words" not in single[1]
    for name, values in found.items():
        expected = [one.get(name, np.full(20, np.nan)) for one in single]
        np.testing.assert_array_equal(values, np.concatenate(expected), err_msg=name)
    assert asked(found["same listing by words"]) == [*range(20), *range(40, 60)]
    swapped = sit_all(heads[::-1], exams)
    assert any((np.nan_to_num(swapped[name]) != np.nan_to_num(values)).any() for name, values in found.items())
    assert sit_all([], []) == {}
    with pytest.raises(ValueError, match="zip"):
        sit_all(heads[:2], exams)


# The verdict.


def tasks(words: float, picture: float, both: float, across: float = 0.5, num: int = 40) -> dict[str, Values]:
    """Values with these means, the same share of every query."""
    rng = np.random.default_rng(0)
    spread = 0.01 * rng.normal(size=num)
    means = {"by words": words, "by picture": picture, "by both": both, "across": across}
    return {f"same listing {name}": mean + spread - spread.mean() for name, mean in means.items()}


PRODUCTS = [f"p{row // 2}" for row in range(40)]


def test_what_is_better_is_kept() -> None:
    verdict = judge(tasks(0.5, 0.5, 0.5), tasks(0.6, 0.5, 0.7), PRODUCTS)
    assert verdict.better
    assert verdict.why == "better than its starting point: score 0.500 -> 0.600 on held-out listings"
    assert verdict.differences["same listing by both"].value == pytest.approx(0.2)
    assert json.loads(json.dumps(verdict.as_dict()))["differences"]["same listing by words"]["low"] > 0


@pytest.mark.parametrize(
    ("after", "task"),
    [(tasks(0.45, 0.9, 0.9), "same listing by words"), (tasks(0.9, 0.9, 0.9, across=0.45), "same listing across")],
)
def test_what_is_worse_at_one_task_is_refused_though_the_score_rises(after: dict[str, Values], task: str) -> None:
    verdict = judge(tasks(0.5, 0.5, 0.5), after, PRODUCTS)
    assert verdict.score_after > verdict.score_before
    assert not verdict.better
    assert verdict.why.startswith(f"worse beyond chance at {task}; score 0.500 -> ")


def test_only_listings_that_were_asked_are_compared() -> None:
    """Before and after; and their products are those that are drawn together."""
    before, after = tasks(0.5, 0.5, 0.5), tasks(0.5, 0.5, 0.7)
    name = "same listing by words"
    before[name][:10], after[name][8:12] = np.nan, np.nan
    after[name][12:] += np.where(np.arange(12, 40) < 16, -0.3, 0)  # the only ones that fall, all of one product
    products = [*(f"p{row}" for row in range(12)), *["p"] * 4, *(f"p{row}" for row in range(16, 40))]
    together = judge(before, after, products).differences[name]
    shifted = judge(before, after, [*products[12:], *products[:12]]).differences[name]
    assert together.value == shifted.value == pytest.approx(-0.3 * 4 / 28)
    assert together.high == 0
    assert shifted.high < 0
    alone = judge({name: before[name][12:]}, {name: after[name][12:]}, products[12:]).differences[name]
    assert alone == together


def test_nothing_in_common_is_no_difference() -> None:
    """A task that was asked of some listings before and of others after says nothing, and hinders nothing."""
    before, after = tasks(0.5, 0.5, 0.5), tasks(0.5, 0.5, 0.7)
    before["same listing by words"][:20], after["same listing by words"][20:] = np.nan, np.nan
    verdict = judge(before, after, PRODUCTS)
    assert np.isnan(verdict.differences["same listing by words"].value)
    assert verdict.better


def test_what_is_worse_by_chance_is_no_hindrance() -> None:
    """A mean that falls through a few queries of many: its interval holds 0."""
    before, after = tasks(0.5, 0.5, 0.5), tasks(0.5, 0.5, 0.7)
    after["same listing by words"] = before["same listing by words"] + np.where(np.arange(40) == 0, -0.4, 0.001)
    verdict = judge(before, after, PRODUCTS)
    difference = verdict.differences["same listing by words"]
    assert difference.value < 0 < difference.high
    assert verdict.better


def test_products_are_drawn_together() -> None:
    """Four listings of one product that fall are one product that falls, not four."""
    before, after = tasks(0.5, 0.5, 0.5), tasks(0.5, 0.5, 0.7)
    after["same listing by words"] = before["same listing by words"] - np.where(np.arange(40) < 4, 0.3, 0)
    alone = judge(before, after, [f"p{row}" for row in range(40)]).differences["same listing by words"]
    together = judge(before, after, ["p", "p", "p", "p", *(f"p{row}" for row in range(36))])
    assert together.differences["same listing by words"].high == 0
    assert alone.high < 0
    assert together.better


def test_a_starting_point_without_a_modality_finds_nothing_by_it() -> None:
    before, after = tasks(0.5, 0.5, 0.5), tasks(0.5, 0.3, 0.6)
    del before["same listing by picture"]
    after["same listing by picture"][3] = np.nan
    verdict = judge(before, after, PRODUCTS)
    assert verdict.better
    assert verdict.score_before < verdict.score_after
    assert verdict.differences["same listing by picture"].value == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("after", [tasks(0.5, 0.5, 0.5), tasks(0.5, 0.5, 0.5 - 1e-6)])
def test_what_is_no_better_is_refused(after: dict[str, Values]) -> None:
    verdict = judge(tasks(0.5, 0.5, 0.5), after, PRODUCTS)
    assert not verdict.better
    assert verdict.why.startswith(("no better than its starting point", "worse beyond chance"))


def test_without_held_out_listings_nothing_is_changed() -> None:
    verdict = judge({}, {}, [])
    assert not verdict.better
    assert verdict.why == "nothing to measure it on: no held-out listing"


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), lift=st.floats(-0.3, 0.3))
def test_a_kept_head_has_a_higher_score_and_no_task_that_fell(seed: int, lift: float) -> None:
    rng = np.random.default_rng(seed)
    before = {f"t {ending}": rng.random(12) for ending in IMPORTANCE}
    after = {name: values + lift + 0.3 * rng.normal(size=12) for name, values in before.items()}
    after["t by words"][rng.integers(12)] = np.nan
    verdict = judge(before, after, [f"p{row // 2}" for row in range(12)])
    fell = any(interval.high < 0 for interval in verdict.differences.values())
    assert verdict.better == (score(after) > score(before) and not fell)
    assert f"{score(before):.3f} -> {score(after):.3f}" in verdict.why


# The choice of settings.


def make_fits(exams: list[HeldOut], levels: tuple[int, ...] = ()) -> list[Fit]:
    fits = []
    for exam in exams:
        known = exam.pooled[np.arange(exam.num_known)]
        fit = Fit(make_start(exam.pooled), known, make_labels(exam.num_known, levels))
        fit.train_towers(AlignOptions(steps=5), 0)
        fits.append(fit)
    return fits


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0])
def test_the_choice_is_never_worse_than_the_default(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several folds, each with its own fit; all of them in the same settings, and no settings twice."""
    exams = make_folds(make_pooled(noise=noise), 2)
    fits, tried = make_fits(exams, (3,)), [list[HeadSettings](), list[HeadSettings]()]
    heads = [fit.head for fit in fits]
    for fit, head, of_fit in zip(fits, heads, tried, strict=True):

        def noted(
            chosen: HeadSettings, head: Callable[[HeadSettings], VectorHead] = head, of: list[HeadSettings] = of_fit
        ) -> VectorHead:
            of.append(chosen)
            return head(chosen)

        monkeypatch.setattr(fit, "head", noted)
    chosen, values = choose_settings(fits, exams)
    assert tried[0] == tried[1]
    assert len(tried[0]) == len(set(tried[0]))
    assert tried[0][0] == HeadSettings()
    for name, choices in CHOICES.items():
        assert {getattr(one, name) for one in tried[0]} >= set(choices)
    scores = [score(sit_all([head(one) for head in heads], exams)) for one in tried[0]]
    assert score(values) == max(scores) >= scores[0]
    whole = sit_all([head(chosen) for head in heads], exams)
    assert whole.keys() == values.keys()  # though most settings sat only what they change
    for name, found in whole.items():
        np.testing.assert_array_equal(values[name], found)


def test_settings_change_what_they_say_they_change() -> None:
    """And nothing else: of each, the vectors of the other modalities and the answers across stay the same."""
    pooled = make_pooled()
    sketches = torch.randn(NUM, 4, SPELLING_WIDTH, generator=torch.Generator().manual_seed(0))
    pooled = replace(pooled, spelling=torch.nn.functional.normalize(sketches, dim=-1))
    categories = np.arange(NUM)[:, None] % 3
    own = np.arange(NUM)
    labels = Labels(categories=categories, levels=(3,), paths=(("a",), ("b",), ("c",)), leaves=own, products=own)
    fit = Fit(make_start(pooled), pooled, labels, torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(1)))
    fit.train_towers(AlignOptions(steps=5), 0)
    base = HeadSettings()
    assert CHANGED.keys() == CHOICES.keys()
    for name, choices in CHOICES.items():
        other = next(choice for choice in choices if choice != getattr(base, name))
        heads = [fit.head(one) for one in (base, replace(base, **{name: other}))]  # type: ignore[arg-type]
        vectors = {modality: [embed(head, pooled, modality, 0) for head in heads] for modality in MODALITIES}
        differ = [modality for modality, (a, b) in vectors.items() if np.abs(a - b).max() > 1e-4]
        assert set(differ) == set(CHANGED[name]), name
        before, after = (vectors["words"][i] @ vectors["picture"][i].T for i in (0, 1))
        if not {"words", "picture"} <= set(CHANGED[name]):
            np.testing.assert_allclose(before, after, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("rounds", "expected"), [(1, (1.0, 10.0)), (2, (3.0, 10.0)), (9, (3.0, 10.0))])
def test_settings_that_depend_on_each_other_are_chosen_in_rounds(
    rounds: int, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`picture` is chosen first, where 1 is best; once `words` is 10, 3 is. What changed nothing ends the choice."""
    worth = {(1.0, 1.0): 0.2, (1.0, 10.0): 0.3, (3.0, 1.0): 0.1, (3.0, 10.0): 0.4}
    sat = list[HeadSettings]()

    class Answers:
        pooled, num_known = make_pooled(1), 0

        def sit(self, settings: HeadSettings, modalities: Sequence[Modality]) -> dict[str, Values]:
            assert "both" in modalities
            sat.append(settings)
            assert settings.picture is not None
            assert settings.words is not None
            return {"t by both": np.array([worth[settings.picture, settings.words]])}

    class Same:
        def head(self, settings: HeadSettings) -> HeadSettings:
            return settings

    monkeypatch.setattr(module, "ROUNDS", rounds)
    monkeypatch.setattr(module, "CHOICES", {"picture": (1.0, 3.0), "words": (1.0, 10.0)})
    chosen, values = choose_settings([Same()], [Answers()])  # type: ignore[list-item]
    assert (chosen.picture, chosen.words) == expected
    assert values["t by both"].tolist() == [worth[expected]]
    assert len(sat) == len(set(sat)) == (3 if rounds == 1 else 4)


def test_without_an_exam_the_default_is_chosen() -> None:
    assert choose_settings([], []) == (HeadSettings(), {})
