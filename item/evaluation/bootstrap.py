"""95% bootstrap intervals of means and of other statistics, from the values of each query.

Queries about the same product rise and fall together, so the bootstrap draws products (or whatever `groups` names), not
queries: each resample draws as many groups as there are, with replacement, and a query counts as often as its group was
drawn. Two systems on the same queries are compared by the mean of their differences (paired); on different queries by
the difference of their means, each drawn by itself (unpaired).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Statistic = Callable[[Values], Values]  # weights of the queries (R, Q) -> the statistic of each resample (R,)

RESAMPLES = 2000
_BLOCK_CELLS = 2**22  # weights held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95% percentile interval, in the value's own unit; all NaN when it was of nothing."""

    value: float
    low: float
    high: float


def mean_interval(values: npt.ArrayLike, groups: Sequence[Hashable] | None = None, *, seed: int = 0) -> Interval:
    """The mean of Q values and its interval; `groups` (Q) names what is drawn together, None: each query by itself."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    generator = np.random.default_rng(seed)
    return _percentiles(float(array.mean()), _resample(_mean_of(array), len(array), groups, generator))


def paired_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """How much higher the mean of `first` is than that of `second`, both (Q,) on the same queries in the same order."""
    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"paired values must be of the same queries, got {ours.shape} and {theirs.shape}")
    return mean_interval(ours - theirs, groups, seed=seed)


def ratio_interval(
    above: npt.ArrayLike, below: npt.ArrayLike, groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """The sum of `above` over that of `below`, both (Q,) and not negative below, on the same queries in the same order.

    Resamples where the latter is zero are left out; where it is zero of all queries there is no ratio.
    """
    numerator, denominator = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if numerator.shape != denominator.shape:
        raise ValueError(f"a ratio must be of the same queries, got {numerator.shape} and {denominator.shape}")
    if not denominator.any():
        return Interval(value=np.nan, low=np.nan, high=np.nan)

    def ratio(weights: Values) -> Values:
        whole = weights @ denominator
        return (weights[whole > 0] @ numerator) / whole[whole > 0]

    generator = np.random.default_rng(seed)
    value = float(numerator.sum() / denominator.sum())
    return _percentiles(value, _resample(ratio, len(numerator), groups, generator))


def unpaired_interval(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    first_groups: Sequence[Hashable] | None = None,
    second_groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """How much higher the mean of `first` (Q1,) is than that of `second` (Q2,), on different queries."""
    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not len(ours) or not len(theirs):
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    one = _resample(_mean_of(ours), len(ours), first_groups, np.random.default_rng([seed, 0]))
    other = _resample(_mean_of(theirs), len(theirs), second_groups, np.random.default_rng([seed, 1]))
    return _percentiles(float(ours.mean() - theirs.mean()), one - other)


def statistic_interval(
    statistic: Statistic, num_queries: int, groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """Any statistic of weighted queries and its interval, which is shifted by the bootstrap's estimate of the bias.

    Macro-F1 needs that: leaves of one or two queries, the hard ones, are not drawn at all in most resamples.

    Args:
        statistic: (R, Q) float64 weights, how often each query counts -> (R,), for instance the weighted mean.
        num_queries: Q.
        groups: Q names of what is drawn together; None: each query by itself.
    """
    if not num_queries:
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    value = float(statistic(np.ones((1, num_queries)))[0])
    resamples = _resample(statistic, num_queries, groups, np.random.default_rng(seed))
    return _percentiles(value, resamples - (resamples.mean() - value))


def _mean_of(values: Values) -> Statistic:
    return lambda weights: weights @ values / weights.sum(axis=1)


def _resample(
    statistic: Statistic, num_queries: int, groups: Sequence[Hashable] | None, generator: np.random.Generator
) -> Values:
    return np.concatenate([statistic(weights) for weights in _draw(num_queries, groups, generator)])


def _draw(num_queries: int, groups: Sequence[Hashable] | None, generator: np.random.Generator) -> Iterator[Values]:
    """Blocks of weights (R, Q), RESAMPLES rows in all."""
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))} if groups is not None else {}
    members = np.arange(num_queries) if groups is None else np.array([codes[group] for group in groups])
    if len(members) != num_queries:
        raise ValueError(f"groups: {len(members)} names for {num_queries} queries")
    num_groups = members.max() + 1
    step = max(1, _BLOCK_CELLS // num_queries)
    for start in range(0, RESAMPLES, step):
        counts = generator.multinomial(
            num_groups, np.full(num_groups, 1 / num_groups), size=min(step, RESAMPLES - start)
        )
        yield counts[:, members].astype(np.float64)


def _percentiles(value: float, resamples: Values) -> Interval:
    low, high = np.quantile(resamples, (0.025, 0.975))
    return Interval(value=value, low=float(low), high=float(high))
