"""The manifest, and what becomes of segments that are not what it says."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import index.choosing
from index.files import sealed, unsealed
from index.filters import Range
from index.manifest import MANIFEST, VERSION, Manifest, SegmentInfo, read_manifest, write_manifest
from index.store import Store
from item.errors import StoreError
from tests.index.conftest import (
    APART,
    BY_HAND,
    about,
    check_hits,
    flip_byte,
    generation_folder,
    product,
    random_vectors,
    segment_files,
)

QUERIES = random_vectors(12, seed=9)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 120 products: an approximate segment, an exact one, fresh rows; some were deleted or changed."""
    folder = tmp_path_factory.mktemp("template") / "index"
    rows = [product(f"p{row}", price=float(row)) for row in range(120)]
    vectors = random_vectors(120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.choosing, "FLAT_ROWS", 50)
        with Store.create(folder, about(), [(rows[:80], vectors[:80])], upkeep=APART) as store:
            store.delete(["p3", "p50"])
            store.upsert(rows[80:110], vectors[80:110])
            assert store.maintain()
            store.upsert(rows[110:], vectors[110:])
            store.delete(["p4", "p90", "p115"])
            store.update([product("p10", price=1000.0)])
    infos = read_manifest(generation_folder(folder)).segments
    assert [one.factory == "Flat" for one in infos] == [False, True]
    return folder


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    """One of it, for a test to damage."""
    return shutil.copytree(template, tmp_path / "index")


def check(store: Store) -> None:
    """Whether a store has all that was written, and nothing else; filters make searches exact."""
    rows = [row for row in range(120) if row not in (3, 50, 4, 90, 115)]
    ids, vectors = [f"p{row}" for row in rows], random_vectors(120)[rows]
    assert len(store) == 115
    for query, found in zip(
        QUERIES, store.search(QUERIES, 20, filters=[Range("price", at_least=-1)] * 12), strict=True
    ):
        check_hits(found.hits, ids, vectors, query, 20)
    (found,) = store.search(QUERIES[:1], 5, filters=[Range("price", above=500)])
    assert found.product_ids == ["p10"]
    assert store.product("p10") == product("p10", price=1000.0)


HARMS: dict[str, Callable[[Path], object]] = {
    "flip": flip_byte,
    "flip the end": lambda path: flip_byte(path, 0.999),
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "empty": lambda path: path.write_bytes(b""),
    "remove": lambda path: path.unlink(),
}
FILES = [
    (segment, kind)
    for segment in (0, 1)
    for kind in ("rows", "vectors", "words", "index")
    if (segment, kind) != (1, "index")
]


def damage(folder: Path, segment: int, kind: str, harm: str) -> Path:
    generation = generation_folder(folder)
    path = generation / read_manifest(generation).segments[segment].file(kind)
    HARMS[harm](path)
    return path


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(("segment", "kind"), FILES)
def test_damaged_segments_are_made_again_by_who_writes(
    copy: Path, caplog: pytest.LogCaptureFixture, segment: int, kind: str, harm: str
) -> None:
    path = damage(copy, segment, kind, harm)
    with pytest.raises(StoreError, match=f"{path.name}: .*; open it to write once, which repairs it"):
        Store.open(copy)
    with caplog.at_level(logging.WARNING), Store.open(copy, writable=True, upkeep=BY_HAND) as store:
        assert f"{path.name}: " in caplog.text
        assert "made again from the truth" in caplog.text
        check(store)
    caplog.clear()
    with Store.open(copy) as reader, Store.open(copy, writable=True, upkeep=BY_HAND) as writer:
        check(reader)
        check(writer)
        assert not caplog.text
        assert segment_files(generation_folder(copy)) == set(read_manifest(generation_folder(copy)).files())


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_manifest_is_made_again_by_who_writes(
    copy: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    path = generation_folder(copy) / MANIFEST
    HARMS[harm](path)
    if harm == "remove":  # no segments: everything comes from the truth
        try:
            with Store.open(copy) as reader:
                check(reader)
        except StoreError as error:
            assert "open it to write once, which repairs it" in str(error)  # noqa: PT017  # either is well
    else:
        with pytest.raises(StoreError, match="open it to write once, which repairs it"):
            Store.open(copy)
    with caplog.at_level(logging.WARNING), Store.open(copy, writable=True, upkeep=BY_HAND) as store:
        assert harm == "remove" or "made again from the truth" in caplog.text
        check(store)
    with Store.open(copy) as reader:
        check(reader)


def test_a_flipped_bit_of_a_manifest_does_no_harm(copy: Path) -> None:
    """Some of them all over the file: it is noticed, or everything is found all the same."""
    path = generation_folder(copy) / MANIFEST
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 29):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            with Store.open(copy) as reader:
                check(reader)
        except StoreError:
            pass
        except Exception as error:
            near = damaged[max(0, place // 8 - 60) : place // 8 + 30]
            raise AssertionError(f"byte {place // 8}: {near.decode('latin-1')}") from error


def test_a_manifest_of_a_newer_version_is_refused_to_readers(copy: Path) -> None:
    path = generation_folder(copy) / MANIFEST
    path.write_text(sealed(unsealed(path.read_bytes()) | {"version": VERSION + 1}))
    with pytest.raises(StoreError, match="update the program"):
        Store.open(copy)


@pytest.mark.parametrize("change", [{"files": {}}, {"count": 79}])
def test_a_segment_whose_parts_do_not_fit_is_made_again(copy: Path, change: dict[str, object]) -> None:
    generation = generation_folder(copy)
    path = generation / MANIFEST
    content = unsealed(path.read_bytes())
    for segment in content["segments"]:
        segment |= change
    path.write_text(sealed(content))
    with pytest.raises(StoreError, match="open it to write once, which repairs it"):
        Store.open(copy)
    with Store.open(copy, writable=True, upkeep=BY_HAND) as store:
        check(store)


def test_what_no_manifest_names_is_removed_by_who_writes_alone(copy: Path) -> None:
    generation = generation_folder(copy)
    stray = {"vectors.npy.writing", "manifest.json.123.writing", "index-0123456789abcdef.faiss", "rows-0123.arrow"}
    for name in stray:
        (generation / name).write_bytes(b"of a writer that died")
    before = {path.name for path in generation.iterdir()}
    with Store.open(copy) as reader:
        check(reader)
        assert before <= {path.name for path in generation.iterdir()}
    with Store.open(copy, writable=True, upkeep=BY_HAND) as store:
        check(store)
        assert before - {path.name for path in generation.iterdir()} == stray


def test_a_damaged_truth_is_not_hidden_by_good_segments(copy: Path) -> None:
    """Segments are good, the file of the truth is cut: nobody may go on as if nothing had happened."""
    path = generation_folder(copy) / "truth.sqlite"
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    for writable in (False, True):
        with pytest.raises(StoreError):
            Store.open(copy, writable=writable)


# The file itself


def info(template: Path) -> SegmentInfo:
    return read_manifest(generation_folder(template)).segments[0]


def test_a_manifest_comes_back(template: Path, tmp_path: Path) -> None:
    one = info(template)
    two = replace(one, last_key=one.last_key + 5, revision=1)
    manifest = Manifest(segments=(one, two))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (manifest.last_key, manifest.revision) == (two.last_key, 1)
    assert set(manifest.files()) == set(one.files)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_without_a_manifest_there_are_no_segments(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == Manifest()
    assert (Manifest().last_key, Manifest().revision) == (0, 0)


def test_a_manifest_of_a_newer_version_says_so(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(sealed({"version": VERSION + 1, "whatever": 1}))
    with pytest.raises(StoreError, match=f"version {VERSION + 1}, this program knows up to {VERSION}; update the prog"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"\xff", b"null", b'{"segments": []}'),
        *(sealed(one).encode() for one in ({"segments": 3}, {"segments": [{"count": "many"}]})),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest\.json: "):
        read_manifest(tmp_path)


def test_every_file_of_a_segment_is_read(template: Path, tmp_path: Path) -> None:
    one = info(template)
    for name in one.files:
        shutil.copy(generation_folder(template) / name, tmp_path / name)
    one.check_files(tmp_path)
    flip_byte(tmp_path / one.file("vectors"))
    with pytest.raises(StoreError, match=rf"vectors-.*: damaged: .* bytes with sha256 .*; {MANIFEST} says"):
        one.check_files(tmp_path)
    (tmp_path / one.file("vectors")).unlink()
    with pytest.raises(StoreError, match=r"vectors-.*: cannot be read \(No such file or directory\)"):
        one.check_files(tmp_path)


def test_segments_of_an_earlier_version_are_searched_exactly_until_they_are_written_anew(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows were in the order of keys, and their indexes had orders of their own."""
    monkeypatch.setattr(index.choosing, "FLAT_ROWS", 50)
    generation = generation_folder(copy)
    (generation / "order-0123456789abcdef.npy").write_bytes(b"rows")
    path = generation / MANIFEST
    path.write_text(sealed(unsealed(path.read_bytes()) | {"version": 3}))
    with Store.open(copy) as reader, Store.open(copy, writable=True, upkeep=BY_HAND) as store:
        for one in (reader, store):
            assert [segment.kind for segment in one._memory.segments] == ["Flat", "Flat"]
            check(one)
        assert store.maintain()
        assert not store.maintain()
        assert store._memory.segments[0].kind.startswith("HNSW")
        check(reader)
    assert read_manifest(generation).version == VERSION
    assert not list(generation.glob("order-*"))
