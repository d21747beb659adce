"""The manifest of a generation: which segments there are, and what their files have to be.

Segments are a cache of the truth (index.truth): without a manifest, or with one that names damaged files, they are made
again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from index.files import FileDigest, digest, publish, sealed, unsealed
from item.errors import StoreError

VERSION = 5  # since 5, a segment has all of its index in a file; since 4, its rows are in the order of it
MANIFEST = "manifest.json"
FLAT = "Flat"

Stamp = tuple[int, int] | None  # what `stamp` tells of a manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How an approximate segment is searched for the nearest `num_neighbours`.

    effort: a graph's ef, or the inverted lists that are looked into. num_candidates: of its compressed vectors, of
    which the exact cosines are taken. recall: of the nearest against exact search, less a standard error.
    """

    num_neighbours: int
    effort: int
    num_candidates: int
    recall: float


def depth_for(depths: Sequence[Depth], num_neighbours: float) -> Depth:
    """The shallowest depth that is tuned for so many; beyond the deepest, in proportion to it."""
    deepest = depths[-1]
    if num_neighbours <= deepest.num_neighbours:
        return next(one for one in depths if one.num_neighbours >= num_neighbours)
    times = num_neighbours / deepest.num_neighbours
    return replace(
        deepest,
        num_neighbours=ceil(num_neighbours),
        effort=ceil(times * deepest.effort),
        num_candidates=ceil(times * deepest.num_candidates),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInfo:
    """An immutable segment: `count` products with keys in (first_key, last_key], as they were at `revision`; dead ones
    may be among them.

    factory: of its index, as FAISS names it; "Flat": none, it is searched exactly. depths: how it is searched, by
    ascending number of neighbours. files: rows, vectors, words and, but for "Flat", index;
    segments of early versions lack words.
    """

    last_key: int
    revision: int
    count: int
    factory: str
    depths: tuple[Depth, ...]
    files: dict[str, FileDigest]

    def file(self, kind: str) -> str:
        """The name of its file of a kind: rows, vectors, words, index. Raises StoreError where it has none."""
        name = self.find(kind)
        if name is None:
            raise StoreError(f"{MANIFEST}: a segment has no file {kind}-*")
        return name

    def find(self, kind: str) -> str | None:
        """The same, or None."""
        return next((name for name in self.files if name.startswith(f"{kind}-")), None)

    def check_files(self, folder: Path, known: Collection[str] = ()) -> None:
        """Reads every file once, but for those that are known. Raises StoreError: one is missing, or not what was
        written."""
        for name, written in self.files.items():
            if name in known:
                continue
            try:
                found = digest(folder / name)
            except OSError as error:
                raise StoreError(f"{folder / name}: cannot be read ({error.strerror})") from error
            if found != written:
                raise StoreError(
                    f"{folder / name}: damaged: {found.bytes:,} bytes with sha256 {found.sha256[:12]}...;"
                    f" {MANIFEST} says {written.bytes:,} bytes with {written.sha256[:12]}..."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Segments in the order of their keys, which are contiguous from 0 on."""

    segments: tuple[SegmentInfo, ...] = ()
    version: int = VERSION

    @property
    def last_key(self) -> int:
        """Products with higher keys are in no segment."""
        return self.segments[-1].last_key if self.segments else 0

    @property
    def revision(self) -> int:
        """That of the oldest segment: what changed after it may not be in the segments."""
        return min((one.revision for one in self.segments), default=0)

    def files(self) -> Iterator[str]:
        """The names of all files."""
        for segment in self.segments:
            yield from segment.files


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publishes segments: from here on these count."""
    text = sealed(asdict(manifest))
    publish(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))


def read_manifest(folder: Path) -> Manifest:
    """One without segments where there is none. Raises StoreError for a damaged one and for one of another version."""
    path = folder / MANIFEST
    try:
        content = unsealed(path.read_bytes())
    except FileNotFoundError:
        return Manifest()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise StoreError(f"{path}: version {version}, this program knows up to {VERSION}; update the program")
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path}: {where}: {first['msg']}") from error
    if manifest.version >= VERSION:
        return manifest
    return replace(manifest, segments=tuple(map(without_index, manifest.segments)))


def without_index(info: SegmentInfo) -> SegmentInfo:
    """A segment that is searched exactly: earlier versions wrote indexes in another order than that of the rows,
    or without their vectors."""
    return replace(info, factory=FLAT, depths=())


def stamp(folder: Path) -> Stamp:
    """What changes whenever the manifest is replaced."""
    try:
        status = (folder / MANIFEST).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
