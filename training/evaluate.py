"""Measures a model on a catalogue, beside baselines made from the same starting weights.

    python -m training.evaluate --model demo/model --catalog demo/shop --offers demo/shop/offers --report demo/report
    python -m training.evaluate --model M --catalog C --words BERT_FOLDER --stem tf_efficientnet_lite0 \\
        --stem-weights FILE.safetensors --cache DIR
    python -m training.evaluate --model M --catalog C --no-baselines

The first line takes about a minute on two cores. Each listing is encoded by its words, by its picture and by both,
and each way is measured: the same product (every second offer against all rows of the catalogue; without offers, every
row of the split against all others, those of its `group_id` being right), the leaf category (by five neighbours from
train, and by a linear probe), words to picture and back. The baselines need the weights that the model started
from: those that its training recorded, or those that are given. Settings are chosen on val; test is for the end.

--report DIR gets evaluation.json, evaluation.md, queries.parquet (the values of single queries) and refused.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing
from item.catalog.reader import Refused, read_catalog, write_refused
from item.catalog.splits import assign_splits
from item.engine import Engine, load_engine
from item.engine.torch_engine import choose_device
from item.errors import CatalogError, ConfigError, ItemError, ModelError
from item.evaluation.exam import TASKS, Contestant, Exam
from item.evaluation.report import Report, Sitting
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from training.baselines import Course, make_baselines
from training.config import HUB, load_config
from training.encode import Seen, encode_modalities, prepare
from training.frozen import FrozenEncoder, StartingWeights

Vectors = npt.NDArray[np.float32]

NAME = "ITEm"
WAY_OUT = "give --words, --stem and --stem-weights, or --no-baselines"


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is evaluated on: listings and second offers (None: none were given), each with its split."""

    listings: list[Listing]
    offers: list[Listing] | None
    refused: list[Refused]

    def offers_of(self, split: str) -> list[Listing]:
        """The offers of a split."""
        return [offer for offer in self.offers or () if offer.split == split]


def read_material(catalog_path: str, offers_path: str | None, split: str) -> Material:
    """Reads a catalogue and its offers.

    An offer without a split has that of the listing it offers again; a catalogue without splits gets them by rule.

    Raises:
        CatalogError: one of them cannot be read; the split has no rows; no offer is of a listing of the catalogue.
    """
    catalog = read_catalog(catalog_path)
    listings = catalog.listings if catalog.has_splits else assign_splits(catalog.listings)
    there = Counter(listing.split or "none" for listing in listings)
    if not there[split]:
        counts = ", ".join(f"{name} ({count:,})" for name, count in there.most_common())
        raise CatalogError(f"split: {catalog.path} has no rows of {split!r}; it has {counts}")
    if offers_path is None:
        return Material(listings=listings, offers=None, refused=catalog.refused)
    again = read_catalog(offers_path, "offers")
    splits = {listing.product_id: listing.split for listing in listings}
    if not any(offer.group_id in splits for offer in again.listings):
        found = f"the first is {again.listings[0].group_id!r}"
        raise CatalogError(f"{again.path}: group_id: none is a product_id of {catalog.path}; {found}")
    offers = [replace(offer, split=offer.split or splits.get(offer.group_id or "")) for offer in again.listings]
    return Material(listings=listings, offers=offers, refused=[*catalog.refused, *again.refused])


def starting_weights(arguments: argparse.Namespace) -> StartingWeights | None:
    """The weights given, or else those that the model's training recorded; None where there are none."""
    if arguments.words is not None:
        return StartingWeights(words=arguments.words, stem=arguments.stem, stem_weights=arguments.stem_weights)
    recorded = Path(arguments.model) / "run" / "config.yaml"
    if arguments.no_baselines or not recorded.is_file():
        return None
    config = load_config(recorded)
    words, stem, stem_weights = config.start.words, config.model.stem, config.start.stem_weights
    if words is None or stem is None or stem_weights is None:
        return None
    return StartingWeights(words=words, stem=stem, stem_weights=None if stem_weights == HUB else stem_weights)


def frozen_encoder(arguments: argparse.Namespace, engine: Engine) -> FrozenEncoder | None:
    """The baselines' encoder; None where they are left out."""
    start = starting_weights(arguments)
    if start is None:
        return None
    model = Path(arguments.model)
    cache = arguments.cache or (model / "run" / "frozen" if model.is_dir() else None)
    try:
        return FrozenEncoder(start, engine.preprocessor.config, choose_device(arguments.device), cache)
    except ModelError as error:
        raise ModelError(f"starting weights of the baselines: {error}; {WAY_OUT}") from error


def contestants(seen: Seen, asked: Mapping[Modality, Vectors]) -> Iterator[Contestant]:
    """The model by words, by picture, by both. asked: its vectors of the exam's queries."""
    for modality in MODALITIES:
        yield Contestant(
            name=NAME,
            inputs=modality,
            catalog=seen.vectors[modality],
            queries=asked[modality],
            halves=(seen.vectors["words"], seen.vectors["picture"]) if modality == "both" else None,
        )


def baselines(encoder: FrozenEncoder, exam: Exam, val_offers: list[Listing] | None) -> Iterator[Contestant]:
    """The baselines for an exam; val_offers: what their settings are chosen on, None for a catalogue without offers."""
    val_exam = Exam(catalog=exam.catalog, offers=val_offers, split="val")
    catalog = encoder.encode(exam.catalog, "the catalogue")
    queries, val_queries = (
        catalog[one.rows] if one.offers is None else encoder.encode(one.offers, f"offers of {one.split}")
        for one in (exam, val_exam)
    )
    course = Course(exam=exam, val_exam=val_exam, catalog=catalog, queries=queries, val_queries=val_queries)
    return make_baselines(course)


def notes_on(sitting: Sitting, asked: Mapping[Modality, Vectors], num_refused: int, with_baselines: bool) -> list[str]:
    """What a reader of the tables must know, a sentence each. asked: the model's vectors of the exam's queries."""
    exam = sitting.exam
    products = {listing.product_id for listing in exam.catalog}
    lost = sum(offer.group_id not in products for offer in exam.offers or ())
    unnamed = sum(not exam.catalog[row].category for row in exam.rows)
    without = {part: int((~asked[part].any(axis=1)).sum()) for part in MODALITIES}
    answered = {answers.task for _, answers in sitting.answers}
    notes = {
        f"Rows and offers that were refused and left out: {num_refused:,}.": num_refused,
        f"Offers of no listing of the catalogue, left out: {lost:,}.": lost,
        f"Rows without category, not asked for one: {unnamed:,} of {len(exam.rows):,}.": unnamed,
        f"Queries without words, by words answered at random: {without['words']:,}.": without["words"],
        f"Queries without a picture, by picture answered at random: {without['picture']:,}.": without["picture"],
        **{f"Nothing to ask for: {task}.": task not in answered for task in TASKS},
        f"Baselines are left out: the starting weights are not known; {WAY_OUT}.": not with_baselines,
    }
    chosen = dict.fromkeys(f"{one.name}: {one.note}." for one, _ in sitting.answers if one.note)
    return [note for note, applies in notes.items() if applies] + list(chosen)


def evaluate(arguments: argparse.Namespace) -> None:
    """Reads, encodes, measures, prints, writes."""
    split = arguments.split
    engine = load_engine(arguments.model, arguments.device)
    material = read_material(arguments.catalog, arguments.offers, split)
    encoder = frozen_encoder(arguments, engine)
    seen = encode_modalities(engine, material.listings, "the catalogue")
    offered = encode_modalities(engine, material.offers_of(split), "offers")
    exam = Exam(catalog=seen.listings, offers=None if material.offers is None else offered.listings, split=split)
    asked = offered.vectors
    if material.offers is None:
        asked = {modality: vectors[exam.rows] for modality, vectors in seen.vectors.items()}
    sitting = Sitting(exam)
    for contestant in contestants(seen, asked):
        sitting.add(contestant)
    if encoder is not None:
        val = [offer for offer in material.offers_of("val") if isinstance(prepare(engine, offer), Prepared)]
        for contestant in baselines(encoder, exam, None if material.offers is None else val):
            sitting.add(contestant)
    refused = [*material.refused, *seen.refused, *offered.refused]
    report = Report(
        about={
            "model": arguments.model,
            "space": engine.space,
            "engine": engine.name,
            "catalogue": f"{arguments.catalog}, {len(exam.catalog):,} listings",
            "offers": arguments.offers or "none",
            "split": split,
        },
        notes=notes_on(sitting, asked, len(refused), encoder is not None),
        results=list(sitting.results()),
        differences=list(sitting.differences()),
    )
    print(report.text())
    if arguments.report is not None:
        arguments.report.mkdir(parents=True, exist_ok=True)
        report.save(arguments.report)
        sitting.save_queries(arguments.report / "queries.parquet")
        write_refused(refused, arguments.report / "refused.jsonl")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ConfigError for arguments that do not go together."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model folder, or a hub repository as owner/name")
    parser.add_argument("--catalog", required=True, help="a catalogue file, or the folder with catalog.*")
    parser.add_argument("--offers", help="second offers: a file, or the folder with offers.*")
    parser.add_argument("--split", default="test", help="whose rows are asked about (test)")
    parser.add_argument("--report", type=Path, help="a folder for the report")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--no-baselines", action="store_true", help="measure the model alone")
    parser.add_argument("--words", help="baselines: a BERT checkpoint, as a folder or a hub repository")
    parser.add_argument("--stem", help="baselines: a timm model")
    parser.add_argument("--stem-weights", help="baselines: its weights as a file in timm's layout; else timm's own")
    parser.add_argument("--cache", type=Path, help="baselines: a folder for their vectors (MODEL/run/frozen)")
    arguments = parser.parse_args(argv)
    given = [name for name in ("words", "stem", "stem_weights") if getattr(arguments, name) is not None]
    if given and (arguments.no_baselines or not {"words", "stem"} <= {*given}):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{names}: give both --words and --stem, without --no-baselines")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """The command; errors of the user's input are one line on standard error."""
    try:
        evaluate(parse_arguments(argv))
    except (ItemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
