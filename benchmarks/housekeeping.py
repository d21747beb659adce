"""Housekeeping: planted errors, and how many of them index.housekeeping lists among how much else.

    python -m benchmarks.housekeeping --json FILE --quick                                a minute or two on two cores
    python -m benchmarks.housekeeping --json benchmarks/results/housekeeping.json \\
        --catalog flipkart=CATALOG,MODEL --catalog luma=CATALOG,MODEL [--rows N]

MODEL is what training.align made of CATALOG; --quick draws and aligns a sample shop. Errors are planted into the split
val, which the model has not seen, among the listings of val and train, N at most.

Duplicates are listings put in again: a *copy* (same words, picture smaller and encoded again), *edited* (words left out
or misspelt, picture cut a little), an *offer* (a view as training.align draws it: words and picture as another seller
might give them). `duplicates_recall`: of these, by kind. `duplicates_precision`: of the pairs that are listed, those
of one product; what the catalogue holds twice under two ids counts as wrong.
Disagreements: 2% of val get the picture of another product (two at least), from anywhere or of their top category.
Wrong categories: 2% of val are moved into another path, anywhere or under their top category. Drawn again SEEDS times.
METRIC_auroc ranks all of val, METRIC_precision_at_n takes as many from the top as were planted, METRIC_recall and
METRIC_precision are of what is listed. There are errors in real catalogues: what is found of them counts as wrong.
Bad pictures: `blank_recall`, `shared_recall` of planted ones, and `blank_others`, `shared_others`: findings besides.

METRIC_low and METRIC_high are the ends of 95% bootstrap intervals, over planted listings, pairs or draws.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.report import Result, write_report
from benchmarks.training import draw_shop, run_program
from index.about import About
from index.housekeeping import categories, disagreement, duplicates
from index.housekeeping.finding import Kind
from index.housekeeping.inventory import Inventory, take_inventory
from index.housekeeping.pictures import find_bad_pictures
from index.product import Product
from index.store import Store
from index.upkeep import Upkeep
from item.catalog.listing import Listing, Picture
from item.catalog.reader import read_catalog
from item.engine import Engine, load_engine
from item.errors import ListingError
from item.evaluation.bootstrap import Interval, mean_interval, ratio_interval
from item.preprocessing.pictures import load_picture
from training.views import listing_view, picture_view, retype

PACKAGES = ("faiss-cpu", "numpy", "torch")
SEEDS = 25
SHARE_PLANTED = 0.02
WAYS = ("copy", "edited", "offer")
NUM_AGAIN = 8  # every so many listings are put in again
NUM_SHARING = 6  # listings that get the placeholder
BLANKS = 6
QUICK = ("align.views=2", "align.steps=60")
Rng = np.random.Generator
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An inventory of a catalogue's own listings and, behind them, of planted ones.

    sources: (N,) the product that a row is about. ways: how a row was planted; "" for the catalogue's own. val: rows of
    that split.
    """

    inventory: Inventory
    sources: list[str]
    ways: list[str]
    val: Rows


def plant(catalog: Path, engine: Engine, num_rows: int, work: Path, seed: int = 0) -> Planted:
    """Puts listings in again and some with bad pictures, indexes all and takes the inventory."""
    rng, read = np.random.default_rng(seed), read_catalog(catalog)
    listed = [*read.split("val"), *read.split("train")][:num_rows]
    own = [with_bytes(one) for one in listed if is_readable(one, engine)]
    limits = engine.preprocessor.config
    complete = [one for one in own if one.images and one.title]
    again = rng.permutation(len(complete))[: len(own) // NUM_AGAIN + len(WAYS)].tolist()
    planted = [
        second(complete[row], load_picture(complete[row].images[0], limits), WAYS[i % len(WAYS)], rng)
        for i, row in enumerate(again)
    ]
    bad = bad_pictures(rng)
    planted += [
        replace(complete[row], product_id=f"{way}:{i}", images=(picture,), group_id=f"{way}:{i}")
        for i, (row, (way, picture)) in enumerate(zip(rng.permutation(len(complete))[: len(bad)], bad, strict=True))
    ]
    listings = [*own, *planted]
    return Planted(
        inventory=inventory_of(listings, engine, work),
        sources=[one.group_id or one.product_id for one in listings],
        ways=[*("" for _ in own), *(one.product_id.split(":")[0] for one in planted)],
        val=np.flatnonzero([one.split == "val" for one in own]),
    )


def inventory_of(listings: Sequence[Listing], engine: Engine, work: Path) -> Inventory:
    """Of listings whose pictures are bytes."""
    encoded = engine.encode(listings)
    kept = [row for row in range(len(listings)) if row not in encoded.refused]
    assert len(kept) == len(listings), encoded.refused
    rows = [
        {
            "product_id": one.product_id,
            "title": one.title,
            "description": one.description,
            "split": one.split,
            "image": one.images[0].data if one.images else None,
        }
        for one in listings
    ]
    pq.write_table(pa.Table.from_pylist(rows), work / "catalog.parquet")
    about = About(space=engine.space, vector_width=engine.vector_width)
    blocks = [([Product.from_listing(one) for one in listings], encoded.vectors)]
    with Store.create(work / "store", about, blocks, upkeep=Upkeep(background=False)) as store:
        return take_inventory(store, [work / "catalog.parquet"], engine, work)


def is_readable(listing: Listing, engine: Engine) -> bool:
    """Whether the engine takes it."""
    try:
        engine.preprocessor(listing)
    except ListingError:
        return False
    return True


def with_bytes(listing: Listing) -> Listing:
    """The same with its main picture read."""
    images = tuple(
        Picture(data=one.data if one.path is None else one.path.read_bytes(), reference=one.reference)
        for one in listing.images[:1]
    )
    return replace(listing, images=images, attributes={})


def second(listing: Listing, image: Image.Image, way: str, rng: Rng) -> Listing:
    """A listing once more, in one of WAYS."""
    if way == "offer":
        listing, image, quality = listing_view(listing, rng), picture_view(image, rng), 80
    elif way == "edited":
        words = retype(listing.title.split(), rng, 0.15, 0.05, bool(rng.random() < 0.3))
        listing = replace(listing, title=" ".join(words), description=listing.description * int(rng.integers(2)))
        share, quality = rng.uniform(0.9, 1), int(rng.integers(40, 90))
        left, top = (int(rng.uniform(0, 1 - share) * side) for side in image.size)
        image = image.crop((left, top, left + int(share * image.width), top + int(share * image.height)))
    else:
        share, quality = rng.uniform(0.5, 1), int(rng.integers(50, 95))
        image = image.resize((max(1, int(share * image.width)), max(1, int(share * image.height))))
    source = listing.group_id or listing.product_id
    picture = Picture(data=encoded_picture(image, quality))
    return replace(listing, product_id=f"{way}:{listing.product_id}", images=(picture,), group_id=source)


def bad_pictures(rng: Rng) -> list[tuple[str, Picture]]:
    """Blank ones of many colours, with a camera's noise or without, and a placeholder several times."""
    blanks = []
    for number in range(BLANKS):
        pixels = rng.integers(0, 256, 3) + rng.normal(0, 2 * (number % 2), (120, 100, 1))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        blanks.append(("blank", Picture(data=encoded_picture(image, 85))))
    pixels = np.full((200, 200, 3), 235, np.uint8)
    pixels[60:140, 50:150] = 190
    pixels[80:120, 80:120] = 235
    placeholder = Picture(data=encoded_picture(Image.fromarray(pixels), 85))
    return [*blanks, *[("shared", placeholder)] * NUM_SHARING]


def encoded_picture(image: Image.Image, quality: int) -> bytes:
    """A JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def measure_duplicates(planted: Planted) -> Iterator[tuple[str, Interval, str]]:
    """Recall by the way in which a listing was put in again, and precision; each as (metric, value, where)."""
    pairs = [one for one in duplicates.find_pairs(planted.inventory) if one.kind is not Kind.VARIANTS]
    right = [planted.sources[one.a] == planted.sources[one.b] for one in pairs]
    found = {row for one, good in zip(pairs, right, strict=True) if good for row in (one.a, one.b)}
    for way in WAYS:
        rows = [row for row, name in enumerate(planted.ways) if name == way]
        yield "duplicates_recall", mean_interval([row in found for row in rows]), f"{way}, {len(rows)} planted"
    yield "duplicates_precision", mean_interval(right), f"{len(pairs)} pairs"


def measure_disagreements(planted: Planted, within: bool) -> Iterator[tuple[str, Interval, str]]:
    """Pictures exchanged for those of other products."""
    inventory, val = clean(planted)
    tops = np.array([path[0] if path else "" for path in inventory.categories])
    sources, there = np.array(planted.sources), np.array([not way for way in planted.ways])
    val = val[inventory.words[val].any(axis=1) & inventory.picture[val].any(axis=1)]

    def draw(rng: Rng) -> Draw:
        picture, wrong = np.array(inventory.picture), rng.choice(val, num_planted(val), replace=False)
        for row in wrong:
            others = there & inventory.has_picture & (sources != sources[row]) & (~within | (tops == tops[row]))
            picture[row] = inventory.picture[rng.choice(np.flatnonzero(others))]
        compared = disagreement.compare(replace(inventory, picture=picture))
        z = np.full(len(inventory), -np.inf)
        z[compared.rows] = compared.z
        return Draw(wrong=np.isin(val, wrong), scores=z[val], listed=z[val] > disagreement.THRESHOLD)

    yield from ranked("disagreement", draw, "top category" if within else "anywhere")


def measure_categories(planted: Planted, within: bool) -> Iterator[tuple[str, Interval, str]]:
    """Listings moved into other paths."""
    inventory, val = clean(planted)
    paths = sorted({path for path in inventory.categories if path})
    val = np.array([row for row in val if inventory.categories[row]])

    def draw(rng: Rng) -> Draw:
        moved, wrong = list(inventory.categories), list[int]()
        for row in rng.permutation(val).tolist():
            others = [path for path in paths if path != moved[row] and (not within or path[0] == moved[row][0])]
            if others and len(wrong) < num_planted(val):
                moved[row] = others[rng.integers(len(others))]
                wrong.append(row)
        doubts = {one.row: one for one in categories.ask_neighbours(replace(inventory, categories=moved))}
        usual = categories.thresholds(list(doubts.values()))
        return Draw(
            wrong=np.isin(val, wrong),
            scores=np.array([doubts[row].margin if row in doubts else -1.0 for row in val.tolist()]),
            listed=np.array(
                [row in doubts and categories.is_confident(doubts[row], usual) for row in val.tolist()], bool
            ),
        )

    yield from ranked("category", draw, "top category" if within else "anywhere")


def measure_pictures(planted: Planted) -> Iterator[tuple[str, Interval, str]]:
    """Bad pictures."""
    findings = list(find_bad_pictures(planted.inventory))
    way_of = dict(zip(planted.inventory.product_ids, planted.ways, strict=True))
    for kind, way in ((Kind.BLANK, "blank"), (Kind.SHARED, "shared")):
        listed = [name for one in findings if one.kind is kind for name in one.product_ids]
        rows = [name for name, planted_as in way_of.items() if planted_as == way]
        yield f"{way}_recall", mean_interval([name in listed for name in rows]), f"{len(rows)} planted"
        others = sum(way_of[name] != way for name in listed)
        yield f"{way}_others", Interval(value=others, low=np.nan, high=np.nan), f"{len(way_of) - len(rows)} listings"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """(V,) of the listings of val: which are wrong, how high they are scored, which are listed."""

    wrong: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]
    listed: npt.NDArray[np.bool_]


def ranked(name: str, draw: Callable[[Rng], Draw], where: str) -> Iterator[tuple[str, Interval, str]]:
    """The measures of a finder over SEEDS draws."""
    draws = [draw(np.random.default_rng(seed)) for seed in range(SEEDS)]
    num_wrong = sum(int(one.wrong.sum()) for one in draws)
    where = f"{where}, {num_wrong} planted in {SEEDS} draws of {len(draws[0].wrong)}"
    auroc = mean_interval([roc_auc_score(one.wrong, one.scores) for one in draws])
    first = [one.wrong[np.argsort(-one.scores, kind="stable")[: one.wrong.sum()]].mean() for one in draws]
    hits = [(one.wrong & one.listed).sum() for one in draws]
    yield f"{name}_auroc", auroc, where
    yield f"{name}_precision_at_n", mean_interval(first), where
    yield f"{name}_recall", ratio_interval(hits, [one.wrong.sum() for one in draws]), where
    yield f"{name}_precision", ratio_interval(hits, [one.listed.sum() for one in draws]), where


def clean(planted: Planted) -> tuple[Inventory, Rows]:
    """The catalogue's own listings without what was planted, in which errors of one kind are then planted; val."""
    inventory = planted.inventory
    own = np.array([not way for way in planted.ways])
    near = np.where((inventory.near >= 0) & own[inventory.near], inventory.near, -1)
    return replace(
        inventory,
        near=near,
        categories=[path if mine else () for path, mine in zip(inventory.categories, own, strict=True)],
        words=np.where(own[:, None], inventory.words, 0),
        picture=np.where(own[:, None], inventory.picture, 0),
    ), planted.val


def num_planted(val: Rows) -> int:
    """Errors in a draw."""
    return max(2, round(SHARE_PLANTED * len(val)))


def measure(name: str, catalog: Path, model: Path, num_rows: int) -> list[Result]:
    """One catalogue."""
    with tempfile.TemporaryDirectory() as work:
        planted = plant(catalog, load_engine(model, "cpu"), num_rows, Path(work))
        figures = [
            *measure_duplicates(planted),
            *(one for within in (False, True) for one in measure_disagreements(planted, within)),
            *(one for within in (False, True) for one in measure_categories(planted, within)),
            *measure_pictures(planted),
        ]
    results = []
    for metric, interval, where in figures:
        where, unit = f"{name}, {where}", "listings" if metric.endswith("_others") else "share"
        ends = {"": interval.value, "_low": interval.low, "_high": interval.high}
        results += [
            Result(metric=f"{metric}{end}", value=value, unit=unit, where=where)
            for end, value in ends.items()
            if not np.isnan(value)
        ]
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.housekeeping",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="a sample shop, aligned for this")
    parser.add_argument("--catalog", action="append", default=[], metavar="NAME=CATALOG,MODEL")
    parser.add_argument("--rows", type=int, default=2_000, help="listings of each catalogue (%(default)s)")
    arguments = parser.parse_args(argv)
    results: list[Result] = []
    for text in arguments.catalog:
        name, _, paths = text.partition("=")
        catalog, _, model = paths.partition(",")
        results += measure(name, Path(catalog), Path(model), arguments.rows)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            shop, model = draw_shop(Path(folder) / "shop", 200), Path(folder) / "model"
            at = ("--config", "training/configs/tiny.yaml", "--catalog", str(shop), "--output", str(model))
            run_program("training.align", *at, *QUICK)
            results += measure("sample shop", shop, model, arguments.rows)
    write_report("housekeeping", results, PACKAGES, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
