"""Immutable parts of a collection, written once and then only read: a cache of the truth. Where many attributes have
changed, rows and words are written anew beside the same vectors and index.

rows-<sha256>.arrow      keys, ids and attributes (index.columns) of n products; where they were written anew, also
                         which are alive
vectors-<sha256>.npy     their (n, D) float32 vectors, mapped into memory, not read
words-<sha256>.sqlite    the words of the same products (index.words), in the order of their keys
index-<sha256>.faiss     an approximate index of the vectors, but for small segments, which are searched exactly

Rows and vectors are in the order of the index: near products lie together in a graph's (index.approximate). Lists
have them in the order of adding. Without an index they are in the order of keys, as words always are.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np
import pyarrow as pa

from index.approximate import BLOCK, GRAPH, Approximate, adding_order, close_together, copied, read
from index.changes import Keys
from index.choosing import Choice, build, factories
from index.columns import Columns
from index.exact import Mask, Rows, Vectors
from index.files import BESIDE, FileDigest, digest, rename_durably
from index.frozen_truth import FrozenTruth
from index.gpu import GPU_KIND, GpuFlat
from index.manifest import FLAT, Depth, SegmentInfo
from index.product import Product
from index.truth_rows import AT_ONCE
from index.words import Words, WordsWriter
from item.errors import StoreError

NO_WORDS = Product(product_id="")  # of a row that is dead
KEY, PRODUCT_ID, ALIVE = "key", "product_id", "alive"
BUILDING = threading.Lock()  # one index at a time: it takes memory, and all cores


class Segment:
    """An open segment; see the module. n = `len(segment)`, D its vectors' width."""

    def __init__(self, folder: Path, info: SegmentInfo) -> None:
        """Reads what `write_segment` has written, and checks it against `info`. Raises StoreError."""
        info.check_files(folder)
        self.on_gpu: GpuFlat | None = None  # its vectors there, in place of the index
        try:
            self.vectors = map_vectors(folder / info.file("vectors"))
            self.index: Approximate | None = None
            if info.factory != FLAT:
                self.index = read(folder / info.file("index"))
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            raise StoreError(f"{folder}: a segment cannot be read ({error})") from error
        self._read_rows(folder, info)

    def _read_rows(self, folder: Path, info: SegmentInfo) -> None:
        """Takes over what `info` says, but for vectors and index. Raises StoreError."""
        try:
            table = read_rows(folder / info.file("rows"))
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{folder}: a segment cannot be read ({error})") from error
        n = info.count
        num_indexed = n if self.index is None else self.index.faiss_index.ntotal
        if (table.num_rows, len(self.vectors), num_indexed) != (n, n, n):
            raise StoreError(f"{folder}: the files of a segment do not belong together")
        self.info = info
        self.keys: Keys = table[KEY].to_numpy()
        self.rows_by_key: Rows = np.argsort(self.keys)
        self.ids = table[PRODUCT_ID].to_numpy()  # of strings: Arrow takes longer to find a few
        has_dead = ALIVE in table.column_names
        self.alive: Mask | None = table[ALIVE].to_numpy() if has_dead else None  # at its revision; None: all
        self.attributes: pa.Table = table.drop_columns([KEY, PRODUCT_ID, *([ALIVE] if has_dead else [])])
        words = info.find("words")
        self.words = None if words is None else Words(folder / words, n)  # None: written by an early version

    def has_vectors_of(self, info: SegmentInfo) -> bool:
        """Whether vectors and index are those that `info` names; files are named by their content."""
        return all(self.info.find(kind) == info.find(kind) for kind in ("vectors", "index"))

    def rewritten(self, folder: Path, info: SegmentInfo) -> Segment:
        """The same vectors and index with the rows and words of `info`; files that are new are checked. Raises
        StoreError."""
        if info == self.info:
            return self
        info.check_files(folder, known=self.info.files)
        segment = copy.copy(self)
        segment._read_rows(folder, info)
        return segment

    def __len__(self) -> int:
        return self.info.count

    def rows_of(self, keys: Keys) -> Rows:
        """(m,) the rows of keys, (m,); -1 for those that are not here."""
        places = np.searchsorted(self.keys, keys, sorter=self.rows_by_key)
        rows = self.rows_by_key[np.minimum(places, len(self) - 1)]
        return np.where(self.keys[rows] == keys, rows, -1)

    @property
    def kind(self) -> str:
        """How it is searched, as FAISS names it."""
        return self.info.factory if self.on_gpu is None else GPU_KIND

    @property
    def tuned_recall(self) -> float:
        """Of the nearest 10; 1 where all are compared."""
        return 1.0 if self.on_gpu is not None or not self.info.depths else self.info.depths[0].recall


def map_vectors(path: Path) -> Vectors:
    """(n, D) of a file: pages of it that are not in use need no memory."""
    return np.asarray(np.load(path, mmap_mode="r"))


def read_rows(path: Path) -> pa.Table:
    """Keys, ids and attributes."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def write_segment(folder: Path, frozen: FrozenTruth, first_key: int, choice: Choice) -> SegmentInfo:
    """Writes all products with keys above `first_key`, at least one, as a segment."""
    names = ("rows.arrow", "vectors.npy", "words.sqlite", "index.faiss")
    rows, vectors, words, index = (folder / f"{name}{BESIDE}" for name in names)
    count, width = frozen.count(first_key), frozen.vector_width
    factory = choice.factory(count, width)
    beside = 0.0 if factory == FLAT else 4 * width + factories(count, width)[factory]  # vectors are written twice
    require_space(folder, int(count * (4 * width + beside)))
    order = np.arange(count) if factory == FLAT else adding_order(count)
    write_products(frozen, first_key, order, rows, vectors, words)
    depths: tuple[Depth, ...] = ()
    written = [rows, vectors, words]
    if factory != FLAT:
        of_index, depths = write_index(vectors, index, factory, choice.recall)
        reorder_rows(rows, order[of_index])
        written.append(index)
    return SegmentInfo(
        last_key=frozen.last_key(),
        revision=frozen.revision,
        count=count,
        factory=factory,
        depths=depths,
        files=dict(map(name_by_content, written)),
    )


def rewrite_rows(
    folder: Path, segment: Segment, attributes: pa.Table, alive: Mask, revision: int, frozen: FrozenTruth | None
) -> SegmentInfo:
    """Writes a segment's attributes, (n,) rows, and which of them are alive at a revision.

    frozen: the truth at that revision, whose words are written too. None: words are what they were.
    """
    rows, words = folder / f"rows.arrow{BESIDE}", folder / f"words.sqlite{BESIDE}"
    columns = {ALIVE: alive, KEY: segment.keys, PRODUCT_ID: pa.array(segment.ids, pa.string())}
    write_table(rows, with_columns(attributes, columns))
    written = [rows]
    if frozen is not None:
        ascending = segment.keys[segment.rows_by_key]
        with WordsWriter(words) as writer:
            for start in range(0, len(segment), AT_ONCE):
                keys = ascending[start : start + AT_ONCE].tolist()
                found = frozen.products(keys)
                writer.append([found.get(key, NO_WORDS) for key in keys])
            writer.finish()
        written.append(words)
    kinds = tuple(f"{path.name.partition('.')[0]}-" for path in written)
    kept = {name: file for name, file in segment.info.files.items() if not name.startswith(kinds)}
    return replace(segment.info, revision=revision, files=kept | dict(map(name_by_content, written)))


def require_space(folder: Path, num_bytes: int) -> None:
    """Says that the disk is full before an index is built in vain. Raises StoreError."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise StoreError(
            f"{folder}: {num_bytes / 2**20:,.0f} MiB are needed, the disk has {free / 2**20:,.0f} MiB left"
        )


def write_products(frozen: FrozenTruth, first_key: int, order: Rows, rows: Path, vectors: Path, words: Path) -> None:
    """Writes n products, rows and words by ascending key, and vectors in another order: `order[i]` is the rank by key
    of the i-th, (n,)."""
    columns, keys, ids = Columns(), [], []
    places = np.argsort(order)
    with vectors.open("wb") as file, WordsWriter(words) as writer:
        write_header(file, (len(order), frozen.vector_width), np.float32)
        file.flush()
        first = file.tell()
        for block_keys, products, block in frozen.blocks(first_key):
            of_block = places[len(columns) : len(columns) + len(block)]
            for place, vector in zip(of_block.tolist(), block, strict=True):
                if os.pwrite(file.fileno(), vector.tobytes(), first + place * vector.nbytes) < vector.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(vectors))
            columns.append(products)
            writer.append(products)
            keys.append(block_keys)
            ids.append(pa.array([product.product_id for product in products], pa.string()))
        writer.finish()
    write_table(rows, with_columns(columns.to_table(), {KEY: np.concatenate(keys), PRODUCT_ID: pa.chunked_array(ids)}))


def write_index(vectors: Path, path: Path, factory: str, recall: float) -> tuple[Rows, tuple[Depth, ...]]:
    """Writes an index of the vectors in a file, (n, D), which are in the order of adding, and then the vectors in the
    order of the index. Returns that, (n,) of their former rows, and the index's depths."""
    with BUILDING:
        mapped = map_vectors(vectors)
        built, depths = build(mapped, factory, recall)
        order = np.arange(len(mapped))
        if factory.startswith(GRAPH):
            order = close_together(mapped)
            built.permute_entries(order)
        faiss.write_index(built, str(path))
        del built  # its memory, before all vectors are read again
        if factory.startswith(GRAPH):
            reorder_vectors(vectors, order)
    return order, depths


def reorder_vectors(path: Path, order: Rows) -> None:
    """Writes the vectors of a file anew in an order, (n,) of their rows."""
    mapped, beside = map_vectors(path), path.with_name(f"reordered.npy{BESIDE}")
    with beside.open("wb") as file:
        write_header(file, mapped.shape, np.float32)
        for start in range(0, len(order), BLOCK):
            file.write(copied(mapped, order[start : start + BLOCK]).data)
    beside.replace(path)


def reorder_rows(path: Path, order: Rows) -> None:
    """Writes a file of rows anew in an order, (n,) of them."""
    beside = path.with_name(f"reordered.arrow{BESIDE}")
    write_table(beside, read_rows(path).take(order))
    beside.replace(path)


def with_columns(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """A table with more columns."""
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.ChunkedArray) else pa.array(values))
    return table


def write_table(path: Path, table: pa.Table) -> None:
    """Writes rows for `read_rows`."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_header(file: IO[bytes], shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    """Begins a .npy file, whose content is still to be written."""
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype))
    np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})


def name_by_content(path: Path) -> tuple[str, FileDigest]:
    """Renames `kind.suffix.writing` to `kind-<sha256>.suffix`."""
    found = digest(path)
    kind, suffix = path.name.removesuffix(BESIDE).split(".")
    name = f"{kind}-{found.sha256[:16]}.{suffix}"
    rename_durably(path, path.with_name(name))
    return name, found
