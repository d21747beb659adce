"""Lists what of an indexed catalogue is probably wrong, with pictures: duplicates, disagreements, wrong categories.

    python -m index.housekeeping --index I --model M --catalog C --output DIR
    python -m index.housekeeping --index demo/index --model demo/model --catalog demo/shop --output demo/housekeeping

M and C are those that the index was built with (index.build). Nothing is changed: DIR/index.html is for people, one
page with small pictures; DIR/findings.jsonl has the same for machines, one finding a line, {"kind", "product_ids",
"score", "why", "beside"}. Each listing is encoded twice, by its words and by its picture, in this process: some
minutes for ten thousand listings. It cannot go on after an interruption. Exit status: 0, or 2 where something cannot be
read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from pathlib import Path

from index.build import DEVICES, REFUSED_FILE
from index.files import publish
from index.generations import NAME
from index.housekeeping.categories import find_wrong_categories
from index.housekeeping.disagreement import find_disagreements
from index.housekeeping.duplicates import find_duplicates
from index.housekeeping.finding import Finding, Kind
from index.housekeeping.inventory import Inventory, take_inventory
from index.housekeeping.page import Card, render_page, shown_ids
from index.housekeeping.pictures import find_bad_pictures
from index.store import Store
from item.catalog.listing import Listing
from item.catalog.reader import find_files, iterate_rows
from item.engine import Engine, load_engine
from item.errors import ConfigError, ItemError, PictureError
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.thumbnail import thumbnail

PAGE_FILE, FINDINGS_FILE = "index.html", "findings.jsonl"


def find_all(inventory: Inventory, refused: Path) -> list[Finding]:
    """Everything, by kind, the surest first."""
    findings = [
        *find_duplicates(inventory),
        *find_disagreements(inventory),
        *find_wrong_categories(inventory),
        *find_bad_pictures(inventory),
        *find_unreadable(inventory, refused),
        *find_missing(inventory),
    ]
    order = list(Kind)
    return sorted(findings, key=lambda one: (order.index(one.kind), -one.score, one.product_ids))


def find_unreadable(inventory: Inventory, refused: Path) -> Iterable[Finding]:
    """Listings that index.build refused, and those that could not be read again."""
    if refused.is_file():
        for line in refused.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            why = f"line {row['line']}: {row['field']}: {row['reason']}"
            yield Finding(kind=Kind.UNREADABLE, product_ids=(row["product_id"],), score=0.0, why=why)
    for row, why in inventory.unreadable.items():
        yield Finding(kind=Kind.UNREADABLE, product_ids=(inventory.product_ids[row],), score=1.0, why=why)


def find_missing(inventory: Inventory) -> Iterable[Finding]:
    """Products without a title, and those that were read without a picture."""
    for row, (product_id, has_picture) in enumerate(
        zip(inventory.product_ids, inventory.has_picture.tolist(), strict=True)
    ):
        missing = [] if inventory.titles[row].strip() else ["title"]
        if not has_picture and row not in inventory.unreadable:
            missing.append("picture")
        if missing:
            why = f"has no {' and no '.join(missing)}"
            yield Finding(kind=Kind.MISSING, product_ids=(product_id,), score=float(len(missing)), why=why)


def make_cards(
    catalog: Sequence[Path], store: Store, wanted: AbstractSet[str], limits: PreprocessorConfig
) -> dict[str, Card]:
    """The products that are shown, their pictures from a second pass over the catalogue."""
    cards = {}
    for product_id in wanted:
        product = store.product(product_id) if product_id else None
        title, category = (product.title, product.category) if product else ("", ())
        cards[product_id] = Card(product_id=product_id, title=title, category=" / ".join(category))
    for _, row in iterate_rows(catalog):
        if isinstance(row, Listing) and row.product_id in wanted:
            card = cards[row.product_id]
            cards[row.product_id] = Card(
                product_id=row.product_id,
                title=card.title or row.title,
                category=card.category or " / ".join(row.category),
                picture=picture_of(row, limits),
            )
    return cards


def picture_of(listing: Listing, limits: PreprocessorConfig) -> str | None:
    """A thumbnail; None where there is no picture, or none that can be read."""
    try:
        return thumbnail(listing.images[0], limits) if listing.images else None
    except PictureError:
        return None


def write_findings(findings: Iterable[Finding], path: Path) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for one in findings:
            file.write(json.dumps({**asdict(one), "kind": one.kind.name.lower()}, ensure_ascii=False) + "\n")


def keep_house(arguments: argparse.Namespace) -> list[Finding]:
    """Finds and writes. Raises ItemError."""
    if not NAME.fullmatch(arguments.collection):
        raise ConfigError(f"collection: {arguments.collection!r}; a name is letters, digits, dots, dashes, underscores")
    catalog, output = find_files(arguments.catalog), arguments.output
    folder = arguments.index / arguments.collection
    output.mkdir(parents=True, exist_ok=True)
    with Store.open(folder) as store, tempfile.TemporaryDirectory(dir=output, prefix="vectors-") as work:
        engine: Engine = load_engine(arguments.model, arguments.device, variant=arguments.variant)
        inventory = take_inventory(store, catalog, engine, Path(work))
        findings = find_all(inventory, folder / REFUSED_FILE)
        cards = make_cards(catalog, store, shown_ids(findings), engine.preprocessor.config)
        facts = {
            "index": str(folder),
            "products": f"{len(inventory):,}",
            "not in the catalogue": f"{inventory.num_absent:,}",
            "model": store.about.model,
        }
    page = render_page(findings, cards, facts)
    publish(output / FINDINGS_FILE, lambda path: write_findings(findings, path))
    publish(output / PAGE_FILE, lambda path: path.write_text(page, encoding="utf-8"))
    return findings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(
        prog="python -m index.housekeeping", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = described.add_argument
    add("--index", required=True, type=Path, help="folder of the collections")
    add("--collection", default="default", help="name of the one that is looked at (%(default)s)")
    add("--model", required=True, help="the model that the index was built with")
    add("--variant", help="its variant, where the index was built with one of another space")
    add("--catalog", required=True, type=Path, help="catalogue, for the pictures; none are fetched by URL")
    add("--output", required=True, type=Path, help="folder to write")
    add("--device", choices=DEVICES, default="auto", help="where the encoder runs (%(default)s)")
    return described


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    arguments = parser().parse_args(argv)
    try:
        findings = keep_house(arguments)
    except (ItemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start again", file=sys.stderr)
        return 130
    for kind in Kind:
        print(f"{sum(one.kind is kind for one in findings):7,}  {kind.value}")
    print(arguments.output / PAGE_FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
