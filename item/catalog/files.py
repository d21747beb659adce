"""The three file formats as raw rows: (line, cells by column), or (line, why the row cannot be read).

Bytes that are no UTF-8 become lone surrogates (PEP 383), so that only the column that has them is at fault.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from item.catalog.rows import COLUMNS, no_product_id, unique_object
from item.errors import CatalogError, ListingError

Row = Mapping[str, object]
Rows = Iterator[tuple[int, Row | ListingError]]

MAX_CELL_CHARACTERS = 8 * 2**20  # of a CSV cell; the csv module's own limit of 128 KiB is short for a description
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ROWS_AT_ONCE = 256  # of a Parquet file: few, since a row may carry its pictures
_BUFFER_BYTES = 2**20  # read at once of each of its columns: without, a whole row group is read before its first row


def jsonl_rows(path: Path) -> Rows:
    """One JSON object a line; blank lines are skipped."""
    with path.open("rb") as file:
        for line, text in _lines(file):
            if text.strip():
                yield line, _json_object(text.rstrip("\r\n"))


def csv_rows(path: Path) -> Rows:
    """Comma-separated cells under a header, quoted with '"' (RFC 4180); blank lines are skipped.

    Cells are strings; those of an attribute whose name ends in a type, as in `price:number`, are of it (`CELL_TYPES`).
    After a broken row the file is taken up again on the next line, so that a quote that is never closed does not
    swallow the rows behind it.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    with path.open("rb") as file:
        lines = _RepeatableLines(_lines(file))
        reader = csv.reader(lines, strict=True)
        try:
            header = next((cells for cells in reader if cells), [])
        except csv.Error as error:
            raise CatalogError(f"{path}: the header cannot be read: {error}") from error
        columns = [_typed_column(name) for name in header]
        _check_header(path, [name for name, _ in columns])
        while (line := lines.start_row()) is not None:
            try:
                cells = next(reader)
            except csv.Error as error:
                lines.repeat_all_but_first()
                yield line, ListingError("row", f"broken CSV: {error}; check the quotes")
                continue
            if len(cells) == len(header):
                yield line, _typed_cells(columns, cells)
            elif cells:
                reason = f"has {len(cells)} cells where the header has {len(header)}; quote cells with commas"
                yield line, ListingError("row", reason)


def parquet_rows(path: Path) -> Rows:
    """The rows of a Parquet file, numbered from 1."""
    line = 0
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            _check_header(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in _arrow_rows(batch):
                    line += 1
                    yield line, row
    except (pa.ArrowException, OSError) as error:
        behind = f" behind row {line:,}" if line else ""
        raise CatalogError(f"{path}: damaged or no Parquet file ({error}){behind}; write it again") from error


def _typed_column(name: str) -> tuple[str, str]:
    """ "price:number" -> its name and type; the type is empty for a string."""
    stem, _, kind = name.rpartition(":")
    return (stem, kind) if stem.strip() and kind in CELL_TYPES and stem not in COLUMNS else (name, "")


def _typed_cells(columns: Sequence[tuple[str, str]], cells: Sequence[str]) -> Row:
    """By column; in place of a cell that is not of its type, why the row cannot be used."""
    return {name: _typed(name, kind, cell) for (name, kind), cell in zip(columns, cells, strict=True)}


def _number(cell: str) -> float:
    if not _NUMBER.fullmatch(cell):  # Python takes more: nan, 1_000
        raise ValueError(cell)
    return float(cell)


def _typed(name: str, kind: str, cell: str) -> object:
    if not kind or not cell.strip():
        return cell
    try:
        return CELL_TYPES[kind](cell.strip())
    except (KeyError, ValueError):
        return ListingError(name, f"{cell!r} is no {kind}; mend it, or leave the type out of the column's name")


# What a CSV attribute's name may end in, behind a colon, and how its cells are read.
CELL_TYPES: Mapping[str, Callable[[str], object]] = {
    "number": _number,
    "boolean": lambda cell: {"true": True, "false": False, "1": True, "0": False}[cell.lower()],
    "list": lambda cell: [item.strip() for item in cell.split("|") if item.strip()],
}
READERS: Mapping[str, Callable[[Path], Rows]] = {".parquet": parquet_rows, ".jsonl": jsonl_rows, ".csv": csv_rows}


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    for line, raw in enumerate(file, 1):
        data = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
        yield line, data.decode(errors="surrogateescape")


def _json_object(text: str) -> Row | ListingError:
    try:
        row = json.loads(text, object_pairs_hook=unique_object)
    except ListingError as error:
        return error
    except json.JSONDecodeError as error:
        return ListingError("row", f"broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return ListingError("row", f"broken JSON: {error}")
    if not isinstance(row, dict):
        return ListingError("row", f'is a JSON {type(row).__name__}; give an object, {{"product_id": ...}}')
    return row


class _RepeatableLines:
    """Lines for the csv reader that remember the row in progress, so that its lines can be read again."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._again: deque[tuple[int, str]] = deque()
        self._row: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._row.append(self._again.popleft() if self._again else next(self._lines))
        return self._row[-1][1]

    def start_row(self) -> int | None:
        """The line that the next row starts on; None at the end of the file."""
        self._row = []
        if not self._again:
            self._again.extend([line for line in [next(self._lines, None)] if line])
        return self._again[0][0] if self._again else None

    def repeat_all_but_first(self) -> None:
        self._again.extendleft(reversed(self._row[1:]))


def _check_header(path: Path, columns: Sequence[str]) -> None:
    if not columns:
        raise CatalogError(f"{path}: is empty")
    if "product_id" not in columns:
        separator = next((mark for mark in ";\t|" if len(columns) == 1 and mark in columns[0]), None)
        hint = f"; cells are separated by commas, not by {separator!r}" if separator else ""
        raise CatalogError(f"{path}: {no_product_id(columns)}{hint}")
    for number, column in enumerate(columns, 1):
        if not column.strip():
            raise CatalogError(f"{path}: column {number} has no name; name it or leave it out (pandas: index=False)")
        if column in columns[: number - 1]:
            raise CatalogError(f"{path}: there are two columns {column!r}; rename one")


def _arrow_rows(batch: Any) -> Iterator[Row]:
    try:
        return iter(batch.to_pylist())
    except ValueError:  # some cell is no UTF-8, or has no Python counterpart
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        return ({name: _arrow_cell(cells[i]) for name, cells in columns.items()} for i in range(batch.num_rows))


def _arrow_cell(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if isinstance(scalar, pa.StructScalar):
            return {name: _arrow_cell(member) for name, member in scalar.items()}
        if isinstance(scalar, pa.ListScalar):
            return [_arrow_cell(item) for item in scalar]
        return scalar.as_buffer().to_pybytes().decode(errors="surrogateescape")
    except ValueError:
        return scalar  # refused for its type, with the column's name
