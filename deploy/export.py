"""Makes a variant of a model: ONNX graphs in full precision or 8 bits, or half precision for a GPU.

    python -m deploy.export --model M --variant fp32
    python -m deploy.export --model M --variant int8 --catalog C     scales fitted, loss measured on the catalogue

The variant goes to M/variants/NAME, with what it loses in variant.json. A server takes it with --variant NAME; fp32 is
taken by itself on a CPU. Where its ten nearest are those of full precision (0.97 of them, by words, by picture and by
both, on 1,000 listings at least) it serves the same indexes; otherwise it needs one of its own (index.build --variant).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from item.catalog.listing import Listing
from item.catalog.reader import read_catalog
from item.engine.variant import Variant
from item.errors import ConfigError, ItemError, ListingError
from item.export.loss import MIN_LISTINGS, MIN_OVERLAP, NEAREST
from item.export.variants import NAMES, Exporter
from item.model.folder import resolve_folder
from item.preprocessing.prepared import MODALITIES, Prepared
from item.preprocessing.preprocessor import Preprocessor
from item.progress import Progress

CALIBRATION = 256  # listings
MIN_MEASURED = NEAREST + 1


def draw(listings: Sequence[Listing], calibration: int, measured: int) -> tuple[list[Listing], list[Listing]]:
    """Listings to fit to, of split train where there are splits, and to measure on: others, if there are enough."""
    shuffled = [listings[row] for row in np.random.default_rng(0).permutation(len(listings))]
    fitted = ([one for one in shuffled if one.split in (None, "train")] or shuffled)[:calibration]
    taken = {id(one) for one in fitted}
    return fitted, ([one for one in shuffled if id(one) not in taken] + fitted)[:measured]


def prepare(listings: Sequence[Listing], preprocessor: Preprocessor, name: str) -> list[Prepared]:
    """The listings that can be read, made ready; how many cannot is said."""

    def attempt(listing: Listing) -> Prepared | None:
        try:
            return preprocessor(listing)
        except ListingError:
            return None

    progress = Progress(f"reading {name}", len(listings), "listings")
    ready = []
    with ThreadPoolExecutor() as readers:
        for one in readers.map(attempt, listings):
            progress.update()
            if one is not None:
                ready.append(one)
    progress.close()
    if len(ready) < len(listings):
        print(
            f"{len(listings) - len(ready)} of {len(listings)} listings cannot be read and are left out", file=sys.stderr
        )
    return ready


def training_catalog(model: Path) -> Path | None:
    """The catalogue that a model was trained on, where its run says so and it is still there."""
    source = model / "run" / "catalog.txt"
    path = Path(source.read_text(encoding="utf-8").rsplit(" ", 2)[0]) if source.is_file() else None
    return path if path is not None and path.is_file() else None


def summary(folder: Path, variant: Variant) -> str:
    """What was made, for people."""
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    lines = [f"variant   {folder}, {size:.0f} MiB", f"method    {variant.method}"]
    if (difference := variant.measured.get("max_difference")) is not None:
        lines.append(f"parity    no element of a vector differs from torch's by more than {difference:.1e}")
    for modality in MODALITIES:
        if (loss := variant.measured.get(modality)) is not None:
            lines.append(
                f"{modality:9} overlap@10 {loss['overlap_at_10']:.4f}, in its index {loss['overlap_at_10_own']:.4f}, "
                f"cosine {loss['cosine_mean']:.5f} (least {loss['cosine_min']:.5f}), {loss['listings']:,} listings"
            )
            if variant.runtime == "onnxruntime":  # the others are for a GPU, and were measured without
                lines[-1] += f", {loss['speed']:.2f} of the speed of {variant.measured['beside']} here"
    if variant.space == variant.model_space:
        lines.append("space     the model's own: it serves the model's indexes")
    else:
        lines.append(
            f"space     its own ({variant.space[:12]}): the model's needs overlap@10 of {MIN_OVERLAP} by each of "
            f"{', '.join(MODALITIES)} on {MIN_LISTINGS:,} listings; build an index with --variant {variant.name}"
        )
    return "\n".join(lines)


def export(arguments: argparse.Namespace) -> None:
    """Reads the listings, makes the variant, says what it is."""
    if arguments.listings < MIN_MEASURED:
        raise ConfigError(f"listings: {arguments.listings} is below {MIN_MEASURED}; each is asked for its ten nearest")
    model = resolve_folder(arguments.model)
    catalog = arguments.catalog or training_catalog(model)
    if catalog is None and arguments.variant != "fp32":
        raise ConfigError(
            f"catalog: {arguments.variant} is fitted to listings and measured on them, and {model} does not say which "
            "catalogue it was trained on; give --catalog"
        )
    fitted: list[Prepared] = []
    measured: list[Prepared] = []
    if catalog is not None:
        preprocessor = Preprocessor.from_pretrained(model)
        for_fit, for_measure = draw(read_catalog(catalog).listings, CALIBRATION, arguments.listings)
        measured = prepare(for_measure, preprocessor, "listings to measure on")
        if arguments.variant == "int8":
            fitted = prepare(for_fit, preprocessor, "listings to fit to")
    folder, variant = Exporter(model, fitted, measured).export(arguments.variant)
    print(summary(folder, variant))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="M", help="model folder, or hub repository as owner/name")
    parser.add_argument("--variant", required=True, choices=NAMES, help="what to make")
    parser.add_argument("--catalog", type=Path, metavar="C", help="catalogue (the one that the model was trained on)")
    parser.add_argument("--listings", type=int, default=1500, help="to measure the loss on (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Makes a variant; 0, or 2 where that cannot be done."""
    try:
        export(build_parser().parse_args(argv))
    except ItemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
