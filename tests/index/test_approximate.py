"""Orders of rows in an approximate index, and what it finds when it is read back."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from index.approximate import BLOCK, GRAPH, SPREAD, adding_order, close_together, num_queries, read, wrapped
from index.choosing import build
from index.manifest import Depth
from tests.index.conftest import random_vectors, unit

WIDTH = 32
DEPTH = Depth(num_neighbours=1, effort=64, num_candidates=4, recall=0.9)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 1000, 20_480, 50_001, BLOCK + 5000, SPREAD + 3 * BLOCK])
def test_rows_added_last_are_spread_evenly(count: int) -> None:
    order, num_last = adding_order(count), num_queries(count)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert len(set(np.diff(order[count - num_last :]).tolist())) <= 1


@pytest.mark.parametrize("count", [2 * BLOCK, SPREAD, SPREAD + 3 * BLOCK])
def test_a_block_is_of_rows_from_far_and_wide(count: int) -> None:
    """A catalogue in the order of its categories is not added one category after the other."""
    order = adding_order(count)
    for start in range(0, count - 2 * BLOCK, BLOCK):
        block = order[start : start + BLOCK]
        assert np.ptp(block) > 0.9 * min(SPREAD, count - start)
        assert np.diff(np.sort(block)).max() < 20 * SPREAD / BLOCK


def test_near_rows_come_to_lie_together() -> None:
    centres = random_vectors(20, WIDTH)
    vectors = unit(centres[np.arange(2000) % 20] + 0.05 * np.random.default_rng(0).normal(size=(2000, WIDTH)))
    order = close_together(vectors)
    assert np.array_equal(np.sort(order), np.arange(2000))
    beside = vectors[order]
    assert (beside[1:] * beside[:-1]).sum(axis=1).mean() > 0.8
    assert (vectors[1:] * vectors[:-1]).sum(axis=1).mean() < 0.5


@pytest.mark.parametrize("factory", ["HNSW16,SQfp16", "HNSW16,SQ8", "IVF16,SQ8"])
def test_an_index_in_the_order_of_its_rows_is_read_back(factory: str, tmp_path: Path) -> None:
    vectors = random_vectors(1500, WIDTH)
    built, _ = build(vectors, factory, 0.9)
    order = np.arange(1500)
    if factory.startswith(GRAPH):
        order = close_together(vectors)
        built.permute_entries(order)
    faiss.write_index(built, str(tmp_path / "index"))
    laid_out = vectors[order]
    rows = read(tmp_path / "index").find(laid_out[:100], DEPTH)
    assert np.array_equal(rows, wrapped(built).find(laid_out[:100], DEPTH))
    assert rows.shape == (100, DEPTH.num_candidates)
    assert (rows == np.arange(100)[:, None]).any(axis=1).mean() > 0.95
