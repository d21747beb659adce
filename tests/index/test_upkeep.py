"""When segments are written anew, by hand and by the thread."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import index.choosing
import index.segment
import index.segment_files
from index.check import check
from index.filters import Equal
from index.ranking import Ranking
from index.segment import rewrite_rows
from index.store import Store
from index.upkeep import Upkeep
from item.errors import ConfigError, StoreError
from tests.index.conftest import BY_HAND, about, flip_byte, generation_folder, product, random_vectors, segment_files


@pytest.mark.parametrize("values", [{"flush_rows": 0}, {"ratio": 0.0}, {"ratio": float("nan")}, {"max_dead": 0.0}])
def test_upkeep_names_what_is_wrong(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"{name}: "):
        Upkeep(**values)  # type: ignore[arg-type]


def test_segments_are_made_of_enough_fresh_rows(tmp_path: Path) -> None:
    with Store.create(tmp_path, about(), upkeep=Upkeep(background=False, flush_rows=10)) as store:
        names = [f"p{row}" for row in range(200)]
        vectors = random_vectors(200)
        folder = generation_folder(tmp_path)
        for row in range(9):
            store.upsert([product(names[row])], vectors[row : row + 1])
        assert not store.maintain()
        assert not segment_files(folder)
        store.upsert([product(names[9])], vectors[9:10])
        assert store.maintain()
        assert not store.maintain()
        assert len(segment_files(folder)) == 3
        for start in range(10, 200, 10):
            store.upsert([product(name) for name in names[start : start + 10]], vectors[start : start + 10])
            assert store.maintain()
            assert not store.maintain()
        assert 3 <= len(segment_files(folder)) <= 12  # few, as small ones are merged into larger ones
        assert len(store) == 200


def test_a_segment_that_is_mostly_dead_is_made_again(store: Store) -> None:
    folder = generation_folder(store.folder)
    before = segment_files(folder)
    store.delete([f"p{row}" for row in range(5)])
    assert not store.maintain()  # a quarter may be dead
    store.delete(["p5"])
    assert store.maintain()
    assert not store.maintain()
    assert len(segment_files(folder)) == 3
    assert not segment_files(folder) & before
    assert len(store) == 14


def kinds_kept(before: set[str], after: set[str]) -> set[str]:
    """The kinds of files that are the same."""
    return {name.partition("-")[0] for name in before & after}


@pytest.mark.usefixtures("few_are_many")
def test_many_updates_have_attributes_written_anew(tmp_path: Path) -> None:
    """Vectors and index stay, words unless texts changed; the dead stay dead, and nothing is left to read again."""
    vectors, upkeep = random_vectors(80), Upkeep(background=False, flush_rows=10, ratio=4.0)
    blocks = [([product(f"p{row}", price=1.0, colour="red") for row in range(80)], vectors)]
    with Store.create(tmp_path, about(), blocks, upkeep=upkeep) as store:
        folder = generation_folder(tmp_path)
        store.delete(["p3", "p79"])
        before = segment_files(folder)
        store.update([product(f"p{row}", price=2.0, colour="red") for row in range(4, 23)])
        assert not store.maintain()  # a quarter of the rows
        store.update([product("p23", price=2.0, colour="red")])
        assert store.maintain()
        assert not store.maintain()
        assert kinds_kept(before, segment_files(folder)) == {"vectors", "index", "words"}
        assert len(segment_files(folder)) == 4
        before = segment_files(folder)
        store.update([product(f"p{row}", price=2.0, colour="blue") for row in range(30, 50)])
        store.upsert([product("p80", price=2.0, colour="blue"), product("p5", price=1.0, colour="green")], vectors[:2])
        assert store.maintain()
        assert kinds_kept(before, segment_files(folder)) == {"vectors", "index"}
    for writable in (False, True):
        with Store.open(tmp_path, writable=writable, upkeep=upkeep) as store:
            assert store._memory.num_updated == 0
            assert len(store) == 79
            bought = store.search(vectors[:1], 100, filters=[Equal("price", 2.0)])[0].product_ids
            assert sorted(bought) == sorted(f"p{row}" for row in (4, *range(6, 24), *range(30, 50), 80))
            ranked = store.rank(vectors[0], 21, Ranking(words="blue", lexical_weight=1.0))
            assert sorted(ranked.found.product_ids) == sorted(f"p{row}" for row in (*range(30, 50), 80))
            assert not store.maintain()
    assert check(tmp_path, repair=False)


def test_words_written_anew_are_those_of_the_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a text changes while they are written, and back afterwards."""
    upkeep = Upkeep(background=False, flush_rows=5)
    blocks = [([product(f"p{row}", colour="red") for row in range(20)], random_vectors(20))]
    with Store.create(tmp_path, about(), blocks, upkeep=upkeep) as store:
        store.update([product(f"p{row}", colour="blue") for row in range(5)])

        def write_meanwhile(*arguments: object) -> object:
            store.update([product("p9", colour="green")])
            return rewrite_rows(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(index.segment_files, "rewrite_rows", write_meanwhile)
        assert store.maintain()
        store.update([product("p9", colour="red")])
    with Store.open(tmp_path) as store:
        red = store.rank(random_vectors(1)[0], 15, Ranking(words="red", lexical_weight=1.0)).found.product_ids
        assert sorted(red) == sorted(f"p{row}" for row in range(5, 20))
        assert store.rank(random_vectors(1)[0], 1, Ranking(words="green", lexical_weight=1.0)).found.product_ids != [
            "p9"
        ]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StoreError("a row is damaged")])
def test_what_fails_to_be_written_anew_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    upkeep = Upkeep(background=False, flush_rows=5)
    blocks = [([product(f"p{row}", price=1.0) for row in range(20)], random_vectors(20))]
    with Store.create(tmp_path, about(), blocks, upkeep=upkeep) as store:
        store.update([product(f"p{row}", price=2.0) for row in range(5)])
        folder = generation_folder(tmp_path)
        before = sorted(path.name for path in folder.iterdir())

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(index.segment_files, "write_manifest", fail)
        for _ in range(2):
            with pytest.raises(StoreError):
                store.maintain()
            assert sorted(path.name for path in folder.iterdir()) == before
        monkeypatch.undo()
        assert store.maintain()
        assert len(store.search(random_vectors(1), 20, filters=[Equal("price", 2.0)])[0].hits) == 5


def test_who_does_not_write_maintains_nothing(tmp_path: Path) -> None:
    """Neither a reader, nor a store that has just given way to another generation."""
    upkeep = Upkeep(background=False, flush_rows=5)
    blocks = [([product(f"p{row}", price=1.0) for row in range(20)], random_vectors(20))]
    with (
        Store.create(tmp_path, about(), blocks, upkeep=upkeep) as store,
        Store.open(tmp_path, upkeep=upkeep) as reader,
    ):
        store.update([product(f"p{row}", price=2.0) for row in range(5)])
        assert len(reader) == 20
        assert not reader.maintain()
        other = store.beside(store.generation)
        with store.resting(), store.giving_way(other):
            pass
        assert not store.maintain()
        assert other.maintain()
        other.close()


def test_a_row_that_changes_often_is_one_row(tmp_path: Path) -> None:
    blocks = [([product(f"p{row}", price=1.0) for row in range(20)], random_vectors(20))]
    with Store.create(tmp_path, about(), blocks, upkeep=Upkeep(background=False, flush_rows=5)) as store:
        for price in range(20):
            store.update([product("p0", price=float(price))])
        assert not store.maintain()


@pytest.mark.usefixtures("few_are_many")
def test_a_reader_reads_what_is_new_alone(tmp_path: Path) -> None:
    """After a merge, and after attributes were written anew; what is new is checked."""
    vectors, upkeep = random_vectors(80), Upkeep(background=False, flush_rows=10, ratio=4.0)
    blocks = [([product(f"p{row}", price=1.0) for row in range(60)], vectors[:60])]
    with Store.create(tmp_path, about(), blocks, upkeep=upkeep) as store, Store.open(tmp_path) as reader:
        (first,) = reader.segments()
        store.upsert([product(f"p{row}", price=1.0) for row in range(60, 70)], vectors[60:70])
        assert store.maintain()
        assert len(reader) == 70
        assert reader.segments()[0] is first
        assert len(reader.segments()) == 2
        store.update([product(f"p{row}", price=2.0) for row in range(30)])
        assert store.maintain()
        assert len(reader.search(vectors[:1], 80, filters=[Equal("price", 2.0)])[0].hits) == 30
        assert reader.segments()[0].index is first.index
        assert reader.segments()[0] is not first
        store.update([product(f"p{row}", price=3.0) for row in range(30)])
        assert store.maintain()
        (rows, _) = (generation_folder(tmp_path) / info.info.file("rows") for info in store.segments())
        flip_byte(rows)
        with pytest.raises(StoreError, match="damaged"):
            len(reader)


def test_the_thread_writes_attributes_anew(tmp_path: Path) -> None:
    blocks = [([product(f"p{row}", price=1.0) for row in range(20)], random_vectors(20))]
    with Store.create(tmp_path, about(), blocks, upkeep=Upkeep(flush_rows=10)) as store:
        before = store._memory.segments
        for price in (2.0, 3.0):
            store.update([product(f"p{row}", price=price) for row in range(10)])
        _wait_for(lambda: store._memory.segments is not before and store._memory.num_updated == 0)
        assert len(store.search(random_vectors(1), 20, filters=[Equal("price", 3.0)])[0].hits) == 10


def test_a_thread_makes_segments(tmp_path: Path) -> None:
    with Store.create(tmp_path, about(), upkeep=Upkeep(flush_rows=10)) as store:
        store.upsert([product(f"p{row}") for row in range(10)], random_vectors(10))
        _wait_for(lambda: len(segment_files(generation_folder(tmp_path))) == 3)
        assert len(store) == 10


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_disk_too_small_is_noticed_before_an_index_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.choosing, "FLAT_ROWS", 50)
    with Store.create(tmp_path, about(), upkeep=BY_HAND) as store:
        store.upsert([product(f"p{row}") for row in range(100)], random_vectors(100))
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * random_vectors(100).nbytes))
        with pytest.raises(StoreError, match=r"MiB are needed, the disk has .* MiB left"):
            store.compact()
        assert not segment_files(generation_folder(tmp_path))
        assert len(store.search(random_vectors(1), 20)[0].hits) == 20


def test_a_vector_that_was_half_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path, about(), upkeep=BY_HAND) as store:
        store.upsert([product(f"p{row}") for row in range(10)], random_vectors(10))
        monkeypatch.setattr(os, "pwrite", lambda descriptor, content, place: len(content) // 2)
        with pytest.raises(StoreError, match="No space left on device"):
            store.compact()
        assert not segment_files(generation_folder(tmp_path))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("Error in write_index: write error")]
)
def test_a_thread_that_failed_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Both ways in which a full disk shows, the file system's and FAISS's."""
    failures = [error]

    def fail_once(*arguments: object) -> object:
        if failures:
            raise failures.pop()
        return written(*arguments)  # type: ignore[arg-type]

    written = index.segment.write_segment
    monkeypatch.setattr("index.segment_files.write_segment", fail_once)
    with Store.create(tmp_path, about(), upkeep=Upkeep(flush_rows=10)) as store:
        store.upsert([product(f"p{row}") for row in range(10)], random_vectors(10))
        _wait_for(lambda: "segments could not be written" in caplog.text)
        assert len(store.search(random_vectors(1), 20)[0].hits) == 10
        store.upsert([product("new")], random_vectors(1))
        _wait_for(lambda: len(segment_files(generation_folder(tmp_path))) == 3)
        assert len(store) == 11
