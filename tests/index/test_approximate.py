"""Orders of rows in an approximate index, and what is read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.approximate import (
    BLOCK,
    SPREAD,
    adding_order,
    close_together,
    lay_out,
    num_queries,
    read,
    with_vectors,
    write,
)
from index.choosing import build
from index.exact import Rows, Vectors
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


@pytest.mark.parametrize("factory", ["HNSW16,Flat", "HNSW16,SQ8", "IVF16,SQ8"])
def test_an_index_is_read_back_over_vectors_in_its_order(factory: str, tmp_path: Path) -> None:
    vectors = random_vectors(1500, WIDTH)
    built, _ = build(vectors, factory, 0.9)
    order = np.arange(1500)
    if factory.startswith("HNSW"):
        order = close_together(vectors)
        lay_out(built, order)
    write(built, tmp_path / "index")
    laid_out = vectors[order]
    before, after = with_vectors(built, laid_out), read(tmp_path / "index", laid_out)
    scores, rows = after.near(laid_out[:100], laid_out, DEPTH)
    assert np.array_equal(rows, before.near(laid_out[:100], laid_out, DEPTH)[1])
    assert (rows[np.arange(100), scores.argmax(axis=1)] == np.arange(100)).mean() > 0.95
    assert np.allclose(scores, np.einsum("qd,qfd->qf", laid_out[:100], laid_out[rows]), atol=1e-6)


def test_an_index_of_other_vectors_is_refused(tmp_path: Path) -> None:
    vectors = random_vectors(1500, WIDTH)
    built, _ = build(vectors, "HNSW16,Flat", 0.9)
    write(built, tmp_path / "index")
    with pytest.raises(ValueError, match="an index of 1500 rows with 1499 vectors"):
        read(tmp_path / "index", vectors[:-1])


def test_a_graph_over_their_own_vectors_is_written_without_them(tmp_path: Path) -> None:
    vectors = random_vectors(1500, WIDTH)
    built, _ = build(vectors, "HNSW16,Flat", 0.9)
    write(built, tmp_path / "index")
    assert (tmp_path / "index").stat().st_size < 1500 * 16 * 10


def test_a_graph_compares_the_vectors_that_it_lies_over(tmp_path: Path) -> None:
    """A mapped file has to be the one that its index belongs to; here it changes, and so does what is found."""
    vectors = random_vectors(1500, WIDTH)
    built, _ = build(vectors, "HNSW16,Flat", 0.9)
    write(built, tmp_path / "index")
    np.save(tmp_path / "vectors.npy", vectors)
    mapped: Vectors = np.asarray(np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    graph = read(tmp_path / "index", mapped)
    found: Rows = graph.near(vectors[:1], mapped, DEPTH)[1]
    assert found[0, 0] == 0
    copy = np.load(tmp_path / "vectors.npy", mmap_mode="r+")
    copy[0] = -copy[0]
    copy.flush()
    assert 0 not in graph.near(vectors[:1], mapped, DEPTH)[1]
