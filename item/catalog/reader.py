"""Catalogue files as listings: Parquet, JSON lines and CSV, row by row. A bad row is refused alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from item.catalog.files import READERS, Row
from item.catalog.listing import Listing
from item.catalog.rows import parse_listing
from item.catalog.splits import assign_splits
from item.errors import CatalogError, ListingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row that was left out. `field` is the column at fault, "row" where the whole row is."""

    line: int  # from 1, as an editor shows it (in CSV the header is line 1); in Parquet the row's number from 1
    product_id: str  # empty where it could not be read
    field: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A catalogue read whole. `lines[i]` is the line of `listings[i]`."""

    path: Path
    listings: list[Listing]
    lines: list[int]
    refused: list[Refused]

    @cached_property
    def has_splits(self) -> bool:
        """Whether the catalogue itself says which split a listing belongs to."""
        return any(listing.split is not None for listing in self.listings)

    def refusal(self, listing: Listing, error: ListingError) -> Refused:
        """What is written down of one of `listings` that turned out unusable later, with its line."""
        return Refused(
            line=self._line_of[listing.product_id],
            product_id=listing.product_id,
            field=error.field,
            reason=error.reason,
        )

    @cached_property
    def _line_of(self) -> dict[str, int]:
        return {listing.product_id: line for listing, line in zip(self.listings, self.lines, strict=True)}

    def split(self, name: str) -> list[Listing]:
        """The listings of a split, none where it has none.

        Where no listing of the catalogue names a split, `assign_splits` with its default seed and shares decides.
        """
        listings = self.listings if self.has_splits else assign_splits(self.listings)
        return [listing for listing in listings if listing.split == name]


def find_catalog(path: str | Path, name: str = "catalog") -> Path:
    """The catalogue file at `path`: the file itself, or the one `name`.parquet, .jsonl or .csv in a folder."""
    path = Path(path)
    if path.is_dir():
        found = [path / f"{name}{suffix}" for suffix in READERS if (path / f"{name}{suffix}").is_file()]
        if len(found) != 1:
            wanted = f"{name}{{{','.join(READERS)}}}"
            there = "both " + " and ".join(file.name for file in found) if found else _contents(path)
            raise CatalogError(f"{path}: the folder must hold exactly one {wanted}; it has {there}")
        return found[0]
    if not path.is_file():
        parent = f"; {path.parent} has {_contents(path.parent)}" if path.parent.is_dir() else ""
        raise CatalogError(f"{path}: no such file or folder{parent}")
    if path.suffix.lower() not in READERS:
        raise CatalogError(f"{path}: unknown format {path.suffix!r}; a catalogue is one of {', '.join(READERS)}")
    return path


def iterate_rows(path: str | Path) -> Iterator[tuple[int, Listing | Refused]]:
    """The rows of a catalogue file in order, each with its line and as a listing or as refused.

    Of several rows with one product_id the first good one stays. Memory grows with the ids only.

    Raises:
        CatalogError: the file cannot be read at all: missing, unknown format, damaged, empty, no column product_id.
    """
    path = find_catalog(path)
    first_line: dict[str, int] = {}
    line = None
    try:
        for line, row in READERS[path.suffix.lower()](path):
            yield line, _checked(line, row, path.parent, first_line)
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror}") from error
    if line is None:
        raise CatalogError(f"{path}: has no rows")


def read_catalog(path: str | Path, name: str = "catalog") -> Catalog:
    """A catalogue read whole, from its file or from the folder that holds `name`.parquet, .jsonl or .csv.

    Raises:
        CatalogError: as `iterate_rows`, and where every row was refused.
    """
    file = find_catalog(path, name)
    rows = list(iterate_rows(file))
    kept = [(line, row) for line, row in rows if isinstance(row, Listing)]
    refused = [row for _, row in rows if isinstance(row, Refused)]
    if not kept:
        (field, reason), count = Counter((row.field, row.reason) for row in refused).most_common(1)[0]
        raise CatalogError(f"{file}: all {len(rows):,} rows are refused, {count:,} of them for: {field}: {reason}")
    return Catalog(path=file, listings=[row for _, row in kept], lines=[line for line, _ in kept], refused=refused)


def write_refused(refused: Iterable[Refused], path: str | Path) -> None:
    """Writes refused rows as JSON lines {"line", "product_id", "field", "reason"}, beside and renamed."""
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in refused)
    beside.replace(path)


def _checked(line: int, row: Row | ListingError, folder: Path, first_line: dict[str, int]) -> Listing | Refused:
    if isinstance(row, ListingError):
        return _refused(line, "", row)
    try:
        listing = parse_listing(row, folder=folder)
    except ListingError as error:
        given = row.get("product_id")
        return _refused(line, "" if given is None else str(given).strip(), error)
    first = first_line.setdefault(listing.product_id, line)
    if first != line:
        reason = f"{listing.product_id!r} is already on line {first}; give each listing its own"
        return _refused(line, listing.product_id, ListingError("product_id", reason))
    return listing


def _refused(line: int, product_id: str, error: ListingError) -> Refused:
    """With texts that can be written: what is no UTF-8 in them as escapes."""
    product_id, field, reason = (
        text.encode(errors="backslashreplace").decode() for text in (product_id, error.field, error.reason)
    )
    return Refused(line=line, product_id=product_id, field=field, reason=reason)


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"
