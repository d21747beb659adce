"""A store against a dict: what was written is found by the next search, whatever happens in between."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import index.segment
from index.about import About
from index.exact import Vectors
from index.filters import Range
from index.lease import LEASE
from index.product import Product
from index.store import Store, read_about
from index.upkeep import Upkeep
from item.catalog.listing import Listing, Picture
from item.errors import ConfigError, LeaseError, ReadOnlyError, StoreError
from tests.index.conftest import (
    BY_HAND,
    CHECKOUT,
    about,
    generation_folder,
    product,
    python,
    random_vectors,
    run_python,
    segment_files,
    unit,
)


def test_a_product_from_a_listing() -> None:
    picture = Picture(data=b"x", reference="a.png")
    listing = Listing(product_id="a", title="Mug", images=(picture,), attributes={"b": 1.0})
    made = Product.from_listing(listing)
    assert (made.product_id, made.title, made.attributes, made.image) == ("a", "Mug", {"b": 1.0}, "a.png")


def test_a_vector_handed_out_is_a_copy(store: Store) -> None:
    vector = store.vector("p0")
    assert vector is not None
    vector[:] = 0
    assert store.search(random_vectors(20)[:1], 1)[0].hits[0].product_id == "p0"


def test_vectors_handed_in_may_be_changed_afterwards(store: Store) -> None:
    mine = random_vectors(1, seed=1)
    store.upsert([product("new")], mine)
    mine[:] = random_vectors(20)[3]
    assert store.search(random_vectors(1, seed=1), 1)[0].hits[0].product_id == "new"


def test_an_empty_store_answers_with_nothing(tmp_path: Path) -> None:
    with Store.create(tmp_path, about(), upkeep=BY_HAND) as store:
        for _ in range(2):
            assert [found.hits for found in store.search(random_vectors(2), 3)] == [[], []]
            assert len(store) == 0
            assert not store.maintain()
            store.compact()


def test_a_store_whose_products_were_all_deleted_can_be_read(store: Store) -> None:
    """Also after the deletions were folded into segments, of which none is left."""
    store.delete([f"p{row}" for row in range(0, 20, 2)])
    store.compact()
    store.delete([f"p{row}" for row in range(20)])
    with Store.open(store.folder) as before:
        store.compact()
        for reader in (before, Store.open(store.folder)):
            assert len(reader) == 0
            reader.close()


def test_a_reader_sees_a_merge_without_a_loss(store: Store) -> None:
    query = random_vectors(1, seed=4)
    with Store.open(store.folder) as reader:
        for step in range(5):
            store.upsert([product(f"new{step}")], random_vectors(1, seed=step))
            store.delete([f"p{step}"])
            assert reader.search(query, 50) == store.search(query, 50)
            store.compact()
            found = reader.search(query, 50)
            assert found == store.search(query, 50)
            assert {hit.product_id for hit in found[0].hits} == {f"new{one}" for one in range(step + 1)} | {
                f"p{row}" for row in range(step + 1, 20)
            }


def test_a_reader_sees_a_new_generation_whatever_it_is_asked(folder: Path) -> None:
    readers = [Store.open(folder) for _ in range(5)]
    vectors = random_vectors(3, width=4, seed=8)
    with Store.create(folder, about(4), [([product(one) for one in "abc"], vectors)], upkeep=BY_HAND) as new:
        assert readers[0].product("a") == product("a")
        np.testing.assert_array_equal(readers[1].vector("a"), vectors[0])
        assert len(readers[2]) == 3
        assert readers[3].search(vectors, 2) == new.search(vectors, 2)
        assert readers[4].about == new.about
    for reader in readers:
        reader.close()


def test_keys_of_the_generation_before_name_no_other_products(folder: Path) -> None:
    """Hits are looked up after the search: between the two a reader may have followed to another generation."""
    with Store.open(folder) as reader:
        (found,) = reader.search(random_vectors(1), 5)
        others = [product(f"other{row}") for row in range(20)]
        Store.create(folder, about(), [(others, random_vectors(20))], upkeep=BY_HAND).close()
        assert len(reader) == 20
        products = reader.products([hit.key for hit in found.hits])
        assert all(products[hit.key].product_id == hit.product_id for hit in found.hits if hit.key in products)


def test_writes_to_a_store_open_to_read_are_refused(store: Store) -> None:
    with Store.open(store.folder) as reader:
        assert not reader.writable
        for write in (
            lambda: reader.upsert([product("new")], random_vectors(1)),
            lambda: reader.update([product("p1")]),
            lambda: reader.delete(["p1"]),
            reader.compact,
        ):
            with pytest.raises(ReadOnlyError, match="open it to write"):
                write()
    assert store.product("p1") == product("p1", price=1.0)
    assert len(store) == 20


def test_a_second_writer_is_refused(store: Store) -> None:
    with pytest.raises(LeaseError, match="another process writes to it"):
        Store.open(store.folder, writable=True)
    with pytest.raises(LeaseError, match="another process writes to it"):
        Store.create(store.folder, about())
    store.upsert([product("new")], random_vectors(1))
    assert len(store) == 21


def test_a_store_may_be_closed_twice(tmp_path: Path) -> None:
    with Store.create(tmp_path, about()) as store:
        store.close()


def test_about_is_what_was_said(store: Store) -> None:
    assert read_about(store.folder) == store.about
    assert replace(store.about, created="") == replace(about(), created="")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (random_vectors(3, 5), r"shape \(3, 5\) from row 20, expected \(3, 8\)"),
        (random_vectors(2, 8), r"shape \(2, 8\) from row 20"),
        (np.ones((3, 8), np.float32), r"row 20: a vector of length 2\.8"),
        (np.full((3, 8), np.nan, np.float32), "row 20: a vector of length nan"),
    ],
)
def test_a_block_of_no_use_leaves_the_collection_as_it_was(folder: Path, vectors: Vectors, message: str) -> None:
    query, before = random_vectors(1), (folder / "current.json").read_bytes()
    products = [product(f"new{row}") for row in range(20)]
    blocks = [(products, random_vectors(20)), ([product(f"more{row}") for row in range(3)], vectors)]
    with pytest.raises(StoreError, match=message):
        Store.create(folder, about(), blocks)
    with pytest.raises(StoreError, match="'new1' comes twice"):
        Store.create(folder, about(), [(products, random_vectors(20)), ([product("new1")], query)])
    assert (folder / "current.json").read_bytes() == before
    with Store.open(folder, writable=True) as again:
        assert len(again) == 20


@pytest.mark.parametrize("values", [{"flush_rows": 0}, {"ratio": 0.0}, {"ratio": float("nan")}, {"max_dead": 0.0}])
def test_upkeep_names_what_is_wrong(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"{name}: "):
        Upkeep(**values)  # type: ignore[arg-type]


def test_the_same_products_give_the_same_files(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        rows = [([product(f"p{row}") for row in range(20)], random_vectors(20, seed=seed))]
        Store.create(tmp_path / name, about(), rows, upkeep=BY_HAND).close()
        files.append(segment_files(generation_folder(tmp_path / name)))
    assert files[0] == files[1]
    assert len(files[0]) == 3
    assert not any(name.startswith("vectors") for name in files[0] & files[2])


# When segments are made


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


# Other processes, and disks

WRITE_ON = """
import sys
from pathlib import Path
import numpy as np
from index.store import Store
from index.upkeep import Upkeep
from tests.index.conftest import product, random_vectors
store = Store.open(Path(sys.argv[1]), writable=True, upkeep=Upkeep(flush_rows=20))
for row in range(100_000):
    store.upsert([product(f"new{row}", row=float(row))], random_vectors(1, seed=100 + row))
    store.delete([f"new{row - 5}"])
    print(row, flush=True)
    if row < 60:
        sys.stdin.readline()
"""


def test_what_was_acknowledged_survives_kill(folder: Path) -> None:
    pipe = subprocess.PIPE
    writer = subprocess.Popen(python(WRITE_ON, folder), cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None
    with Store.open(folder) as reader:
        for row in range(60):
            assert int(writer.stdout.readline()) == row
            assert reader.search(random_vectors(1, seed=100 + row), 1)[0].product_ids == [f"new{row}"]
            assert reader.product(f"new{row - 5}") is None
            if row == 0:
                with pytest.raises(LeaseError, match=f"process {writer.pid} on "):
                    Store.open(folder, writable=True)
            writer.stdin.write("go on\n")
            writer.stdin.flush()
    for row in range(60, 150):
        assert int(writer.stdout.readline()) == row
    writer.send_signal(signal.SIGKILL)
    last = int([str(row), *writer.communicate()[0].split()][-1])
    with Store.open(folder, writable=True, upkeep=BY_HAND) as again:
        for row in range(last - 4, last + 1):
            there = again.product(f"new{row}")
            assert there == product(f"new{row}", row=float(row)) or (row == last - 4 and there is None)  # the next's
        assert again.product(f"new{last - 5}") is None
        assert len(again) in (25, 26)
        (found,) = again.search(random_vectors(1, seed=100 + last), 1)
        assert found.product_ids == [f"new{last}"]


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from index.lease import LEASE
from index.store import Store
from index.upkeep import Upkeep
from item.errors import StoreError
from tests.index.conftest import product, random_vectors

folder = Path(sys.argv[1])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

store = Store.open(folder, writable=True, upkeep=Upkeep(background=False))
limit(400_000)
written = 0
try:
    while written < 10_000:
        store.upsert([product(f"new{written}", words="x" * 5000)], random_vectors(1, seed=100 + written))
        written += 1
except StoreError as error:
    print("refused:", error)

def check():
    assert len(store) == 20 + written, (len(store), written)
    assert store.product(f"new{written}") is None
    for row in range(written):
        assert store.search(random_vectors(1, seed=100 + row), 1)[0].hits[0].product_id == f"new{row}"
    assert store.product("p3") == product("p3", price=3.0)

assert 0 < written < 10_000
check()
limit(0)
try:
    store.compact()
    print("compacted")
except StoreError as error:
    print("refused:", error)
check()
try:
    store.backup(folder.with_name("backup"))
    print("backed up")
except StoreError as error:
    print("refused:", error)
left = [path.name for path in folder.parent.iterdir()]
assert left == [folder.name], left
limit(most)
store.upsert([product(f"new{written}")], random_vectors(1, seed=100 + written))
written += 1
check()
store.compact()
check()
store.close()
store = Store.open(folder)
check()
store.close()

limit(0)
try:
    Store.open(folder, writable=True)
    print("opened")
except StoreError as error:
    print("refused:", error)
try:
    Store.create(folder, store.about, [([product("a")], random_vectors(1))])
    print("created")
except StoreError as error:
    print("refused:", error)
limit(most)
store = Store.open(folder, writable=True)
check()
store.close()
"""


def test_a_full_disk_loses_nothing(folder: Path) -> None:
    """A limit of the size of files stands for it: SQLite, the segments, and the lease meet it one after another."""
    said = run_python(FILL_THE_DISK, folder)
    assert said.count("refused:") == 5


def content_of(folder: Path) -> dict[Path, bytes]:
    """All files, but for the note of who writes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LEASE}


WRITE_TO_WHAT_IS_READ_ONLY = """
import os, sys
from pathlib import Path
from index.store import Store
from item.errors import StoreError
from tests.index.conftest import about, product, random_vectors

folder = Path(sys.argv[1])
if os.access(folder, os.W_OK):
    sys.exit("may write all the same")
with Store.open(folder) as store:
    assert len(store) == 20
    assert store.search(random_vectors(20)[7:8], 1)[0].hits[0].product_id == "p7"
    assert store.product("p7") == product("p7", price=7.0)
for open_to_write in (
    lambda: Store.open(folder, writable=True),
    lambda: Store.create(folder, about(), [([product("a")], random_vectors(1))]),
    lambda: Store.create(folder / "new" / "one", about()),
):
    try:
        open_to_write()
        print("opened")
    except StoreError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("files_too", [False, True])
def test_a_folder_that_cannot_be_written_is_read_and_left_as_it_is(
    folder: Path, unprivileged: list[str], files_too: bool
) -> None:
    (generation_folder(folder) / "index-0123.faiss").write_bytes(b"of a writer that died")
    before = content_of(folder)
    for path in [folder, *folder.rglob("*")]:
        if files_too or path.is_dir():
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        said = run_python(WRITE_TO_WHAT_IS_READ_ONLY, folder, wrapper=unprivileged)
    finally:
        for path in [folder, generation_folder(folder)]:
            path.chmod(0o755)
    assert said.count("refused:") == 3
    assert f"refused: {folder}" in said
    assert content_of(folder) == before


def test_a_reader_that_may_not_write_sees_who_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was there first, as a server is that reads what another user's process writes."""
    monkeypatch.setattr("os.access", lambda *_: False)
    with Store.open(folder) as reader:
        assert len(reader) == 20
        with Store.open(folder, writable=True, upkeep=BY_HAND) as writer:
            writer.upsert([product("new")], random_vectors(1, seed=1))
            assert reader.search(random_vectors(1, seed=1), 1)[0].hits[0].product_id == "new"
            writer.compact()
            writer.delete(["new"])
            assert reader.search(random_vectors(1, seed=1), 1)[0].hits[0].product_id != "new"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("words")
    for refused in (Store.open, lambda folder: Store.create(folder, about())):
        with pytest.raises(StoreError, match=re.escape(str(tmp_path / "index"))):
            refused(tmp_path / "index")


def test_only_who_writes_makes_backups(store: Store) -> None:
    """A writer may merge between a reader's copies of the truth and of the segments."""
    with Store.open(store.folder) as reader, pytest.raises(ReadOnlyError, match="back it up through the process"):
        reader.backup(store.folder.with_name("backup"))
    assert not store.folder.with_name("backup").exists()


CLOSE_UNDER_READERS = """
import sys, threading, time
from pathlib import Path
from index.store import Store
from item.errors import ItemError

for turn in range(60):
    store = Store.open(Path(sys.argv[1]), writable=turn % 2 == 0)
    stop = threading.Event()

    def read():
        while not stop.is_set():
            try:
                store.products(list(range(20)))
                store.vector("p4")
            except ItemError:  # it is closed
                return

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.003)
    store.close()
    stop.set()
    for thread in threads:
        thread.join()
"""


def test_a_store_may_be_closed_while_threads_read(folder: Path) -> None:
    """As a server is that goes down: a read may be refused then, but not end the process."""
    run_python(CLOSE_UNDER_READERS, folder)


# Threads

Errors = list[BaseException]


@contextmanager
def running(*loops: Callable[[], None]) -> Iterator[None]:
    """Each function again and again in a thread of its own; what one raises comes out of here."""
    stop = threading.Event()

    def run(loop: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                loop()
        finally:
            stop.set()

    with ThreadPoolExecutor(len(loops)) as threads:
        started = [threads.submit(run, loop) for loop in loops]
        try:
            yield
        finally:
            stop.set()
        for one in started:
            one.result()


BUSY = Upkeep(flush_rows=25, ratio=2.0, max_dead=0.3)


def fresh_ids() -> Iterator[tuple[str, Vectors]]:
    row = 0
    while True:
        yield f"new{row}", random_vectors(1, seed=1000 + row)
        row += 1


def test_searches_beside_writes_and_merges_see_each_write(tmp_path: Path) -> None:
    """Ids are deleted for good, so none may come back; each product is found right after it was written."""
    gone: set[str] = set()
    rows = [([product(f"p{row}") for row in range(100)], random_vectors(100))]
    with Store.create(tmp_path, about(), rows, upkeep=BUSY) as store, Store.open(tmp_path) as reader:

        def look(at: Store) -> None:
            deleted = set(gone)
            for found in at.search(random_vectors(3, seed=len(deleted)), 60):
                ids = [hit.product_id for hit in found.hits]
                assert len(set(ids)) == len(ids) == 60
                assert not deleted & set(ids)
                assert all(
                    better.score >= worse.score for better, worse in zip(found.hits, found.hits[1:], strict=False)
                )

        with running(lambda: look(store), lambda: look(reader)):
            rng = np.random.default_rng(0)
            alive = [f"p{row}" for row in range(100)]
            end = time.monotonic() + 4
            for one, vector in fresh_ids():
                if time.monotonic() > end:
                    break
                store.upsert([product(one)], vector)
                alive.append(one)
                for at in (store, reader):
                    assert at.search(vector, 1)[0].hits[0].product_id == one
                if len(alive) > 120:
                    victims = [alive.pop(int(rng.integers(len(alive) - 1))) for _ in range(12)]
                    assert all(store.delete(victims))
                    gone.update(victims)
        assert len(store) == len(reader) == len(alive)
        assert len(gone) > 100


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    vectors = random_vectors(4 * 40)

    def write(thread: int) -> None:
        for row in range(40 * thread, 40 * thread + 40):
            assert store.upsert([product(f"p{row}")], vectors[row : row + 1]) == [True]
            store.update([product(f"p{row}", price=float(row))])
            if row % 4 == 3:
                assert store.delete([f"p{row - 1}", f"p{row}", "none"]) == [True, True, False]

    with Store.create(tmp_path, about(), upkeep=BUSY) as store:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, range(4)))
        ids = [f"p{row}" for row in range(160) if row % 4 < 2]
        assert len(store) == len(ids)
    with Store.open(tmp_path) as store:
        (found,) = store.search(vectors[:1], 200, filters=[Range("price", at_least=0)])
        assert sorted(found.product_ids) == sorted(ids)


def test_a_product_that_is_written_again_and_again_is_always_there(tmp_path: Path) -> None:
    """It has a vector at any time, is found at any time, once, and is left out where that is asked for."""
    rows = [([product(f"p{row}") for row in range(30)], random_vectors(30))]
    vectors = unit(random_vectors(1) + 1e-3 * random_vectors(50, seed=1))
    with Store.create(tmp_path, about(), rows, upkeep=BUSY) as store, Store.open(tmp_path) as reader:
        problems = []

        def look(at: Store) -> None:
            if at.vector("p0") is None:
                problems.append("no vector")
            if at.product("p0") is None:
                problems.append("no product")
            both, without = at.search(np.repeat(vectors[:1], 2, axis=0), 30, [(), {"p0"}])
            if [hit.product_id for hit in both.hits].count("p0") != 1:
                problems.append("not once among the hits")
            if "p0" in [hit.product_id for hit in without.hits]:
                problems.append("among the hits though left out")

        with running(lambda: look(store), lambda: look(reader)):
            end = time.monotonic() + 3
            while time.monotonic() < end and not problems:
                for vector in vectors:
                    store.upsert([product("p0")], vector[None])
        assert not problems


def test_readers_follow_to_new_generations_in_many_threads(tmp_path: Path) -> None:
    """Each generation has 40 products of its own name; a reader sees the old one or the new one, never a mixture."""

    def build(name: str) -> None:
        rows = [([product(f"{name}{row}") for row in range(40)], random_vectors(40))]
        Store.create(tmp_path, About(space="5" * 64, vector_width=8, model=name), rows, upkeep=BY_HAND).close()

    build("a")
    with Store.open(tmp_path) as reader:

        def look() -> None:
            left_out = [f"{name}{row}" for name in "ab" for row in range(10)]
            found = reader.search(random_vectors(2), 30, [left_out, left_out])
            for one in found:
                ids = [hit.product_id for hit in one.hits]
                assert len(ids) == 30
                assert not set(left_out) & set(ids)
                assert len({product_id[0] for product_id in ids}) == 1

        def open_again() -> None:
            with Store.open(tmp_path) as other:
                assert len(other) == 40

        with running(look, look, open_again):
            for turn in range(30):
                build("ba"[turn % 2])


def test_a_generation_that_counts_survives_what_goes_wrong_after_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    Store.create(folder, about(8), [([product("old")], random_vectors(1))], upkeep=BY_HAND).close()

    before = (folder / "current.json").read_text()

    def fail_once_it_counts(path: Path) -> None:
        if path == folder and (folder / "current.json").read_text() != before:
            raise KeyboardInterrupt

    monkeypatch.setattr("index.files.flush", fail_once_it_counts)
    monkeypatch.setattr("index.creation.flush", fail_once_it_counts)
    with pytest.raises(KeyboardInterrupt):
        Store.create(folder, about(8), [([product("new")], random_vectors(1))], upkeep=BY_HAND)
    monkeypatch.undo()
    with Store.open(folder) as store:
        assert store.product("new") is not None


def test_a_product_of_a_later_version_is_read() -> None:
    text = product("a").to_json()[:-1] + ',"not known yet":1}'
    assert Product.from_json("a", text) == product("a")
