"""Immutable parts of a collection, written once and then only read: a cache of the truth. Where many attributes have
changed, rows and words are written anew beside the same vectors and index.

rows-<sha256>.arrow      keys, ids and attributes (index.columns) of n products, by ascending key; where they were
                         written anew, also which are alive
vectors-<sha256>.npy     their (n, D) float32 vectors, mapped into memory, not read
words-<sha256>.sqlite    the words of the same products (index.words); stores of earlier versions lack it
index-<sha256>.faiss     an approximate index of the vectors, but for small segments, which are searched exactly
order-<sha256>.npy       the row of each of its places
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import IO

import faiss
import numpy as np
import pyarrow as pa

from index.approximate import GRAPH, Approximate, close_together, read, rearrange
from index.changes import Keys
from index.choosing import FLAT, Choice, build
from index.columns import Columns
from index.exact import Mask, Vectors
from index.files import BESIDE, FileDigest, digest, rename_durably
from index.frozen_truth import FrozenTruth
from index.gpu import GPU_KIND, GpuFlat
from index.manifest import Depth, SegmentInfo
from index.product import Product
from index.truth_rows import AT_ONCE
from index.words import Words, WordsWriter
from item.errors import StoreError

NO_WORDS = Product(product_id="")  # of a row that is dead
KEY, PRODUCT_ID, ALIVE = "key", "product_id", "alive"


class Segment:
    """An open segment; see the module. n = `len(segment)`, D its vectors' width."""

    def __init__(self, folder: Path, info: SegmentInfo) -> None:
        """Reads what `write_segment` has written, and checks it against `info`. Raises StoreError."""
        info.check_files(folder)
        self.on_gpu: GpuFlat | None = None  # its vectors there, in place of the index
        try:
            self.vectors = map_vectors(folder / info.file("vectors"))
            self.index = None if info.factory == FLAT else read_index(folder, info)
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
        self.ids = table[PRODUCT_ID].to_numpy()  # of strings: Arrow takes longer to find a few
        has_dead = ALIVE in table.column_names
        self.alive: Mask | None = table[ALIVE].to_numpy() if has_dead else None  # at its revision; None: all
        self.attributes: pa.Table = table.drop_columns([KEY, PRODUCT_ID, *([ALIVE] if has_dead else [])])
        words = info.find("words")
        self.words = None if words is None else Words(folder / words, n)  # None: written by an earlier version

    def has_vectors_of(self, info: SegmentInfo) -> bool:
        """Whether vectors and index are those that `info` names; files are named by their content."""
        return all(self.info.find(kind) == info.find(kind) for kind in ("vectors", "index", "order"))

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


def read_index(folder: Path, info: SegmentInfo) -> Approximate:
    """A segment's index. Segments were written without an order once. Raises OSError, ValueError, RuntimeError."""
    order = info.find("order")
    rows = None if order is None else np.load(folder / order).astype(np.int64)
    return read(folder / info.file("index"), info.factory, rows)


def write_segment(folder: Path, frozen: FrozenTruth, first_key: int, choice: Choice) -> SegmentInfo:
    """Writes all products with keys above `first_key`, at least one, as a segment."""
    width = frozen.vector_width
    names = ("vectors.npy", "rows.arrow", "words.sqlite", "index.faiss", "order.npy")
    vectors, rows, words, index, order = (folder / f"{name}{BESIDE}" for name in names)
    count = write_rows(frozen, first_key, vectors, rows, words)
    factory = choice.factory(count, width)
    depths: tuple[Depth, ...] = ()
    written = [vectors, rows, words]
    if factory != FLAT:
        mapped = map_vectors(vectors)
        built, rows_in_order, depths = build(mapped, factory, choice.recall)
        if factory.startswith(GRAPH):
            places = close_together(mapped, rows_in_order)
            del mapped  # what was read of it is memory that the graph needs twice now
            rows_in_order = rearrange(built, rows_in_order, places)
        faiss.write_index(built, str(index))
        with order.open("wb") as file:
            write_header(file, (count,), np.int32)
            file.write(rows_in_order.astype(np.int32).tobytes())
        written += [index, order]
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
    ids = pa.chunked_array([pa.array(segment.ids, pa.string())])
    write_table(rows, attributes.append_column(ALIVE, pa.array(alive)), segment.keys, ids)
    written = [rows]
    if frozen is not None:
        with WordsWriter(words) as writer:
            for start in range(0, len(segment), AT_ONCE):
                keys = segment.keys[start : start + AT_ONCE].tolist()
                found = frozen.products(keys)
                writer.append([found.get(key, NO_WORDS) for key in keys])
            writer.finish()
        written.append(words)
    kinds = tuple(f"{path.name.partition('.')[0]}-" for path in written)
    kept = {name: file for name, file in segment.info.files.items() if not name.startswith(kinds)}
    return replace(segment.info, revision=revision, files=kept | dict(map(name_by_content, written)))


def write_rows(frozen: FrozenTruth, first_key: int, vectors: Path, rows: Path, words: Path) -> int:
    """Writes vectors, words, and keys, ids and attributes, block by block. Returns the number of products."""
    columns, keys, ids = Columns(), [], []
    with vectors.open("wb") as file, WordsWriter(words) as writer_of_words:
        write_header(file, (frozen.count(first_key), frozen.vector_width), np.float32)
        for block_keys, products, block in frozen.blocks(first_key):
            file.write(block.tobytes())
            columns.append(products)
            writer_of_words.append(products)
            keys.append(block_keys)
            ids.append(pa.array([product.product_id for product in products], pa.string()))
        writer_of_words.finish()
    write_table(rows, columns.to_table(), np.concatenate(keys), pa.chunked_array(ids))
    return len(columns)


def write_table(path: Path, table: pa.Table, keys: Keys, ids: pa.ChunkedArray) -> None:
    """Attributes with the keys and ids of their products, (n,)."""
    table = table.append_column(KEY, pa.array(keys)).append_column(PRODUCT_ID, ids)
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
