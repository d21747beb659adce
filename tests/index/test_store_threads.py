"""A store that many threads search, write and close at once: each sees what it may rely on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from index.about import About
from index.exact import Vectors
from index.filters import Range
from index.store import Store
from index.upkeep import Upkeep
from tests.index.conftest import BY_HAND, about, product, random_vectors, run_python, unit


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
