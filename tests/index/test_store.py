"""What a store and those who read it beside see of each write, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.store import Store, read_about
from item.errors import LeaseError, ReadOnlyError
from tests.index.conftest import BY_HAND, about, product, random_vectors


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


def test_only_who_writes_makes_backups(store: Store) -> None:
    """A writer may merge between a reader's copies of the truth and of the segments."""
    with Store.open(store.folder) as reader, pytest.raises(ReadOnlyError, match="back it up through the process"):
        reader.backup(store.folder.with_name("backup"))
    assert not store.folder.with_name("backup").exists()
