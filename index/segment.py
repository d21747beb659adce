"""Immutable parts of a collection, written once and then only read: a cache of the truth.

rows-<sha256>.arrow      keys, ids and attributes (index.columns) of n products, by ascending key
vectors-<sha256>.npy     their (n, D) float32 vectors, mapped into memory, not read
words-<sha256>.sqlite    the words of the same products (index.words); stores of earlier versions lack it
index-<sha256>.faiss     an approximate index of the vectors, but for small segments, which are searched exactly
order-<sha256>.npy       the row of each of its places
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import faiss
import numpy as np
import pyarrow as pa

from index.approximate import GRAPH, Approximate, close_together, read, rearrange
from index.changes import Keys
from index.choosing import FLAT, Choice, build
from index.columns import Columns
from index.exact import Vectors
from index.files import BESIDE, FileDigest, digest, rename_durably
from index.frozen_truth import FrozenTruth
from index.gpu import GPU_KIND, GpuFlat
from index.manifest import Depth, SegmentInfo
from index.words import Words, WordsWriter
from item.errors import StoreError

KEY, PRODUCT_ID = "key", "product_id"


class Segment:
    """An open segment; see the module. n = `len(segment)`, D its vectors' width."""

    def __init__(self, folder: Path, info: SegmentInfo) -> None:
        """Reads what `write_segment` has written, and checks it against `info`. Raises StoreError."""
        info.check_files(folder)
        self.info = info
        try:
            table = read_rows(folder / info.file("rows"))
            self.vectors = map_vectors(folder / info.file("vectors"))
            self.index = None if info.factory == FLAT else read_index(folder, info)
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            raise StoreError(f"{folder}: a segment cannot be read ({error})") from error
        n = info.count
        num_indexed = n if self.index is None else self.index.faiss_index.ntotal
        if (table.num_rows, len(self.vectors), num_indexed) != (n, n, n):
            raise StoreError(f"{folder}: the files of a segment do not belong together")
        self.keys: Keys = table[KEY].to_numpy()
        self.ids = table[PRODUCT_ID].to_numpy()  # of strings: Arrow takes longer to find a few
        self.attributes: pa.Table = table.drop_columns([KEY, PRODUCT_ID])
        words = info.find("words")
        self.words = None if words is None else Words(folder / words, n)  # None: written by an earlier version
        self.on_gpu: GpuFlat | None = None  # its vectors there, in place of the index

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
    table = columns.to_table()
    table = table.append_column(KEY, pa.array(np.concatenate(keys))).append_column(PRODUCT_ID, pa.chunked_array(ids))
    with pa.OSFile(str(rows), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return table.num_rows


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
