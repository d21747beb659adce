"""Orders of rows in an approximate index, and what is read back."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from index.approximate import add, adding_order, close_together, num_queries, read, rearrange, train
from index.choosing import build
from index.manifest import Depth
from tests.index.conftest import random_vectors, unit

WIDTH = 32
DEPTH = Depth(num_neighbours=1, effort=64, num_candidates=4, recall=0.9)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 1000, 20_480, 50_001])
def test_rows_added_last_are_spread_evenly(count: int) -> None:
    order, num_last = adding_order(count), num_queries(count)
    assert sorted(order.tolist()) == list(range(count))
    assert np.all(np.diff(order[: count - num_last]) > 0)
    assert len(set(np.diff(order[count - num_last :]).tolist())) <= 1


def test_near_rows_come_to_lie_together() -> None:
    centres = random_vectors(20, WIDTH)
    vectors = unit(centres[np.arange(2000) % 20] + 0.05 * np.random.default_rng(0).normal(size=(2000, WIDTH)))
    order = adding_order(len(vectors))
    places = close_together(vectors, order)
    assert sorted(places.tolist()) == list(range(len(vectors)))
    beside = vectors[order[places]]
    assert (beside[1:] * beside[:-1]).sum(axis=1).mean() > 0.8
    before = vectors[order]
    assert (before[1:] * before[:-1]).sum(axis=1).mean() < 0.5


@pytest.mark.parametrize("factory", ["HNSW16,SQ8", "IVF16,SQ8"])
def test_rows_are_those_of_the_vectors(factory: str, tmp_path: Path) -> None:
    vectors = random_vectors(1500, WIDTH)
    built, order, _ = build(vectors, factory, 0.9)
    if factory.startswith("HNSW"):
        order = rearrange(built, order, close_together(vectors, order))
    faiss.write_index(built, str(tmp_path / "index"))
    index = read(tmp_path / "index", factory, order)
    scores, rows = index.near(vectors[:100], vectors, DEPTH)
    assert (rows[np.arange(100), scores.argmax(axis=1)] == np.arange(100)).mean() > 0.95


def test_an_index_without_an_order_is_in_that_of_adding(tmp_path: Path) -> None:
    """Segments were once written so."""
    vectors = random_vectors(1500, WIDTH)
    index = train(vectors, "HNSW16,SQ8")
    add(index, vectors, adding_order(1500, 1024))
    faiss.write_index(index, str(tmp_path / "index"))
    scores, rows = read(tmp_path / "index", "HNSW16,SQ8", None).near(vectors[:100], vectors, DEPTH)
    assert (rows[np.arange(100), scores.argmax(axis=1)] == np.arange(100)).mean() > 0.95
