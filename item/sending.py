"""A catalogue on its way to a server: read, made into messages, sent in batches, and what became of each row."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from item.catalog.listing import Listing, Place
from item.errors import ConfigError, ListingError
from item.results import WriteResult
from item.tables import cell_text
from item.v1 import item_pb2

if TYPE_CHECKING:
    from item.catalog.reader import Refused

MAX_ENCODED = 32  # products of one call whose vectors are made: few, since searches wait for it
FRAME_BYTES = 64 * 2**10  # of a request: its own fields, and a few bytes for each product
WITHOUT_WORDS = {"title": "-"}  # what an update or a deletion is read with: the reader asks for words or a picture


IN_MESSAGE = re.compile(
    r"^(row|products\[\d+\]|product_ids\[\d+\])[.:] ?"
)  # of a row in a message; its place says more

Row = tuple[Place, "Listing | Refused"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRow:
    """A row that was not written or deleted; `reason` names the field."""

    file: str
    line: int
    product_id: str
    reason: str


@dataclasses.dataclass(slots=True, kw_only=True)
class WriteReport:
    """What became of rows; `done` of them were written or deleted, `created` of these are new products."""

    done: int = 0
    created: int = 0
    refused: list[RefusedRow] = dataclasses.field(default_factory=list)

    def refuse(self, place: Place, product_id: str, reason: str) -> None:
        """Remembers a row, and says so."""
        self.refused.append(RefusedRow(file=place.file, line=place.line, product_id=product_id, reason=reason))
        print(cell_text(f"{place}, {product_id!r}: {reason}"), file=sys.stderr)


def catalog_rows(path: Path, *, ids_suffice: bool) -> Iterator[Row]:
    """The rows of a catalogue, with progress. They are read twice, so that a file that cannot be read to its end is
    found before anything is written.

    ids_suffice: rows need neither words nor a picture.

    Raises:
        CatalogError: the file cannot be read at all.
        ConfigError: what reads catalogues is not installed.
    """
    try:
        from item.catalog.reader import iterate_rows
        from item.progress import Progress
    except ImportError as error:
        raise ConfigError(
            f"catalog: reading one needs {error.name}; pip install 'item-embeddings[programs]'"
        ) from error
    read = rows_with_ids if ids_suffice else iterate_rows
    progress = Progress("sending", sum(1 for _ in read(path)), "rows")
    for row in read(path):
        yield row
        progress.update()
    progress.close()


def rows_with_ids(path: Path) -> Iterator[Row]:
    """As `item.catalog.reader.iterate_rows`, of rows that need neither words nor a picture."""
    from item.catalog.reader import Refused, find_files, raw_rows
    from item.catalog.rows import parse_listing

    for place, folder, row in raw_rows(find_files(path)):
        try:
            if isinstance(row, ListingError):
                raise row
            yield place, dataclasses.replace(parse_listing({**row, **WITHOUT_WORDS}, folder=folder), title="")
        except ListingError as error:
            yield place, Refused.at(place, "", error)


def write_rows(
    rows: Iterable[Row],
    message: Callable[[Listing], item_pb2.Product],
    send: Callable[[Sequence[item_pb2.Product]], list[WriteResult]],
    *,
    max_rows: int,
    max_bytes: int,
) -> WriteReport:
    """Sends rows as messages in batches of at most so many rows and bytes."""
    report = WriteReport()
    for batch in batches(usable_rows(rows, message, max_bytes, report), max_rows, max_bytes):
        results = send([product for _, product in batch])
        for (place, _), result in zip(batch, results, strict=True):
            if result.error is None:
                report.done += 1
                report.created += result.created
            else:
                report.refuse(place, result.product_id, IN_MESSAGE.sub("", result.error.details))
    return report


def usable_rows(
    rows: Iterable[Row], message: Callable[[Listing], item_pb2.Product], max_bytes: int, report: WriteReport
) -> Iterator[tuple[Place, item_pb2.Product]]:
    """The rows that can be sent, as messages with their places; the others are reported."""
    for place, row in rows:
        if not isinstance(row, Listing):
            report.refuse(place, row.product_id, f"{row.field}: {row.reason}")
            continue
        try:
            product = message(row)
        except ConfigError as error:
            report.refuse(place, row.product_id, IN_MESSAGE.sub("", str(error)))
            continue
        if (size := product.ByteSize()) > max_bytes:
            report.refuse(place, row.product_id, f"{size:,} bytes; the server takes up to {max_bytes:,} at once")
        else:
            yield place, product


def batches(
    rows: Iterable[tuple[Place, item_pb2.Product]], max_rows: int, max_bytes: int
) -> Iterator[list[tuple[Place, item_pb2.Product]]]:
    """Consecutive rows together, as many as fit."""
    batch: list[tuple[Place, item_pb2.Product]] = []
    num_bytes = 0
    for place, product in rows:
        size = product.ByteSize()
        if batch and (len(batch) == max_rows or num_bytes + size > max_bytes):
            yield batch
            batch, num_bytes = [], 0
        batch.append((place, product))
        num_bytes += size
    if batch:
        yield batch
