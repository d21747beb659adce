"""Which index a segment gets."""

from __future__ import annotations

import numpy as np
import pytest

import index.choosing
from index.approximate import wrapped
from index.choosing import FLAT_ROWS, Choice, build, nearest_to, tried
from index.exact import score
from tests.index.conftest import random_vectors

ROWS, WIDTH = 1_000_000, 256


@pytest.mark.parametrize(
    ("memory_gb", "factory"),
    [
        (2, "HNSW16,SQfp16"),
        (1, "HNSW16,SQ8"),
        (0.6, "IVF4096,SQ8"),
        (0.2, "IVF4096,RaBitQfs"),
        (0.01, "IVF4096,RaBitQfs"),
    ],
)
def test_half_of_the_memory_may_be_taken(memory_gb: float, factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.choosing, "memory_bytes", lambda: int(memory_gb * 1e9))
    assert Choice().factory(ROWS, WIDTH) == factory
    assert Choice().factory(FLAT_ROWS, WIDTH) == "Flat"


@pytest.mark.parametrize("factory", ["HNSW16,SQfp16", "HNSW16,SQ8", "IVF16,SQ8"])
@pytest.mark.parametrize("times", [1, 2])
def test_recall_is_that_of_the_candidates_with_the_best_exact_cosines(factory: str, times: int) -> None:
    vectors, queries, K = random_vectors(2000, 32), random_vectors(60, 32, seed=1), 10
    built = wrapped(build(vectors, factory, 0.9)[0])
    exact = nearest_to(queries, vectors, K)
    depth = tried(built, len(vectors), queries, exact, K, times, 4)
    rows = built.find(queries, depth)
    best = np.take_along_axis(rows, np.argsort(-score(queries, vectors, rows), axis=1)[:, :K], axis=1)
    each = [np.isin(want, have).mean() for want, have in zip(exact, best, strict=True)]
    assert 0.1 < np.mean(each) < 1
    assert depth.recall == pytest.approx(np.mean(each) - np.std(each) / np.sqrt(len(each)))
