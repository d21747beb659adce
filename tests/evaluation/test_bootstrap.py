from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from item.evaluation import bootstrap
from item.evaluation.bootstrap import (
    Interval,
    mean_interval,
    paired_interval,
    ratio_interval,
    statistic_interval,
    unpaired_interval,
)
from item.evaluation.classification import macro_f1


def width(interval: Interval) -> float:
    return interval.high - interval.low


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_intervals_cover_the_truth_about_95_times_in_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 500)
    generator = np.random.default_rng(0)
    means, differences, paired = [], [], []
    for _ in range(200):
        ours, theirs = generator.random(120) < 0.7, generator.random(90) < 0.6
        easier = ours | (generator.random(120) < 0.2)  # correlated, mean 0.76
        means.append(covers(mean_interval(ours), 0.7))
        differences.append(covers(unpaired_interval(ours, theirs), 0.1))
        paired.append(covers(paired_interval(easier, ours), 0.06))
    for covered in (means, differences, paired):
        assert 0.90 <= np.mean(covered) <= 0.99


def test_width_is_that_of_the_normal_approximation() -> None:
    values = (np.random.default_rng(1).random(1000) < 0.5).astype(float)
    interval = mean_interval(values)
    assert interval.value == values.mean()
    assert width(interval) == pytest.approx(2 * 1.96 * 0.5 / 1000**0.5, rel=0.1)


def test_repeated_queries_of_a_product_narrow_nothing() -> None:
    values = (np.random.default_rng(2).random(200) < 0.5).astype(float)
    single = mean_interval(values)
    repeated, products = np.repeat(values, 5), np.repeat(np.arange(200), 5).tolist()
    assert width(mean_interval(repeated, products)) == pytest.approx(width(single), rel=0.05)
    assert width(mean_interval(repeated)) < 0.6 * width(single)


def test_pairing_removes_what_the_queries_share() -> None:
    difficulty = np.random.default_rng(3).random(300)
    ours, theirs = difficulty + 0.02, difficulty
    assert width(paired_interval(ours, theirs)) < 1e-9
    assert width(unpaired_interval(ours, theirs)) > 0.05


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 5))
def test_same_seed_same_interval_around_the_value(values: list[float], seed: int) -> None:
    interval = mean_interval(values, seed=seed)
    assert interval == mean_interval(values, seed=seed)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_seeds_differ() -> None:
    values = np.random.default_rng(4).random(50)
    assert mean_interval(values, seed=0) != mean_interval(values, seed=1)


def test_blocks_of_resamples_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 70)
    seen = []

    def count(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights @ np.arange(10.0) / 10

    statistic_interval(count, 10)
    drawn = np.concatenate(seen[1:])
    assert drawn.shape == (bootstrap.RESAMPLES, 10)
    assert (drawn.sum(axis=1) == 10).all()
    assert len(np.unique(drawn, axis=0)) > bootstrap.RESAMPLES // 2


def test_interval_of_a_biased_statistic_is_around_its_value() -> None:
    """Of 40 leaves with one query each, a resample sees 63%; here the leaves with few queries are the hard ones."""
    names = [*(("rare", str(i)) for i in range(40)), *[("common",)] * 200]
    answers = [*[("common",)] * 40, *[("common",)] * 200]
    statistic = macro_f1(names, answers)
    drawn = np.random.default_rng(0).multinomial(240, np.full(240, 1 / 240), size=500)
    interval = statistic_interval(statistic, 240)
    assert statistic(drawn.astype(float)).min() > interval.value  # every resample is too high
    assert interval.low < interval.value < interval.high


def test_no_queries_have_no_interval() -> None:
    assert np.isnan([mean_interval([]).value, mean_interval([]).low, unpaired_interval([], [1.0]).high]).all()


def test_ratio_is_paired_and_its_interval_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sums rise and fall together: the ratio varies far less than either."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)
    generator, hits = np.random.default_rng(6), 0
    for trial in range(100):
        below = generator.random(80) < 0.5
        above = below & (generator.random(80) < 0.7)
        interval = ratio_interval(above, below, seed=trial)
        assert interval.value == above.sum() / below.sum()
        hits += covers(interval, 0.7)
    assert 88 <= hits <= 99
    assert ratio_interval(0.7 * below, below).high == pytest.approx(0.7)


def test_ratio_to_nothing() -> None:
    assert np.isnan(ratio_interval([1, 1], [0, 0]).value)
    once = ratio_interval([1, 0, 0], [1, 0, 0])  # most resamples have nothing below
    assert (once.value, once.low, once.high) == (1, 1, 1)
    with pytest.raises(ValueError, match=r"same queries.*\(1,\).*\(2,\)"):
        ratio_interval([1], [1, 1])


def test_values_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"same queries.*\(2,\).*\(3,\)"):
        paired_interval([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="1 names for 2 queries"):
        mean_interval([0, 1], ["a"])
