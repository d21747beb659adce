"""The order of the training listings: a pure function of (seed, epoch, index), so that any step can be made anew."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=2)  # a step may straddle two epochs
def permutation(num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """(num_rows,) int64: the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def rows_of_step(num_rows: int, seed: int, step: int, batch_size: int, rank: int, num_workers: int) -> list[int]:
    """The rows that worker `rank` of `num_workers` reads in a step.

    The epochs follow one another without a gap: the listings of a step are consecutive positions in that stream, and
    each worker takes its share of `batch_size` of them, every `num_workers`-th.
    """
    positions = range(step * batch_size + rank, (step + 1) * batch_size, num_workers)
    return [int(permutation(num_rows, seed, p // num_rows)[p % num_rows]) for p in positions]
