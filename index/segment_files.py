"""The segments of a generation on the disk: written, loaded or made again, and removed once no manifest names them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from index.choosing import Choice
from index.files import BESIDE
from index.frozen_truth import FrozenTruth
from index.manifest import VERSION, Manifest, SegmentInfo, read_manifest, write_manifest
from index.memory import Memory, Snapshot
from index.segment import Segment, rewrite_rows, write_segment
from index.truth import Truth
from item.errors import StoreError

logger = logging.getLogger(__name__)

KINDS = ("vectors-*.npy", "index-*.faiss", "rows-*.arrow", "words-*.sqlite")
# In all these ways a full disk shows: ours, the file system's, NumPy's of a file cut short, FAISS's, Arrow's.
FULL_DISK = (StoreError, OSError, ValueError, RuntimeError, pa.ArrowException)
LEFTOVERS = ("order-*.npy", f"*{BESIDE}")  # by programs up to version 3 of the manifest, and by what did not finish


def write_segments(folder: Path, truth: Truth, kept: tuple[SegmentInfo, ...], choice: Choice) -> Manifest:
    """Publishes the segments that are kept, and one of everything with higher keys. Raises StoreError."""
    first_key = kept[-1].last_key if kept else 0
    with writing(folder), truth.frozen() as frozen:
        new = () if frozen.count(first_key) == 0 else (write_segment(folder, frozen, first_key, choice),)
        manifest = Manifest(segments=(*kept, *new))
        write_manifest(folder, manifest)
    return manifest


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says what keeps segments from being written as a StoreError, and removes what there is of them."""
    try:
        yield
    except FULL_DISK as error:
        with suppress(StoreError):  # of a damaged manifest, which the next who writes replaces
            remove_unnamed(folder, read_manifest(folder))
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{folder}: segments cannot be written ({error})") from error


def load_segments(
    folder: Path, truth: Truth, choice: Choice, *, writable: bool, known: Sequence[Segment] = ()
) -> tuple[Manifest, Memory]:
    """A generation's segments and what was written after them; who may write makes damaged segments again.

    known: segments of the same generation that are open; their vectors and indexes are not read again.

    Raises StoreError where they are damaged and stay so.
    """
    try:
        manifest = read_manifest(folder)
        if manifest.version < VERSION:
            logger.warning("%s: segments of an earlier version: searched exactly until they are written anew", folder)
        memory = remember([open_segment(folder, info, known) for info in manifest.segments], truth, manifest)
        if manifest.segments and truth.pruned() > manifest.revision:
            raise StoreError(f"{folder}: the segments are older than what is known of deletions")
        count = truth.count()
        if len(memory) != count and truth.revision() == memory.revision:
            raise StoreError(f"{folder}: {len(memory):,} products in segments, {count:,} in truth")
    except StoreError as error:
        if not writable:
            raise StoreError(f"{error}; open it to write once, which repairs it") from error
        logger.warning("%s; its segments are made again from the truth", error)
        return merge_segments(folder, truth, (), choice)
    return manifest, memory


def open_segment(folder: Path, info: SegmentInfo, known: Sequence[Segment]) -> Segment:
    """What `info` describes; what is open of it already stays. Raises StoreError."""
    old = next((one for one in known if one.has_vectors_of(info)), None)
    return Segment(folder, info) if old is None else old.rewritten(folder, info)


def merge_segments(folder: Path, truth: Truth, kept: Sequence[Segment], choice: Choice) -> tuple[Manifest, Memory]:
    """As `write_segments`; what is kept need not be loaded again."""
    manifest = write_segments(folder, truth, tuple(one.info for one in kept), choice)
    new = [Segment(folder, info) for info in manifest.segments[len(kept) :]]
    return manifest, remember([*kept, *new], truth, manifest)


def rewrite_segments(folder: Path, truth: Truth, frozen: FrozenTruth, snapshot: Snapshot) -> tuple[Manifest, Memory]:
    """Publishes the same segments with the attributes of a snapshot, so that no earlier change need be read again.

    frozen: the truth at the same revision.
    """
    assert frozen.revision == snapshot.revision
    with writing(folder):
        infos = [
            rewrite_rows(folder, segment, attributes, alive, snapshot.revision, frozen if reworded else None)
            for segment, attributes, alive, reworded in snapshot.parts()
        ]
        manifest = Manifest(segments=tuple(infos))
        write_manifest(folder, manifest)
    segments = [open_segment(folder, info, snapshot.segments) for info in infos]
    return manifest, remember(segments, truth, manifest)


def remember(segments: Sequence[Segment], truth: Truth, manifest: Manifest) -> Memory:
    """Segments, and what was written after them, for searches."""
    memory = Memory(segments, truth.about.vector_width, manifest.revision)
    memory.apply(truth.changes(memory.revision, memory.last_key))
    return memory


def remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Removes the files of segments that were replaced or never finished."""
    named = set(manifest.files())
    for pattern in (*KINDS, *LEFTOVERS):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()
