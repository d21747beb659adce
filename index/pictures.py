"""Pictures of stored products, read again: the store keeps no more of them than where they lay.

    COLLECTION/pictures/        those that came with writes, one file a product, named by the sha256 of its id

They are looked for there first; then under the catalogue's folder by the product's reference; then, where the catalogue
is a Parquet file with pictures inside, in the product's row; then at the reference where that is a URL.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from index.files import BESIDE
from index.product import Product
from item.catalog.listing import Listing, Picture
from item.catalog.rows import is_url, parse_listing
from item.errors import ListingError
from item.fetching.fetcher import Fetcher

logger = logging.getLogger(__name__)

KEPT = "pictures"
MAX_KEPT_BYTES = 4 * 2**30  # of a collection; what comes after is not kept, and said to be missing when it is needed
ROWS_AT_ONCE = 256  # of a Parquet file: few, since each may carry its picture
COLUMNS = ("product_id", "image", "images")


class KeptPictures:
    """The pictures that came with writes to a collection; one process at a time adds to them."""

    def __init__(self, collection: Path) -> None:
        self.collection = collection
        self._num_bytes: int | None = None  # None: not counted yet
        self._lock = threading.Lock()

    def keep(self, pictures: Mapping[str, bytes]) -> None:
        """Keeps the encoded pictures of products that were just written, by id, in place of earlier ones.

        They are not the truth: what cannot be written is logged, and missing when it is needed.
        """
        folder = self.collection / KEPT
        with self._lock:
            try:
                folder.mkdir(exist_ok=True)
                if self._num_bytes is None:
                    self._num_bytes = sum(entry.stat().st_size for entry in os.scandir(folder))
                for product_id, data in pictures.items():
                    self._num_bytes += self._replace(kept_path(self.collection, product_id), product_id, data)
            except OSError as error:
                self._num_bytes = None
                logger.warning("%s: pictures cannot be kept (%s)", folder, error)

    def _replace(self, path: Path, product_id: str, data: bytes) -> int:
        """Writes a picture where there is room; returns by how many bytes the folder has grown."""
        assert self._num_bytes is not None
        before = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)  # whatever happens, an earlier one would be wrong
        if self._num_bytes - before + len(data) > MAX_KEPT_BYTES:
            logger.warning("%s: is full; the picture of %r is not kept", path.parent, product_id)
            return -before
        beside = path.with_name(f"{path.name}{BESIDE}")
        beside.write_bytes(data)
        beside.replace(path)
        return len(data) - before


def remove_kept(collection: Path) -> None:
    """Removes the kept pictures of a collection, once no generation needs them."""
    shutil.rmtree(collection / KEPT, ignore_errors=True)


def kept_path(collection: Path, product_id: str) -> Path:
    """Where the picture of a product is kept."""
    return collection / KEPT / hashlib.sha256(product_id.encode()).hexdigest()


class Pictures:
    """The pictures of a collection's products.

    Args:
        collection: its folder.
        catalog: the catalogue's files; none where it is not there any more.
        fetcher: fetches those that are URLs; None: they cannot be had.
    """

    def __init__(self, collection: Path, catalog: Sequence[Path], fetcher: Fetcher | None = None) -> None:
        self.collection, self.catalog, self.fetcher = collection, catalog, fetcher
        # Not resolved: pictures lie beside the link, where the catalogue is one.
        self.folders = list(dict.fromkeys(Path(os.path.normpath(file.parent.absolute())) for file in catalog))

    def of(self, product: Product) -> Picture:
        """The picture that a product's vector is made of, not fetched yet. Raises ListingError: it cannot be had."""
        kept = kept_path(self.collection, product.product_id)
        if kept.is_file():
            return Picture(path=kept, reference=product.image)
        if (path := self._path(product.image)) is not None:
            return Picture(path=path, reference=product.image)
        for rows in self._rows:
            if (picture := rows.picture(product.product_id)) is not None:
                return picture
        if self.fetcher is not None and is_url(product.image):
            return Picture(url=product.image, reference=product.image)
        again = "write the product again, give a catalogue that has it, or allow words alone"
        if not self.catalog:
            raise ListingError("image", f"{product.image!r}: there is no catalogue to read it in; {again}")
        where = ", ".join(map(str, self.folders))
        raise ListingError("image", f"{product.image!r} is not in the catalogue's files or under {where}; {again}")

    def fetched(self, listings: Iterable[Listing]) -> Iterator[Listing | ListingError]:
        """Listings with the bytes of pictures that are URLs, or why they cannot be had."""
        return iter(listings) if self.fetcher is None else self.fetcher.with_bytes(listings)

    def _path(self, reference: str) -> Path | None:
        """The file of a reference within the catalogue's folders: references come with writes, from anywhere."""
        if not reference or "\0" in reference:
            return None
        for folder in self.folders:
            path = Path(os.path.normpath(folder / reference))
            if path.is_relative_to(folder) and path.is_file():
                return path
        return None

    @cached_property
    def _rows(self) -> list[_ParquetPictures]:
        return [_ParquetPictures(file) for file in self.catalog if file.suffix.lower() == ".parquet"]


class _ParquetPictures:
    """Pictures inside a Parquet file, asked for in the order of its rows or nearly so."""

    def __init__(self, path: Path) -> None:
        self.folder, self.file = path.parent, pq.ParquetFile(path)
        metadata = self.file.metadata
        self.firsts = [0]
        for group in range(metadata.num_row_groups):
            self.firsts.append(self.firsts[-1] + metadata.row_group(group).num_rows)
        self.columns = [name for name in COLUMNS if name in self.file.schema_arrow.names]
        self.row_of: dict[str, int] = {}
        for row, cell in enumerate(self._cells("product_id")):
            with suppress(ListingError):
                product_id = parse_listing({"product_id": cell, "title": "-"}, folder=self.folder).product_id
                self.row_of.setdefault(product_id, row)
        self.group, self.first, self.batch = -1, 0, pa.table({})
        self.batches: Iterator[Any] = iter(())

    def picture(self, product_id: str) -> Picture | None:
        """The main picture in a product's row, where it is there as bytes."""
        row = self.row_of.get(product_id)
        if row is None or len(self.columns) == 1:
            return None
        self._seek(row)
        cells = {name: self.batch[name][row - self.first].as_py() for name in self.columns}
        try:
            images = parse_listing({**cells, "title": "-"}, folder=self.folder).images
        except ListingError:
            return None
        return images[0] if images and images[0].data is not None else None

    def _seek(self, row: int) -> None:
        """Reads on to the batch of a row; from the start of its row group where that lies behind."""
        group = bisect_right(self.firsts, row) - 1
        if group != self.group or row < self.first:
            self.group, self.first, self.batch = group, self.firsts[group], pa.table({})
            self.batches = self.file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=self.columns)
        while row >= self.first + self.batch.num_rows:
            self.first += self.batch.num_rows
            self.batch = next(self.batches)

    def _cells(self, column: str) -> Iterator[object]:
        for batch in self.file.iter_batches(columns=[column]):
            yield from batch[column].to_pylist()
