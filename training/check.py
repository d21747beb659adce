"""Checks a catalogue: what is there, what is missing, and which rows are refused and why.

    python -m training.check --catalog shop/
    python -m training.check --catalog shop/catalog.parquet --refused refused.jsonl --json report.json

Every main picture is decoded as training, indexing and serving decode it. Rows that are refused are written as JSON
lines {"file", "line", "product_id", "field", "reason"}: to --refused, or else, where there are any, to
<catalogue's name>.refused.jsonl in the current folder. Exit status: 0 where rows can be used, 2 where none can.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from item.catalog.listing import Listing, Picture, Place
from item.catalog.reader import Catalog, Refused, find_files, iterate_rows, write_refused
from item.catalog.splits import assign_splits
from item.errors import CatalogError, ConfigError, ItemError, PictureError
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.pictures import load_picture, read_picture
from item.progress import Progress

FIELDS = ("title", "description", "images", "category", "group_id", "language", "split")
SMALLEST_LEAVES = 5  # that are shown by name
COMMONEST_REASONS = 20
TYPE_NAMES = {str: "string", float: "number", bool: "boolean", list: "list"}
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,8})(\.\d+)?")
_PICTURES_AT_ONCE = 32  # handed to a process


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """How many values occur more than once, and on how many rows."""

    values: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check` found. Everything but `rows`, `refused` and `duplicate_ids` counts the rows that were kept."""

    catalog: str
    rows: int
    kept: int
    refused: dict[str, int]  # reason without its values -> rows, the commonest first
    duplicate_ids: int
    unreadable_pictures: int
    missing: dict[str, int]  # column -> rows without it
    splits: dict[str, int]
    splits_by_rule: bool  # the catalogue names none
    levels: dict[int, int]  # number of category levels -> rows
    leaves: dict[str, int]  # category path -> rows, the smallest first
    attributes: dict[str, int]  # name and type -> rows, by name
    numbers_as_text: tuple[str, ...]  # attributes that are strings in all rows, and all numbers
    repeated_titles: Repeated
    repeated_pictures: Repeated  # of the same bytes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("training.check", description=__doc__.partition("\n")[0])
    parser.add_argument("--catalog", required=True, type=Path, help="file, folder, or pattern")
    parser.add_argument("--refused", type=Path, help="where refused rows are written")
    parser.add_argument("--json", type=Path, help="where the report is written as JSON")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that decode (all cores)")
    options = parser.parse_args(argv)
    try:
        catalog, report = check(options.catalog, options.workers)
        print(table_of(report))
        if options.json is not None:
            _write_json(report, options.json)
        refused_to = options.refused or Path(f"{catalog.path.stem}.refused.jsonl")
        if catalog.refused or options.refused is not None:
            write_refused(catalog.refused, refused_to)
            print(f"\nrefused rows written to {refused_to}")
        if not report.kept:
            raise CatalogError(f"{catalog.path}: no row can be used; the reasons are in {refused_to}")
    except (ItemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check(path: Path, workers: int) -> tuple[Catalog, Report]:
    """Reads a catalogue and all its main pictures; rows with an unreadable one join the refused.

    Raises:
        CatalogError: the file cannot be read at all.
    """
    if workers < 1:
        raise ConfigError(f"--workers: {workers} is below 1")
    files = find_files(path)
    path = files[0] if len(files) == 1 else path
    rows = list(iterate_rows(files))
    parsed = [(place, row) for place, row in rows if isinstance(row, Listing)]
    kept, unreadable, digests = _decode(parsed, workers)
    refused = sorted([row for _, row in rows if isinstance(row, Refused)] + unreadable, key=lambda row: row.place)
    listings = [listing for _, listing in kept]
    ids = {listing.product_id for _, listing in parsed}
    by_rule = not any(listing.split for listing in listings)
    categories = [listing.category for listing in listings if listing.category]
    leaves = Counter("/".join(category) for category in categories)
    report = Report(
        catalog=str(path),
        rows=len(rows),
        kept=len(kept),
        refused=_by_count(f"{row.field}: {_without_values(row.reason)}" for row in refused),
        duplicate_ids=sum(row.field == "product_id" and row.product_id in ids for row in refused),
        unreadable_pictures=len(unreadable),
        missing={field: sum(not getattr(listing, field) for listing in listings) for field in FIELDS},
        splits=_by_count(listing.split or "none" for listing in (assign_splits(listings) if by_rule else listings)),
        splits_by_rule=by_rule,
        levels=dict(sorted(Counter(map(len, categories)).items())),
        leaves=dict(sorted(leaves.items(), key=lambda leaf: (leaf[1], leaf[0]))),
        attributes=_attributes(listings),
        numbers_as_text=_numbers_as_text(listings),
        repeated_titles=_repeated(listing.title for listing in listings),
        repeated_pictures=_repeated(digests),
    )
    places = [place for place, _ in kept]
    return Catalog(path=path, files=files, listings=listings, places=places, refused=refused), report


def table_of(report: Report) -> str:
    """The report for people: under each heading the counts, then what is counted."""
    kept = max(report.kept, 1)
    smallest = dict(list(report.leaves.items())[:SMALLEST_LEAVES])
    sections: dict[str, dict[str, int]] = {
        report.catalog: {
            "rows": report.rows,
            "kept": report.kept,
            "refused": report.rows - report.kept,
            "of them for a product_id that is there already": report.duplicate_ids,
            "of them for a picture that cannot be read": report.unreadable_pictures,
        },
        "Refused for": dict(list(report.refused.items())[:COMMONEST_REASONS]),
        "Missing in the rows kept": {f"{name:12}{n / kept:7.1%}": n for name, n in report.missing.items()},
        "Splits" + " by the rule (the catalogue names none)" * report.splits_by_rule: report.splits,
        "Rows by category levels": {
            f"{levels} level{'s' * (levels > 1)}": rows for levels, rows in report.levels.items()
        },
        "Attributes": report.attributes,
        "Attributes that filters cannot compare: numbers as text; in a CSV, name the column NAME:number": {
            name: report.attributes[f"{name} (string)"] for name in report.numbers_as_text
        },
        f"Smallest of {len(report.leaves):,} leaf categories": smallest,
        "Repeated (for information)": {
            f"titles, on {report.repeated_titles.rows:,} rows": report.repeated_titles.values,
            f"main pictures, on {report.repeated_pictures.rows:,} rows": report.repeated_pictures.values,
        },
    }
    shown = {title: section for title, section in sections.items() if section}
    width = len(f"{report.rows:,}")
    blocks = [[title, *(f"  {n:>{width},}  {name}" for name, n in section.items())] for title, section in shown.items()]
    return "\n\n".join("\n".join(block) for block in blocks)


def _decode(
    rows: Sequence[tuple[Place, Listing]], workers: int
) -> tuple[list[tuple[Place, Listing]], list[Refused], list[str]]:
    """The rows whose main picture can be read or that have none, the others, and a digest of each picture read."""
    read = iter(_read_pictures([listing.images[0] for _, listing in rows if listing.images], workers))
    kept, unreadable, digests = [], [], []
    for place, listing in rows:
        digest, reason = next(read) if listing.images else ("", "")
        if reason:
            unreadable.append(Refused.at(place, listing.product_id, PictureError("image", reason)))
        else:
            kept.append((place, listing))
            digests.append(digest)
    return kept, unreadable, digests


def _attributes(listings: Iterable[Listing]) -> dict[str, int]:
    counts = Counter(
        f"{name} ({TYPE_NAMES[type(value)]})" for listing in listings for name, value in listing.attributes.items()
    )
    return dict(sorted(counts.items()))


def _numbers_as_text(listings: Iterable[Listing]) -> tuple[str, ...]:
    """Those whose every value is written as a number is; leading zeros and many digits are of identifiers."""
    numeric: dict[str, bool] = {}
    for listing in listings:
        for name, value in listing.attributes.items():
            numeric[name] = numeric.get(name, True) and isinstance(value, str) and bool(_NUMBER.fullmatch(value))
    return tuple(sorted(name for name, all_are in numeric.items() if all_are))


def _read_pictures(pictures: Sequence[Picture], workers: int) -> list[tuple[str, str]]:
    """Of each picture `_read_picture`'s answer, by processes."""
    progress = Progress("decode", len(pictures), "pictures")
    found = []
    # spawn: a fork would copy the locks of this process's threads in whatever state they are
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            for answer in pool.map(_read_picture, pictures, chunksize=_PICTURES_AT_ONCE):
                found.append(answer)
                progress.update()
        except BrokenProcessPool as error:
            reason = f"a process that decoded pictures was killed behind picture {len(found)}"
            raise CatalogError(f"{reason}; if memory ran out, give fewer --workers") from error
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            progress.close()
    return found


def _read_picture(picture: Picture) -> tuple[str, str]:
    """(digest of the bytes, ""), or ("", why the picture cannot be read)."""
    config = PreprocessorConfig()
    try:
        data = read_picture(picture, config)
        load_picture(Picture(data=data, reference=picture.reference), config)
    except PictureError as error:
        return "", error.reason
    return hashlib.sha256(data).hexdigest(), ""


def _without_values(reason: str) -> str:
    """What reasons of the same kind have in common: neither values nor the way out."""
    return re.sub(r"\[.*\]|'[^']*'|\"[^\"]*\"|\d[\d,.]*", "…", reason).partition(";")[0]


def _by_count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _repeated(values: Iterable[str]) -> Repeated:
    counts = [count for value, count in Counter(values).items() if value and count > 1]
    return Repeated(values=len(counts), rows=sum(counts))


def _write_json(report: Report, path: Path) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
