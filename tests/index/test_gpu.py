"""Search on a GPU, with FAISS's exact index on the CPU in the place of that on a GPU (tests/gpu has the real one)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import index.choosing
import index.compare
from index.compare import compare
from index.exact import Rows, Vectors
from index.filters import Range
from index.gpu import GPU_KIND, MAX_NEIGHBOURS, Gpu, GpuFlat, find_gpu
from index.planner import Plan
from index.store import Store
from item.errors import ConfigError
from tests.index.conftest import BY_HAND, about, check_hits, product, random_vectors

COUNT, FRESH, QUERIES = 3000, 100, 20


class Exclusive:
    """An index that notices two threads at once, and how often it is asked for how much."""

    def __init__(self, vectors: Vectors, gpu: StandIn) -> None:
        self.flat: Any = faiss.IndexFlatIP(vectors.shape[1])
        self.flat.add(np.ascontiguousarray(vectors))
        self.gpu = gpu
        self._inside = threading.Semaphore()

    def __del__(self) -> None:
        self.gpu.let_go(self.flat.ntotal)

    def search(self, queries: Vectors, count: int) -> tuple[Vectors, Rows]:
        assert self._inside.acquire(blocking=False), "two threads at once"
        self.gpu.counts.append(count)
        try:
            found: tuple[Vectors, Rows] = self.flat.search(queries, count)
            return found
        finally:
            self._inside.release()


class StandIn(Gpu):
    """Room for so many vectors."""

    def __init__(self, room: int = COUNT) -> None:
        self.number, self.room = 0, room
        self._using = threading.RLock()
        self.num_rows = 0  # that are there now
        self.counts: list[int] = []
        self.num_held = 0

    def hold(self, vectors: Vectors) -> GpuFlat | None:
        if self.num_rows + len(vectors) > self.room:
            return None
        self.num_held += 1
        self.num_rows += len(vectors)
        return GpuFlat(Exclusive(vectors, self), self._using)

    def let_go(self, num_rows: int) -> None:
        assert self._using._is_owned()  # type: ignore[attr-defined]  # as FAISS needs it
        self.num_rows -= num_rows


@pytest.fixture
def vectors() -> Vectors:
    return random_vectors(COUNT, 16)


@pytest.fixture
def gpu() -> StandIn:
    return StandIn()


@pytest.fixture
def store(tmp_path: Path, vectors: Vectors, gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A graph of most of the products, some dead; the last are fresh. `price` is the row."""
    monkeypatch.setattr(index.choosing, "FLAT_ROWS", 500)
    products = [product(f"p{row}", price=float(row)) for row in range(COUNT)]
    old = COUNT - FRESH
    Store.create(tmp_path / "index", about(16), [(products[:old], vectors[:old])], upkeep=BY_HAND).close()
    with Store.open(tmp_path / "index", writable=True, upkeep=BY_HAND, gpu=gpu) as opened:
        opened.upsert(products[old:], vectors[old:])
        opened.delete([f"p{row}" for row in range(0, 300, 3)])
        yield opened


def alive(below: int = COUNT) -> list[int]:
    """The rows that may be hits."""
    return [row for row in range(below) if row >= 300 or row % 3]


def check(store: Store, vectors: Vectors, k: int, below: int = COUNT) -> set[Plan]:
    """Hits are those of brute force; returns the plans."""
    queries = random_vectors(QUERIES, 16, seed=1)
    conditions = None if below == COUNT else [Range("price", below=float(below))] * QUERIES
    rows = alive(below)
    answers = store.search(queries, k, filters=conditions)
    for query, answer in zip(queries, answers, strict=True):
        check_hits(answer.hits, [f"p{row}" for row in rows], vectors[rows], query, k)
    return {answer.plan for answer in answers}


@pytest.mark.parametrize("k", [1, 10, 100])
def test_all_are_compared(store: Store, vectors: Vectors, gpu: StandIn, k: int) -> None:
    assert check(store, vectors, k) == {Plan.EXACT}
    assert len(gpu.counts) == 1


@pytest.mark.parametrize("below", [2000, 500])
def test_a_wide_filter_takes_more_neighbours(store: Store, vectors: Vectors, gpu: StandIn, below: int) -> None:
    assert check(store, vectors, 10, below) == {Plan.EXACT}
    assert len(gpu.counts) == 1
    assert gpu.counts[0] > 10 * COUNT / below


def test_a_narrow_filter_is_for_the_cpu(store: Store, vectors: Vectors, gpu: StandIn) -> None:
    assert check(store, vectors, 10, 4) == {Plan.EXACT}
    assert gpu.counts == []


def test_what_a_filter_keeps_far_from_the_query_is_found_all_the_same(tmp_path: Path) -> None:
    """None of the query's own cluster passes: the neighbours that a GPU can find are not enough."""
    ones = np.zeros((2 * MAX_NEIGHBOURS, 2), np.float32)
    ones[: len(ones) // 2, 0] = ones[len(ones) // 2 :, 1] = 1
    products = [product(f"p{row}", far=float(row >= len(ones) // 2)) for row in range(len(ones))]
    Store.create(tmp_path / "index", about(2), [(products, ones)], upkeep=BY_HAND).close()
    gpu = StandIn(len(ones))
    with Store.open(tmp_path / "index", gpu=gpu) as store:
        (found,) = store.search(ones[:1], 5, filters=[Range("far", above=0.5)])
    assert found.product_ids == [f"p{row}" for row in range(MAX_NEIGHBOURS, MAX_NEIGHBOURS + 5)]
    assert len(gpu.counts) == 1


def test_more_hits_than_a_gpu_can_find(store: Store, vectors: Vectors, gpu: StandIn) -> None:
    k = MAX_NEIGHBOURS + 100
    (found,) = store.search(random_vectors(1, 16, seed=1), k)
    assert len(found.hits) == k
    assert gpu.counts == []


def test_one_thread_at_a_time(store: Store, gpu: StandIn) -> None:
    queries = random_vectors(64, 16, seed=2)
    expected = [one.product_ids for one in store.search(queries, 10)]
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: store.search(queries, 10), range(32)):
            assert [one.product_ids for one in found] == expected
    assert len(gpu.counts) == 33


def test_new_segments_are_held_and_said(store: Store, vectors: Vectors, gpu: StandIn) -> None:
    assert [(one.kind, one.tuned_recall) for one in store.segments()] == [(GPU_KIND, 1.0)]
    gpu.room = COUNT  # for one of both at a time
    store.compact()
    assert [(one.kind, len(one)) for one in store.segments()] == [(GPU_KIND, len(store))]
    assert check(store, vectors, 10) == {Plan.EXACT}
    assert (gpu.num_held, gpu.num_rows, len(gpu.counts)) == (2, len(store), 1)
    store.close()
    assert gpu.num_rows == 0


def test_what_does_not_fit_is_searched_on_the_cpu(tmp_path: Path, store: Store) -> None:
    with Store.open(tmp_path / "index", gpu=StandIn(room=10)) as without:
        (segment,) = without.segments()
        assert segment.kind == segment.info.factory
        assert 0.9 < segment.tuned_recall < 1
        assert without.search(random_vectors(1, 16), 10)[0].plan is Plan.APPROXIMATE


def test_a_generation_that_comes_to_count_is_held(tmp_path: Path, vectors: Vectors) -> None:
    products = [product(f"p{row}") for row in range(50)]
    Store.create(tmp_path / "index", about(16), [(products, vectors[:50])], upkeep=BY_HAND).close()
    gpu = StandIn()
    with Store.open(tmp_path / "index", writable=True, upkeep=BY_HAND, gpu=gpu) as store:
        other = store.beside(store.generation)
        assert gpu.num_held == 1
        gpu.room = 50
        with store.resting(), store.giving_way(other):
            pass
        assert [one.kind for one in other.segments()] == [GPU_KIND]
        assert store.search(vectors[:1], 1)[0].product_ids == ["p0"]  # on the CPU from now on
        other.close()
    assert (gpu.num_held, gpu.num_rows) == (2, 0)


def test_it_is_compared_with_the_others(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.compare, "find_gpu", lambda device: StandIn())
    flat, on_gpu, *_ = compare(vectors[:-64], vectors[-64:], 0.8)
    assert (flat.kind, on_gpu.kind, on_gpu.recall) == ("Flat", GPU_KIND, 1.0)


def test_too_little_memory_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """FAISS's own failure, as it says it."""

    class Full:
        def __init__(self, *_: object) -> None: ...

        def add(self, _: Vectors) -> None:
            raise RuntimeError("Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail")

    class Settings:
        device = -1

    class Resources:
        def setTempMemory(self, _: int) -> None: ...  # noqa: N802  # its name there

    for name, stand_in in (
        ("GpuIndexFlatIP", Full),
        ("GpuIndexFlatConfig", Settings),
        ("StandardGpuResources", Resources),
    ):
        monkeypatch.setattr(faiss, name, stand_in, raising=False)
    assert Gpu(0).hold(random_vectors(4)) is None
    assert "do not fit on GPU 0; they are searched on the CPU" in caplog.text
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    with pytest.raises(ConfigError, match=r"device: 'cuda:2' is not there; FAISS sees 2 GPUs"):
        find_gpu("cuda:2")
    for device in ("gpu", "cuda:x", "cuda:-1"):
        with pytest.raises(ConfigError, match=f"device: '{device}' is none of"):
            find_gpu(device)
    found = [find_gpu(device) for device in ("auto", "cuda", "cuda:1", "cpu")]
    assert [None if one is None else one.number for one in found] == [0, 0, 1, None]


def test_without_one_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    assert [find_gpu(device) for device in ("auto", "cpu", "cuda", "cuda:1")] == [None] * 4
