from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from item.catalog.listing import Listing
from item.evaluation.exam import Exam
from item.evaluation.retrieval import unit
from training import baselines
from training.baselines import (
    DEFAULT_PICTURE_WEIGHT,
    PICTURE_WEIGHTS,
    Course,
    best_weight,
    concatenate,
    fit_centring,
    fit_towers,
    fit_whitening,
    fuse,
    make_baselines,
)
from training.frozen import Frozen

FEW_STEPS = 60


def rows_of(seed: int, count: int = 60, words: int = 6, picture: int = 9) -> Frozen:
    """Two noisy views of a hidden vector; every seventh row has no words, every fifth no picture."""
    generator = np.random.default_rng(seed)
    hidden = generator.standard_normal((count, 5))
    views = [hidden @ np.random.default_rng(9).standard_normal((5, width)) + 1 for width in (words, picture)]
    views[0][3::7], views[1][4::5] = 0, 0
    return Frozen(words=views[0].astype(np.float32), picture=views[1].astype(np.float32))


@pytest.fixture
def frozen() -> Frozen:
    rows = rows_of(0)
    return fit_centring(rows)(rows)


def is_unit_or_zero(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1)
    return np.isclose(norms, 1, atol=1e-5) | (norms == 0)


@pytest.mark.parametrize(("weight", "part"), [(0.0, "words"), (1.0, "picture")])
def test_all_weight_on_one_part_ranks_as_that_part(frozen: Frozen, weight: float, part: str) -> None:
    fused, alone = fuse(frozen, weight), getattr(frozen, part)
    np.testing.assert_allclose(fused @ fused.T, alone @ alone.T, atol=1e-6)
    assert not np.allclose(fused @ fused.T, fuse(frozen, 0.5) @ fuse(frozen, 0.5).T, atol=0.1)


@given(st.floats(0, 1), st.integers(0, 99))
def test_cosine_of_a_fusion_is_the_weighted_mean_of_cosines(weight: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    words, picture = (unit(generator.standard_normal((4, d)).astype(np.float32)) for d in (3, 5))
    fused = concatenate(words, picture, weight)
    np.testing.assert_allclose(
        fused @ fused.T, (1 - weight) * words @ words.T + weight * picture @ picture.T, atol=1e-5
    )


def test_missing_parts_stay_zero_through_every_change(frozen: Frozen) -> None:
    for change in (fit_centring(frozen), fit_whitening(frozen), fit_towers(frozen, num_steps=2)):
        changed = change(frozen)
        assert is_unit_or_zero(changed.words).all()
        assert is_unit_or_zero(changed.picture).all()
        assert not changed.words[3::7].any()
        assert not changed.picture[4::5].any()
        assert changed.words[0].any()
        assert changed.picture[0].any()


def test_centring_takes_the_mean_of_the_pictures_that_are_there() -> None:
    rows = rows_of(1)
    there = rows.picture.any(axis=1)
    centred = fit_centring(rows)(rows)
    expected = rows.picture[there].astype(np.float64) - rows.picture[there].astype(np.float64).mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(centred.picture[there], expected, atol=1e-5)


def test_whitening_of_train_is_white_up_to_its_shrinkage() -> None:
    """Oracle: the eigenvectors of the covariance in float64, each over its deviation plus the shrinkage."""
    x = rows_of(2, count=200).words.astype(np.float64)
    x = x[x.any(axis=1)]
    values, directions = np.linalg.eigh(np.cov(x.T, bias=True))
    deviations = np.sqrt(np.maximum(values, 0))
    scaled = (x - x.mean(axis=0)) @ directions / (deviations + baselines.WHITENING_SHRINKAGE * deviations.max())
    expected = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    found = baselines.whitener(x.astype(np.float32))(x.astype(np.float32))
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)
    assert not np.allclose(found @ found.T, x @ x.T / np.outer(*[np.linalg.norm(x, axis=1)] * 2), atol=0.1)


def test_whitening_keeps_at_most_half_as_many_components_as_rows() -> None:
    x = np.random.default_rng(0).standard_normal((10, 30)).astype(np.float32)
    assert baselines.whitener(x)(x).shape == (10, 5)


def test_towers_learn_and_are_the_same_under_a_seed(frozen: Frozen) -> None:
    towers, again, other = (fit_towers(frozen, FEW_STEPS, seed)(frozen) for seed in (0, 0, 1))
    np.testing.assert_array_equal(towers.words, again.words)
    np.testing.assert_array_equal(towers.picture, again.picture)
    assert not np.allclose(towers.words, other.words, atol=1e-2)
    complete = frozen.words.any(axis=1) & frozen.picture.any(axis=1)
    untrained = fit_towers(frozen, 0)(frozen)
    own, before = (
        (half.words[complete] * half.picture[complete]).sum(axis=1).mean()
        - (half.words[complete] @ half.picture[complete].T).mean()
        for half in (towers, untrained)
    )
    assert own > before + 0.2


def test_towers_leave_the_callers_random_numbers_and_threads_alone(frozen: Frozen) -> None:
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    fit_towers(frozen, 3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_best_weight_is_the_smallest_of_the_best() -> None:
    assert best_weight(lambda weight: np.array([0.35 <= weight <= 0.65])) == 0.35
    assert best_weight(lambda _: np.array([])) == DEFAULT_PICTURE_WEIGHT
    assert best_weight(lambda weight: np.array([weight, 1])) == PICTURE_WEIGHTS[-1]


def course(splits: tuple[str, ...], catalog: Frozen, leaf: bool = True) -> Course:
    """Rows 2 j and 2 j + 1 are of one product; the splits take turns by product."""
    listings = [
        Listing(
            product_id=str(i),
            group_id=str(i // 2),
            split=splits[i // 2 % len(splits)],
            category=(f"leaf {i // 2 % 3}",) if leaf else (),
        )
        for i in range(len(catalog.words))
    ]
    exam, val_exam = (Exam(catalog=listings, offers=None, split=split) for split in ("test", "val"))
    queries, val_queries = catalog[exam.rows], catalog[val_exam.rows]
    return Course(exam=exam, val_exam=val_exam, catalog=catalog, queries=queries, val_queries=val_queries)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "NUM_STEPS", FEW_STEPS)


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "test"), ("test",)])
@pytest.mark.parametrize("leaf", [True, False])
def test_all_baselines_sit_the_exam(splits: tuple[str, ...], leaf: bool) -> None:
    made = course(splits, rows_of(3), leaf)
    contestants = list(make_baselines(made))
    assert [(one.name, one.inputs) for one in contestants] == [
        ("words", "words"),
        ("picture", "picture"),
        ("late fusion", "both"),
        ("whitened late fusion", "both"),
        ("two towers", "both"),
    ]
    for one in contestants:
        assert is_unit_or_zero(one.catalog).all()
        np.testing.assert_allclose(one.catalog[made.exam.rows], one.queries, atol=1e-6)
        answered = [answers.task for answers in made.exam.sit(one) if answers.ids]
        assert len(answered) == 1 + 2 * (leaf and "train" in splits) + 2 * (one.halves is not None)


def test_what_is_fitted_is_fitted_on_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other vectors in test change only the vectors of test."""
    monkeypatch.setattr(
        baselines, "PICTURE_WEIGHTS", (0.5,)
    )  # chosen on val, which searches among the rows of test too
    plain = course(("train", "val", "test"), rows_of(4))
    changed = rows_of(4)
    changed.words[plain.exam.rows] += 5
    changed.picture[plain.exam.rows] += 5
    others = np.setdiff1d(np.arange(60), plain.exam.rows)
    for one, other in zip(
        make_baselines(plain), make_baselines(course(("train", "val", "test"), changed)), strict=True
    ):
        np.testing.assert_allclose(one.catalog[others], other.catalog[others], atol=1e-5)
        assert not np.allclose(one.catalog, other.catalog, atol=1e-2)


def test_weights_are_chosen_on_val() -> None:
    """Pictures are noise in val: the smallest weight wins there."""
    rows = rows_of(5, count=120)
    rows.words[1::2] = rows.words[::2]
    rows.picture[:] = np.random.default_rng(0).standard_normal(rows.picture.shape)
    late = next(one for one in make_baselines(course(("train", "val", "test"), rows)) if one.name == "late fusion")
    assert f"weight {PICTURE_WEIGHTS[0]:g} for the same product" in late.note
    without = next(one for one in make_baselines(course(("train", "test"), rows)) if one.name == "late fusion")
    assert f"weight {DEFAULT_PICTURE_WEIGHT:g} for the same product" in without.note


def test_a_catalogue_without_pictures_has_no_two_towers() -> None:
    rows = rows_of(6)
    rows.picture[:] = 0
    contestants = {one.name: one for one in make_baselines(course(("train", "val", "test"), rows))}
    assert list(contestants) == ["words", "picture", "late fusion", "whitened late fusion"]
    fused, words = contestants["late fusion"].catalog, contestants["words"].catalog
    np.testing.assert_allclose(fused @ fused.T, words @ words.T, atol=1e-5)
