"""What the truth holds, what it says has changed, and what it refuses to believe."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.acknowledged import ACKNOWLEDGED
from index.changes import Changes
from index.exact import Vectors
from index.product import Product
from index.truth import CHANGES, TRUTH, Truth
from index.truth_database import SCHEMA_VERSION
from index.truth_rows import AT_ONCE
from item.errors import ReadOnlyError, StoreError
from tests.index.conftest import WIDTH, about, flip_byte, product, random_vectors

VECTORS = random_vectors(40)


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[Truth]:
    with closing(Truth.create(tmp_path, about())) as truth:
        yield truth


def upserts(*ids: str, first: int = 0) -> list[tuple[Product, Vectors]]:
    """Products with vectors of VECTORS from `first` on."""
    return [(product(one), VECTORS[first + place]) for place, one in enumerate(ids)]


def key_of(truth: Truth, product_id: str) -> int:
    key = truth.key(product_id)
    assert key is not None
    return key


def alter(folder: Path, statement: str, *values: object) -> None:
    """Changes a database behind the back of ITEm."""
    with closing(sqlite3.connect(folder / TRUTH)) as connection, connection:
        connection.execute(statement, values)


def plain(changes: Changes) -> tuple[int, set[int], list[tuple[int, Product, bytes | None]]]:
    """Changes that can be compared."""
    written = [(one.key, one.product, None if one.vector is None else one.vector.tobytes()) for one in changes.written]
    return changes.revision, set(changes.deleted), written


def test_an_upsert_is_there_with_its_vector(truth: Truth) -> None:
    changes = truth.write(upserts=upserts("a", "b"))
    a, b = (key_of(truth, one) for one in "ab")
    assert a < b
    assert (truth.count(), truth.revision()) == (2, 1)
    assert truth.product("b") == (b, product("b"))
    assert truth.products([b, 99, a]) == {a: product("a"), b: product("b")}
    np.testing.assert_array_equal(truth.vector("a"), VECTORS[0])
    assert plain(changes) == plain(truth.changes(0, 0))
    assert (truth.key("none"), truth.product("none"), truth.vector("none")) == (None, None, None)


def test_another_vector_gets_another_key_and_the_old_key_a_tombstone(truth: Truth) -> None:
    truth.write(upserts=upserts("a"))
    old = key_of(truth, "a")
    changes = truth.write(upserts=upserts("a", first=1))
    new = key_of(truth, "a")
    assert new > old
    assert (changes.revision, changes.deleted) == (2, [old])
    np.testing.assert_array_equal(truth.vector("a"), VECTORS[1])
    assert truth.count() == 1


def test_a_key_is_never_given_twice(truth: Truth) -> None:
    truth.write(upserts=upserts("a"))
    old = key_of(truth, "a")
    truth.write(deletes=["a"])
    truth.write(upserts=upserts("b"))
    assert key_of(truth, "b") > old


def test_changes_do_not_read_all_products(truth: Truth) -> None:
    query = CHANGES.replace(":since", "1").replace(":last_key", "1")
    steps = [row[3] for row in truth._database.rows(f"EXPLAIN QUERY PLAN {query}")]
    assert sum("SEARCH" in step for step in steps) >= 4
    assert not any(step.startswith(("SCAN p", "SCAN v")) for step in steps)


def test_an_update_keeps_key_and_vector(truth: Truth) -> None:
    truth.write(upserts=upserts("a"))
    key = key_of(truth, "a")
    renamed = replace(product("a"), title="Cup")
    changes = truth.write(updates=[renamed])
    assert truth.product("a") == (key, renamed)
    np.testing.assert_array_equal(truth.vector("a"), VECTORS[0])
    assert plain(changes) == (2, set(), [(key, renamed, None)]) == plain(truth.changes(1, key))


def test_a_delete_leaves_only_a_tombstone(truth: Truth) -> None:
    truth.write(upserts=upserts("a", "b"))
    key = key_of(truth, "a")
    changes = truth.write(deletes=["a", "a", "none"])
    assert plain(changes) == (2, {key}, []) == plain(truth.changes(1, key + 1))
    assert (truth.product("a"), truth.vector("a")) == (None, None)
    assert truth.count() == 1


def test_of_two_with_one_id_the_later_stays(truth: Truth) -> None:
    first, second = (replace(product("a"), title=title) for title in ("first", "second"))
    truth.write(upserts=[(first, VECTORS[0]), (product("b"), VECTORS[1]), (second, VECTORS[2])])
    key = key_of(truth, "a")
    assert truth.product("a") == (key, second)
    np.testing.assert_array_equal(truth.vector("a"), VECTORS[2])
    assert truth.count() == 2
    truth.write(updates=[first, second, first])
    assert truth.product("a") == (key, first)


@given(
    writes=st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, len(VECTORS) - 1)), max_size=5),
            st.lists(st.sampled_from("abcde"), max_size=3),
        ),
        max_size=12,
    ),
    seen=st.integers(0, 12),
)
@settings(max_examples=30)
def test_changes_lead_from_any_revision_to_the_last(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[list[tuple[str, int]], list[str]]], seen: int
) -> None:
    """A replica that read up to some revision, then the changes after it, holds what is there."""
    replica: dict[int, tuple[Product, bytes]] = {}
    revision = last_key = 0

    def follow(changes: Changes) -> None:
        nonlocal revision, last_key
        for key in changes.deleted:
            replica.pop(key, None)
        for one in changes.written:
            assert (one.vector is None) == (one.key <= last_key)
            vector = replica[one.key][1] if one.vector is None else one.vector.tobytes()
            replica[one.key] = (one.product, vector)
        revision, last_key = changes.revision, max([last_key, *replica])

    with closing(Truth.create(tmp_path_factory.mktemp("truth"), about())) as truth:
        for number, (rows, others) in enumerate(writes):
            there = {one for one in "abcde" if truth.key(one) is not None} - {one for one, _ in rows}
            updates = [replace(product(one), title=f"nº {number}") for one in others if one in there]
            truth.write(upserts=[(product(one), VECTORS[row]) for one, row in rows], updates=updates)
            truth.write(deletes=others[:1])
            if number < seen:
                follow(truth.changes(revision, last_key))
        follow(truth.changes(revision, last_key))
        expected = {}
        for one in "abcde":
            if (found := truth.product(one)) is not None:
                vector = truth.vector(one)
                assert vector is not None
                expected[found[0]] = (found[1], vector.tobytes())
        assert replica == expected
        assert truth.changes(revision, last_key) == Changes(revision=revision, deleted=[], written=[])


def test_an_error_leaves_nothing_of_a_write(truth: Truth) -> None:
    truth.write(upserts=upserts("a", "b"))
    before = plain(truth.changes(0, 0))
    with pytest.raises(StoreError, match="'none' is not there to be updated"):
        truth.write(deletes=["a"], updates=[replace(product("b"), title="Cup"), product("none")])
    with pytest.raises(AttributeError):
        truth.write(upserts=[*upserts("c"), (None, VECTORS[0])])  # type: ignore[list-item]
    assert plain(truth.changes(0, 0)) == before
    truth.write(upserts=upserts("c"))
    assert (truth.count(), truth.revision()) == (3, 2)


def test_a_write_whose_note_fails_is_not_half_done(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the first bytes of `acknowledged` may not find room: either all is written, or nothing."""
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", _full)
        try:
            truth.write(upserts=upserts("a"))
            written = True
        except StoreError:
            written = False
    assert (truth.key("a") is not None) == written


def _full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_load_fills_and_refuses_a_repeated_id(truth: Truth) -> None:
    ids = ["a", "b", "c"]
    assert truth.load([([product(one) for one in ids[:2]], VECTORS[:2]), ([product("c")], VECTORS[2:3])]) == 3
    assert [one.product.product_id for one in truth.changes(0, 0).written] == ids
    with pytest.raises(StoreError, match="'d' comes twice"):
        truth.load([([product("d"), product("d")], VECTORS[:2])])
    with pytest.raises(StoreError, match="'a' comes twice"):
        truth.load([([product("a")], VECTORS[:1])])
    assert truth.count() == 3


def test_frozen_sees_one_state_while_another_thread_writes(truth: Truth) -> None:
    many = AT_ONCE + 10
    ids = [f"p{row}" for row in range(many)]
    vectors = random_vectors(many)
    truth.load([([product(one) for one in ids], vectors)])
    with truth.frozen() as frozen:
        blocks = frozen.blocks()
        first = next(blocks)

        def write() -> None:
            truth.write(deletes=ids[-5:])
            truth.write(upserts=upserts("new", "p3"), updates=[replace(product("p5"), title="Cup")])

        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        keys, products, found = zip(first, *blocks, strict=True)
        assert (frozen.revision, frozen.count(), frozen.last_key()) == (1, many, many)
        assert frozen.count(after_key=many - 7) == 7
        assert [one.product_id for block in products for one in block] == ids
        assert products[0][5] == product("p5")
        np.testing.assert_array_equal(np.concatenate(keys), np.arange(1, many + 1))
        np.testing.assert_array_equal(np.concatenate(found), vectors)
    with truth.frozen() as frozen:
        assert (frozen.revision, frozen.count(), frozen.last_key()) == (3, many - 4, many + 2)


def test_a_reader_sees_each_write_at_once_and_writes_nothing(truth: Truth) -> None:
    with closing(Truth(truth.folder, writable=False)) as reader:
        for number, one in enumerate("abc"):
            truth.write(upserts=upserts(one))
            assert (reader.count(), reader.revision()) == (number + 1, number + 1)
        with pytest.raises(ReadOnlyError, match="open it to write"):
            reader.write(deletes=["a"])
        with pytest.raises(ReadOnlyError, match="open it to write"):
            reader.prune(1)
    assert truth.count() == 3


def test_pruned_tombstones_are_gone_and_no_others(truth: Truth) -> None:
    truth.write(upserts=upserts("a", "b"))
    truth.write(deletes=["a"])
    truth.write(deletes=["b"])
    truth.prune(2)
    assert len(truth.changes(0, 0).deleted) == 1
    assert (truth.pruned(), truth.revision()) == (2, 3)
    truth.prune(1)
    assert truth.pruned() == 2


def test_what_was_closed_comes_back(tmp_path: Path) -> None:
    with closing(Truth.create(tmp_path, about())) as truth:
        truth.write(upserts=upserts("a", "b"))
        truth.write(deletes=["a"])
        before, said = plain(truth.changes(0, 0)), truth.about
    assert not (tmp_path / f"{TRUTH}-wal").exists()
    for writable in (False, True):
        with closing(Truth(tmp_path, writable=writable)) as truth:
            assert plain(truth.changes(0, 0)) == before
            assert truth.about == said
            assert truth.integrity_errors() == []


def test_close_may_be_called_twice(tmp_path: Path) -> None:
    truth = Truth.create(tmp_path, about())
    truth.close()
    truth.close()


def test_a_copy_equals(truth: Truth, tmp_path: Path) -> None:
    truth.write(upserts=upserts("a", "b", "c"))
    truth.write(deletes=["c"], updates=[replace(product("b"), title="Cup")])
    truth.prune(1)
    (tmp_path / "copy").mkdir()
    truth.copy_to(tmp_path / "copy")
    with closing(Truth(tmp_path / "copy", writable=True)) as copy:
        assert plain(copy.changes(0, 0)) == plain(truth.changes(0, 0))
        assert (copy.about, copy.pruned(), copy.revision()) == (truth.about, 1, 2)
        copy.write(upserts=upserts("d"))
        assert key_of(copy, "d") == 4  # the key of c is not given again
    assert truth.key("d") is None


def test_a_copy_of_what_is_open_is_what_kill_would_leave(truth: Truth, tmp_path: Path) -> None:
    truth.write(upserts=upserts("a", "b"))
    copy = shutil.copytree(truth.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    assert (copy / f"{TRUTH}-wal").stat().st_size > 0
    with closing(Truth(copy, writable=True)) as found:
        assert plain(found.changes(0, 0)) == plain(truth.changes(0, 0))


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("harm", ["remove", "truncate", "flip"])
def test_a_lost_end_of_the_log_is_noticed(truth: Truth, tmp_path: Path, harm: str, writable: bool) -> None:
    truth.write(upserts=upserts("a"))
    truth.write(upserts=upserts("b"))
    copy = shutil.copytree(truth.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("copy", "*-shm"))
    log = copy / f"{TRUTH}-wal"
    if harm == "remove":
        log.unlink()
    elif harm == "truncate":
        log.write_bytes(log.read_bytes()[:-1])
    else:
        flip_byte(log, 0.999)
    with pytest.raises(StoreError, match=r"but 2 was acknowledged: its write-ahead log is damaged or missing"):
        Truth(copy, writable=writable)


@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_a_damaged_note_of_the_last_revision_is_noticed(tmp_path: Path, place: float) -> None:
    with closing(Truth.create(tmp_path, about())) as truth:
        truth.write(upserts=upserts("a"))
    flip_byte(tmp_path / ACKNOWLEDGED, place)
    with pytest.raises(StoreError, match=f"{ACKNOWLEDGED}: damaged"):
        Truth(tmp_path, writable=True)


def test_a_damaged_row_is_named(truth: Truth) -> None:
    truth.write(upserts=upserts("a", "b", "c"))
    a, b, c = (key_of(truth, one) for one in "abc")
    alter(truth.folder, "UPDATE products SET body = replace(body, 'Mug', 'Nug') WHERE key = ?", a)
    damaged = bytearray(VECTORS[1].tobytes())
    damaged[7] ^= 1
    alter(truth.folder, "UPDATE vectors SET vector = ? WHERE key = ?", bytes(damaged), b)
    for read in (lambda: truth.product("a"), lambda: truth.products([c, a]), lambda: truth.changes(0, 0)):
        with pytest.raises(StoreError, match=f"key {a}, product 'a': damaged"):
            read()
    with pytest.raises(StoreError, match=f"key {b}: its vector is damaged"):
        truth.vector("b")
    with truth.frozen() as frozen, pytest.raises(StoreError, match=f"key {b}: its vector is damaged"):
        list(frozen.blocks(after_key=a))
    assert truth.product("c") == (c, product("c"))
    truth.write(upserts=upserts("a", "b"))  # as the message says
    assert [one.product.product_id for one in truth.changes(0, 0).written] == ["c", "a", "b"]


def test_a_row_under_another_id_and_a_missing_vector_are_named(truth: Truth) -> None:
    truth.write(upserts=upserts("a", "b"))
    a, b = (key_of(truth, one) for one in "ab")
    alter(truth.folder, "UPDATE products SET product_id = 'z' WHERE key = ?", a)
    with pytest.raises(StoreError, match=f"key {a}, product 'z': damaged"):
        truth.product("z")
    alter(truth.folder, "UPDATE products SET product_id = 'a' WHERE key = ?", a)
    alter(truth.folder, "DELETE FROM vectors WHERE key = ?", b)
    with pytest.raises(StoreError, match=f"key {b}: its vector is (missing|damaged)"):
        truth.changes(0, 0)
    with truth.frozen() as frozen, pytest.raises(StoreError, match=f"key {b}: its vector is (missing|damaged)"):
        list(frozen.blocks(after_key=a))


def test_a_flipped_bit_of_the_database_changes_no_product(tmp_path: Path) -> None:
    """All over the file: it is noticed when it is opened or read, or everything is there all the same."""
    with closing(Truth.create(tmp_path, about())) as truth:
        truth.write(upserts=upserts(*(f"p{row}" for row in range(40))))
        truth.write(deletes=["p3", "p4"], updates=[replace(product("p5"), title="Cup")])
        truth.write(upserts=upserts("p6", first=7))
        rows = [(one.product, one.vector.tobytes()) for one in truth.changes(0, 0).written if one.vector is not None]
    content = (tmp_path / TRUTH).read_bytes()
    noticed = 0
    for place in np.random.default_rng(0).integers(8 * len(content), size=300).tolist():
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / TRUTH).write_bytes(damaged)
        try:
            with closing(Truth(tmp_path, writable=False)) as truth:
                found = [
                    (one.product, one.vector.tobytes()) for one in truth.changes(0, 0).written if one.vector is not None
                ]
                assert found == rows, f"bit {place}"
        except StoreError:
            noticed += 1
    assert noticed > 30


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (f"PRAGMA user_version = {SCHEMA_VERSION + 1}", "update the program"),
        ("PRAGMA application_id = 1", "is not a store of ITEm"),
        ("""UPDATE meta SET value = '{"space": "x", "vector_width": "wide"}' WHERE name = 'about'""", "about: "),
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_a_database_of_another_kind_is_refused(tmp_path: Path, statement: str, message: str, writable: bool) -> None:
    Truth.create(tmp_path, about()).close()
    alter(tmp_path, statement)
    content = (tmp_path / TRUTH).read_bytes()
    with pytest.raises(StoreError, match=message):
        Truth(tmp_path, writable=writable)
    assert (tmp_path / TRUTH).read_bytes() == content


@pytest.mark.parametrize("writable", [False, True])
def test_what_is_no_database_is_refused(tmp_path: Path, writable: bool) -> None:
    with pytest.raises(StoreError, match="is not there; restore a backup"):
        Truth(tmp_path, writable=writable)
    (tmp_path / TRUTH).write_bytes(b"words" * 1000)
    with pytest.raises(StoreError, match="file is not a database"):
        Truth(tmp_path, writable=writable)


def test_a_refusal_leaves_nothing_open(tmp_path: Path) -> None:
    Truth.create(tmp_path, about()).close()
    alter(tmp_path, "PRAGMA user_version = 99")
    before = _open_files(tmp_path)
    for _ in range(3):
        with pytest.raises(StoreError, match="update the program"):
            Truth(tmp_path, writable=True)
    assert before == _open_files(tmp_path) == []


def _open_files(folder: Path) -> list[Path]:
    descriptors = list(Path("/proc/self/fd").iterdir())
    targets = [one.readlink() for one in descriptors if one.is_symlink()]
    return sorted(one for one in targets if one.is_relative_to(folder))


def test_odd_words_come_back(truth: Truth) -> None:
    odd = [
        Product(product_id="", title="\0", attributes={"": "", "ü": ["a", ""], "n": -0.0, "yes": True}),
        Product(product_id="a\0b", description="𝔘\n\t", category=("", "x"), group_id="", language="de"),
    ]
    truth.write(upserts=[(one, np.eye(WIDTH, dtype=np.float32)[0]) for one in odd])
    assert [truth.product(one.product_id) for one in odd] == list(enumerate(odd, start=1))


def test_a_truth_of_a_folder_that_has_one_is_refused(truth: Truth) -> None:
    truth.write(upserts=upserts("a"))
    with pytest.raises(StoreError):
        Truth.create(truth.folder, about())
    assert truth.count() == 1
