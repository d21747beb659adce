"""Writes the sample shop: catalogue, pictures, further offers, and a count of everything that was planted."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from item.errors import ConfigError
from item.progress import Progress
from training.sample_shop.leaves import LEAVES
from training.sample_shop.listings import BROKEN_KINDS, Entry, Row, broken_entry, listings_of
from training.sample_shop.products import make_product, twin_of

FileFormat = Literal["parquet", "jsonl", "csv"]

BLOCK_ROWS = 5000  # rows held in memory before they are written
SUMMARY_FILE = "sample_shop.json"
CATALOG_FIELDS = (
    *("product_id", "group_id", "title", "description", "image", "category", "language", "split"),
    *("seller", "brand", "colour", "pattern", "material", "price", "in_stock"),
)
OFFER_FIELDS = (*CATALOG_FIELDS[:8], "picture_family", "words_family", "held")
NOT_STRINGS = {"price": pa.float64(), "in_stock": pa.bool_(), "held": pa.bool_()}


@dataclass(frozen=True, kw_only=True)
class ShopConfig:
    """What to draw; the same values give the same bytes.

    pictures: whether listings have any; without, a million take minutes. rows_a_file: more rows go into further files,
    catalog-00001 and so on; None: all into one.
    """

    products: int = 260
    seed: int = 0
    format: FileFormat = "parquet"
    pictures: bool = True
    rows_a_file: int | None = None

    def __post_init__(self) -> None:
        if self.products < len(LEAVES):
            raise ConfigError(f"products: {self.products} is too few; take at least {len(LEAVES)}, one a category")
        if self.format not in get_args(FileFormat):
            raise ConfigError(f"format: {self.format!r} is none of {', '.join(get_args(FileFormat))}")
        if self.rows_a_file is not None and self.rows_a_file < 1:
            raise ConfigError(f"rows_a_file: {self.rows_a_file} is below 1")


class RowWriter:
    """Appends rows to a Parquet, JSONL or CSV file, block by block; missing values are null, left out, or empty."""

    def __init__(self, path: Path, fields: tuple[str, ...]) -> None:
        self.path, self.count = path, 0
        self._fields = fields
        self._block: list[Row] = []
        self._schema = pa.schema([(name, NOT_STRINGS.get(name, pa.string())) for name in fields])
        self._parquet = pq.ParquetWriter(path, self._schema) if path.suffix == ".parquet" else None
        self._text = None if self._parquet else path.open("w", encoding="utf-8", newline="")
        self._csv = path.suffix == ".csv"
        if self._text and self._csv:
            csv.writer(self._text, lineterminator="\n").writerow(fields)

    def append(self, row: Row) -> None:
        self._block.append(row)
        self.count += 1
        if len(self._block) == BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._parquet:
            self._parquet.write_table(pa.Table.from_pylist(self._block, schema=self._schema))
        elif self._text:
            self._text.writelines(map(self._csv_line if self._csv else self._json_line, self._block))
        self._block.clear()

    def _json_line(self, row: Row) -> str:
        return (
            json.dumps({name: row[name] for name in self._fields if row[name] is not None}, ensure_ascii=False) + "\n"
        )

    def _csv_line(self, row: Row) -> str:
        line = io.StringIO()
        cells = [str(value).lower() if isinstance(value := row[name], bool) else value for name in self._fields]
        csv.writer(line, lineterminator="\n").writerow(cells)
        return line.getvalue()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._block:
            self._flush()
        for file in (self._parquet, self._text):
            if file:
                file.close()


class CatalogWriter:
    """Appends rows to one file, or to one after the other."""

    def __init__(self, folder: Path, config: ShopConfig) -> None:
        self._folder, self._config, self._files = folder, config, 0
        self._writer = self._next()

    def append(self, row: Row) -> tuple[str, int]:
        """Returns where it is: the file's name and the line."""
        if self._writer.count == self._config.rows_a_file:
            self._writer.__exit__(None, None, None)
            self._writer = self._next()
        self._writer.append(row)
        return self._writer.path.name, self._writer.count + (self._config.format == "csv")  # whose line 1 is the header

    def _next(self) -> RowWriter:
        number = "" if self._config.rows_a_file is None else f"-{self._files:05}"
        self._files += 1
        return RowWriter(self._folder / f"catalog{number}.{self._config.format}", CATALOG_FIELDS)

    def __enter__(self) -> CatalogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)


@dataclass(kw_only=True)
class Tally:
    """Counts of what was planted; broken rows are counted apart. A product's listings come together."""

    rows: int = 0
    listings: int = 0
    products: int = 0
    offers: Counter[int] = field(default_factory=Counter)  # listings of a product -> products
    group: str = ""  # the product that is being counted, and how many of its listings were
    of_group: int = 0
    leaves: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    broken: list[dict[str, str | int | None]] = field(default_factory=list)

    def add(self, entry: Entry, file: str, line: int) -> None:
        row = entry.row
        self.rows += 1
        if entry.broken:
            field_name = BROKEN_KINDS[entry.broken]
            product_id = str(row["product_id"] or "")
            self.broken.append(
                {"file": file, "line": line, "product_id": product_id, "kind": entry.broken, "field": field_name}
            )
            return
        self.listings += 1
        if row["group_id"] != self.group:
            self.end_group()
            self.group = str(row["group_id"])
        self.of_group += 1
        self.leaves[str(row["category"])] += row["category"] is not None
        self.splits[str(row["split"])] += 1
        self.missing.update(name for name in ("title", "description", "image", "category") if row[name] is None)

    def end_group(self) -> None:
        """Counts the product whose listings have all come."""
        if self.of_group:
            self.products += 1
            self.offers[self.of_group] += 1
        self.of_group = 0


def write_shop(output: Path, config: ShopConfig) -> dict[str, Any]:
    """Write the shop into the folder `output` (an older sample shop there is replaced) and return what was planted.

    Raises:
        ConfigError: `output` is there and is no sample shop.
    """
    if output.exists() and not (output / SUMMARY_FILE).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output: {output} is there and is no sample shop; name another folder")
    building = output.with_name(f"{output.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    (building / "offers").mkdir(parents=True)
    summary = _write_files(building, config)
    (building / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    building.rename(output)
    return summary


def _write_files(folder: Path, config: ShopConfig) -> dict[str, Any]:
    tally = Tally()
    with (
        CatalogWriter(folder, config) as catalog,
        RowWriter(folder / "offers" / f"offers.{config.format}", OFFER_FIELDS) as offers,
    ):
        for entry, offer in _entries(config):
            tally.add(entry, *catalog.append(entry.row))
            _write_picture(folder, entry)
            if offer:
                offers.append(offer.row)
                _write_picture(folder / "offers", offer)
    tally.end_group()
    return _summary(config, tally, offers.count)


def _entries(config: ShopConfig) -> Iterator[tuple[Entry, Entry | None]]:
    """All rows in order, the broken ones spread evenly among the intact ones."""
    kinds = [kind for kind, name in BROKEN_KINDS.items() if config.pictures or name != "image"]
    needed = ("title", "image", "category") if config.pictures else ("title", "category")
    planted = 0
    progress = Progress("drawing", config.products, "products")
    for number in range(config.products):
        for entry, offer in listings_of(config.seed, number, pictures=config.pictures):
            yield entry, offer
            due = planted < len(kinds) and number >= (planted + 0.5) * config.products / len(kinds)
            if due and all(entry.row[name] is not None for name in needed):
                yield broken_entry(kinds[planted], entry), None
                planted += 1
        progress.update()
    progress.close()


def _write_picture(folder: Path, entry: Entry) -> None:
    if entry.picture is None:
        return
    path = folder / str(entry.row["image"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(entry.picture)


def _summary(config: ShopConfig, tally: Tally, num_offers: int) -> dict[str, Any]:
    differences = Counter(
        _difference(config.seed, number) for number in range(config.products) if twin_of(number) is not None
    )
    return {
        "seed": config.seed,
        "rows": tally.rows,
        "listings": tally.listings,
        "products": tally.products,
        "leaves": len(+tally.leaves),
        "offers_a_product": {str(n): count for n, count in sorted(tally.offers.items())},
        "near_twins": dict(sorted(differences.items())),
        "splits": dict(sorted(tally.splits.items())),
        "missing": dict(sorted(tally.missing.items())),
        "broken": tally.broken,
        "further_offers": num_offers,
    }


def _difference(seed: int, number: int) -> str:
    """The one thing in which near twin `number` differs from its original."""
    original = twin_of(number)
    assert original is not None
    return "colour" if make_product(seed, number).colour != make_product(seed, original).colour else "pattern"
