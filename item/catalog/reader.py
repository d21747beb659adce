"""Catalogues as listings, row by row: files of Parquet, JSON lines and CSV, one or many. A bad row is refused alone."""

from __future__ import annotations

import glob
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from item.catalog.files import READERS, Row
from item.catalog.listing import Listing, Place
from item.catalog.rows import parse_listing
from item.catalog.splits import assign_splits
from item.errors import CatalogError, ListingError

IDS_CACHE_BYTES = 16 * 2**20  # of the ids seen, before they go to the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row that was left out. `field` is the column at fault, "row" where the whole row is."""

    file: str = ""  # file and line: as in `Place`
    line: int
    product_id: str  # empty where it could not be read
    field: str
    reason: str

    @classmethod
    def at(cls, place: Place, product_id: str, error: ListingError) -> Refused:
        """The row at a place, for an error; with texts that can be written: what is no UTF-8 in them as escapes."""
        texts = (place.file, product_id, error.field, error.reason)
        file, product_id, field, reason = (text.encode(errors="backslashreplace").decode() for text in texts)
        return cls(file=file, line=place.line, product_id=product_id, field=field, reason=reason)

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.file, self.line)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A catalogue read whole. `path` is its file, or what names its files; `places[i]` is where `listings[i]` is."""

    path: Path
    files: tuple[Path, ...]
    listings: list[Listing]
    places: list[Place]
    refused: list[Refused]

    @cached_property
    def has_splits(self) -> bool:
        """Whether the catalogue itself says which split a listing belongs to."""
        return any(listing.split is not None for listing in self.listings)

    def refusal(self, listing: Listing, error: ListingError) -> Refused:
        """What is written down of one of `listings` that turned out unusable later, with its place."""
        return Refused.at(self._place_of[listing.product_id], listing.product_id, error)

    @cached_property
    def _place_of(self) -> dict[str, Place]:
        return {listing.product_id: place for listing, place in zip(self.listings, self.places, strict=True)}

    def split(self, name: str) -> list[Listing]:
        """The listings of a split, none where it has none.

        Where no listing of the catalogue names a split, `assign_splits` with its default seed and shares decides.
        """
        listings = self.listings if self.has_splits else assign_splits(self.listings)
        return [listing for listing in listings if listing.split == name]


def find_files(path: str | Path, name: str = "catalog") -> tuple[Path, ...]:
    """The files of the catalogue at `path`, in the order in which they are read.

    A file is itself. In a folder it is `name`.parquet, .jsonl or .csv where there is one, and else all the files with
    these suffixes, but for those whose names start with a dot or an underscore. A pattern such as `shop/part-*.parquet`
    names the files that match it. Several are ordered by their paths, as strings.

    Raises:
        CatalogError: there is none, or `name` in two formats.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / f"{name}{suffix}" for suffix in READERS if (path / f"{name}{suffix}").is_file()]
        if len(found) > 1:
            both = " and ".join(file.name for file in found)
            raise CatalogError(f"{path}: the folder has both {both}; leave one, or give its path")
        files = found or _readable(path.iterdir())
        if not files:
            raise CatalogError(
                f"{path}: the folder must hold {name}{{{','.join(READERS)}}}, or several files of these formats;"
                f" it has {_contents(path)}"
            )
        return tuple(files)
    if not path.exists() and glob.has_magic(str(path)):
        files = _readable(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - a pattern may be absolute
        if not files:
            raise CatalogError(f"{path}: no file of {', '.join(READERS)} matches this pattern")
        return tuple(files)
    if not path.is_file():
        parent = f"; {path.parent} has {_contents(path.parent)}" if path.parent.is_dir() else ""
        raise CatalogError(f"{path}: no such file or folder{parent}")
    if path.suffix.lower() not in READERS:
        raise CatalogError(f"{path}: unknown format {path.suffix!r}; a catalogue is one of {', '.join(READERS)}")
    return (path,)


def iterate_rows(path: str | Path | Sequence[Path], *, urls: bool = False) -> Iterator[tuple[Place, Listing | Refused]]:
    """The rows of a catalogue in order, each with its place and as a listing or as refused.

    Of several rows with one product_id the first good one stays, whatever files they are in. Memory does not grow with
    the catalogue: the ids are kept in a temporary file once they are many.

    Args:
        path: a catalogue's path, or the files that `find_files` found at it.
        urls: whether pictures may be URLs; otherwise such a row is refused.

    Raises:
        CatalogError: a file cannot be read at all: missing, unknown format, damaged, no column product_id; or there
            are no rows.
    """
    files = find_files(path) if isinstance(path, str | Path) else tuple(path)
    is_empty = True
    with closing(_SeenIds()) as seen:
        for place, folder, row in raw_rows(files):
            is_empty = False
            yield place, _checked(place, row, folder, urls, seen)
    if is_empty:
        raise CatalogError(f"{', '.join(map(str, files[:3]))}: has no rows")


def raw_rows(files: Sequence[Path]) -> Iterator[tuple[Place, Path, Row | ListingError]]:
    """The rows of files as they are written: place, the file's folder, cells or why they cannot be read.

    Raises:
        CatalogError: as `iterate_rows`, but for no rows.
    """
    base = Path(os.path.commonpath([file.parent for file in files]))
    for file in files:
        name = file.relative_to(base).as_posix()
        try:
            for line, row in READERS[file.suffix.lower()](file):
                yield Place(name, line), file.parent, row
        except OSError as error:
            raise CatalogError(f"{file}: cannot be read: {error.strerror}") from error


def read_catalog(path: str | Path, name: str = "catalog") -> Catalog:
    """A catalogue read whole, from the files that `find_files` finds.

    Raises:
        CatalogError: as `iterate_rows`, and where every row was refused.
    """
    files = find_files(path, name)
    path = files[0] if len(files) == 1 else Path(path)
    rows = list(iterate_rows(files))
    kept = [(place, row) for place, row in rows if isinstance(row, Listing)]
    refused = [row for _, row in rows if isinstance(row, Refused)]
    if not kept:
        (field, reason), count = Counter((row.field, row.reason) for row in refused).most_common(1)[0]
        raise CatalogError(f"{path}: all {len(rows):,} rows are refused, {count:,} of them for: {field}: {reason}")
    return Catalog(
        path=path,
        files=files,
        listings=[row for _, row in kept],
        places=[place for place, _ in kept],
        refused=refused,
    )


def write_refused(refused: Iterable[Refused], path: str | Path) -> None:
    """Writes refused rows as JSON lines {"file", "line", "product_id", "field", "reason"}, beside and renamed."""
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in refused)
    beside.replace(path)


def _checked(place: Place, row: Row | ListingError, folder: Path, urls: bool, seen: _SeenIds) -> Listing | Refused:
    if isinstance(row, ListingError):
        return Refused.at(place, "", row)
    try:
        listing = parse_listing(row, folder=folder, urls=urls)
    except ListingError as error:
        given = row.get("product_id")
        return Refused.at(place, "" if given is None else str(given).strip(), error)
    first = seen.first(listing.product_id, place)
    if first != place:
        where = f"line {first.line}" if first.file == place.file else f"line {first.line} of {first.file}"
        reason = f"{listing.product_id!r} is already on {where}; give each listing its own"
        return Refused.at(place, listing.product_id, ListingError("product_id", reason))
    return listing


class _SeenIds:
    """Where each product_id was first seen: in a database of its own, which goes to a temporary file when it grows."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size = -{IDS_CACHE_BYTES // 1024}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE seen (product_id TEXT PRIMARY KEY, file TEXT, line INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")  # and never a commit: nothing has to be kept

    def first(self, product_id: str, place: Place) -> Place:
        """The place of this id that was given first, which may be this one."""
        try:
            if self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (product_id, *place)).rowcount:
                return place
            query = "SELECT file, line FROM seen WHERE product_id = ?"
            return Place(*self._database.execute(query, (product_id,)).fetchone())
        except sqlite3.Error as error:
            raise CatalogError(
                f"the temporary file of the ids seen: {error}; free space in the folder of temporary files,"
                " or name another with SQLITE_TMPDIR"
            ) from error

    def close(self) -> None:
        self._database.close()


def _readable(paths: Iterable[Path]) -> list[Path]:
    """The files of known formats, ordered; hidden ones and marks such as _SUCCESS are none."""
    return sorted(
        (path for path in paths if path.suffix.lower() in READERS and path.name[0] not in "._" and path.is_file()),
        key=str,
    )


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"
