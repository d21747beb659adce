"""Making a collection's next generation, which counts only once it is whole."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from index.about import About
from index.choosing import Choice
from index.exact import Vectors
from index.files import flush
from index.generations import CURRENT, new_generation, read_generations
from index.product import Product
from index.segment_files import write_segments
from index.truth import Truth
from index.vector_store import checked
from item.errors import StoreError

logger = logging.getLogger(__name__)


def write_generation(
    folder: Path, about: About, blocks: Iterable[tuple[Sequence[Product], Vectors]], choice: Choice
) -> str:
    """Writes a generation of blocks of products and vectors, (n, D); returns its name. Only for who holds the lease.

    It does not count yet, but all of it is on the disk. Raises StoreError as `Store.create` does, and removes it.
    """
    name = new_generation(folder)
    try:
        with closing(Truth.create(folder / name, about, last_key_of(folder))) as truth:
            if truth.load(checked(blocks, about.vector_width)):
                write_segments(folder / name, truth, (), choice)
        flush_folders(folder / name)
    except BaseException:
        shutil.rmtree(folder / name, ignore_errors=True)  # who looks for the newest finds none half made
        raise
    return name


def last_key_of(folder: Path) -> int:
    """A key as high as any that was ever given in a collection, so that one key never names two vectors; 0: none."""
    if not (folder / CURRENT).exists():
        return 0
    try:
        path = folder / read_generations(folder).current
        with closing(Truth(path, writable=False)) as truth, truth.frozen() as frozen:
            return frozen.last_key()
    except StoreError as error:
        logger.warning("%s; a new generation takes its place", error)
        return time.time_ns() // 1000  # keys are counted one by one: no collection has given as many


def flush_folders(generation: Path) -> None:
    """Puts the names of a new generation's files on the disk, before one says that it counts or is coming."""
    for path in (generation, generation.parent, generation.parent.parent):
        flush(path)
