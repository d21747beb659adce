"""From a catalogue to its best vectors in one command: aligns words and pictures, and keeps what helped.

    python -m training.align --config training/configs/small.yaml --catalog C --output M \\
        start.words=FOLDER start.stem_weights=FILE
    python -m training.align --model PRETRAINED --catalog C --output M

The first form starts from the starting weights, the second from a model folder of `training.pretrain`. Views of each
listing are drawn and passed through the frozen encoder once (this takes most of the time, and goes on where it was
when it is interrupted), the vector head is fitted on them (`training/alignment.py`), its settings are chosen on
listings that are held out by product (val, or in a small catalogue each quarter of train and val in turn), and a guard
keeps the starting point where the result is not better there.
Needs no labels; categories and groups are used where the catalogue has them (align.categories=false, align.groups=false
leave them out; align.spelling=false leaves out how words are spelled). OUTPUT/run holds the resolved configuration, the
views, guard.json and refused.jsonl. Run again with other settings, it uses the views again and replaces the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from item.catalog.listing import Listing
from item.catalog.reader import read_catalog, write_refused
from item.engine.device import choose_device
from item.errors import CatalogError, ConfigError, ItemError, ModelError
from item.model.encoder import GATE_CLOSED, GATE_SHUT, ITEm
from item.model.vector import VectorHead
from item.neighbours import Path as Category
from item.preprocessing.preprocessor import Preprocessor
from training.alignment import Fit
from training.card import write_card
from training.config import AlignOptions, PretrainConfig, load_config
from training.guard import HeldOut, Verdict, choose_settings, judge, sit_all
from training.inputs import Unseen
from training.labels import number_labels
from training.order import permutation
from training.pooled import Pooled, pool_listings, pool_names
from training.pretrain import claim_folder, read_split
from training.start import load_start, make_model, make_preprocessor
from training.towers import Recipe

FEW = 500  # listings; where val has fewer, train and val are held out in folds
NUM_FOLDS = 4


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """What came out: the head to keep, and what the guard found."""

    head: VectorHead
    verdict: Verdict
    settings: dict[str, float | None]


def product_of(listing: Listing) -> str:
    """What a listing is split and grouped by."""
    return listing.group_id or listing.product_id


def hold_out(train: Sequence[Listing], val: Sequence[Listing]) -> list[npt.NDArray[np.intp]]:
    """Rows, of train and then val, that are held out: val where it has enough, else one fold after the other."""
    if len(val) >= FEW:
        return [np.arange(len(train), len(train) + len(val))]
    listings = [*train, *val]
    family = families(listings)
    if np.bincount(family).max() > len(listings) / NUM_FOLDS:  # titles that say nothing link everything
        family = np.unique([product_of(one) for one in listings], return_inverse=True)[1]
    folds = [list[int]() for _ in range(NUM_FOLDS)]
    for rows in sorted((np.flatnonzero(family == one) for one in range(family.max() + 1)), key=len, reverse=True):
        min(folds, key=len).extend(rows.tolist())
    return [np.array(sorted(rows)) for rows in folds if 0 < len(rows) < len(family)]


def families(listings: Sequence[Listing]) -> npt.NDArray[np.int64]:
    """(N,): a number for each listing; it is the same where two are of one product or share their title or description,
    or others link them so: what is known of one would answer what is asked about the other."""
    N, number = len(listings), dict[object, int]()
    links = [
        (row, N + number.setdefault((kind, value), len(number)))
        for row, one in enumerate(listings)
        for kind, value in (("product", product_of(one)), ("title", one.title), ("description", one.description))
        if value
    ]
    size = N + len(number)
    graph = coo_array((np.ones(len(links)), tuple(zip(*links, strict=True))), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][:N], return_inverse=True)[1]


def align_head(
    start: VectorHead,
    pooled: Pooled,
    train: Sequence[Listing],
    val: Sequence[Listing],
    names: Mapping[Category, Tensor],
    options: AlignOptions,
    seed: int,
) -> Aligned:
    """Fits without the held-out listings, chooses, judges; then fits on all training listings where it has not yet.

    Args:
        start: the head at its starting point.
        pooled: of the listings of train, then of val.
        names: the words' means of each category's name (`pool_names`).
    """
    if not options.spelling:
        pooled = replace(pooled, spelling=torch.zeros_like(pooled.spelling))
    listings = [*train, *val]
    products, categories = [product_of(one) for one in listings], [one.category for one in listings]

    def fit_on(rows: npt.NDArray[np.intp], held_out: Unseen | None, recipe: Recipe | None = None) -> Fit:
        labels = number_labels([categories[row] for row in rows], [products[row] for row in rows], options)
        of_names = torch.stack([names[path] for path in labels.paths]) if labels.paths else None
        fit = Fit(start, pooled[rows], labels, of_names)
        fit.train_towers(options, seed, held_out, recipe)
        return fit

    numbers = np.unique(products, return_inverse=True)[1]
    fits, exams, asked_about = list[Fit](), list[HeldOut](), list[str]()
    held_out = hold_out(train, val)
    for fold, asked in enumerate(held_out, start=1):
        known = np.setdiff1d(np.arange(len(listings)), asked)
        print(f"fit {fold} of {len(held_out)}: {len(known)} listings, {len(asked)} held out", file=sys.stderr)
        fits.append(fit_on(known, Unseen(pooled[asked], numbers[asked])))
        order = np.concatenate([known, asked])
        exams.append(
            HeldOut(
                pooled=pooled[order],
                num_known=len(known),
                products=[products[row] for row in order],
                categories=[categories[row] for row in order],
            )
        )
        asked_about += [products[row] for row in asked]
    settings, after = choose_settings(fits, exams)
    verdict = judge(sit_all([start] * len(exams), exams), after, asked_about)
    if not verdict.better:
        return Aligned(head=start, verdict=verdict, settings=asdict(settings))
    fit = fits[0]
    if len(fits) > 1:
        recipes = [fold.recipe for fold in fits if fold.recipe is not None]
        fit = fit_on(np.arange(len(train)), None, Recipe.of_folds(recipes) if recipes else None)
    return Aligned(head=fit.turn(fit.head(settings)), verdict=verdict, settings=asdict(settings))


def load_beginning(arguments: argparse.Namespace) -> tuple[PretrainConfig, ITEm | None, Preprocessor | None]:
    """The configuration, and the model folder to go on from where one is given."""
    if arguments.config is not None:
        return load_config(arguments.config, arguments.overrides), None, None
    recorded = arguments.model / "run" / "config.yaml"
    if not recorded.is_file():
        way_out = "give a folder that training.pretrain wrote, or --config"
        raise ModelError(f"{arguments.model}: no run/config.yaml; {way_out}")
    config = load_config(recorded, arguments.overrides)
    return config, ITEm.from_pretrained(arguments.model), Preprocessor.from_pretrained(arguments.model)


def align(arguments: argparse.Namespace) -> None:
    """Reads, draws views, fits, judges, saves, reports."""
    device, output = torch.device(choose_device(arguments.device)), arguments.output
    config, model, preprocessor = load_beginning(arguments)
    if arguments.model is not None and output.resolve() == arguments.model.resolve():
        raise ConfigError(f"output: {output} is the model folder itself; name another")
    catalog = read_catalog(arguments.catalog)
    claim_folder(output / "run", config, catalog, arguments.restart)
    bert = load_start(config) if model is None else None
    if preprocessor is None:
        preprocessor = make_preprocessor(config, bert, catalog.split("train"))
    train, refused = read_split(catalog, "train", preprocessor)
    val, refused_val = read_split(catalog, "val", preprocessor)
    write_refused([*catalog.refused, *refused, *refused_val], output / "run" / "refused.jsonl")
    if left_out := len(catalog.refused) + len(refused) + len(refused_val):
        print(f"{left_out} listings left out, see {output / 'run' / 'refused.jsonl'}", file=sys.stderr)
    if len(train.listings) < 2:
        found = len(train.listings)
        raise CatalogError(f"{catalog.path}: {found} listings in split 'train'; alignment needs at least 2")
    begins = model is None
    model = (make_model(config, bert, preprocessor) if model is None else model).to(device)
    shut_untrained_gates(model)
    options, seed = config.align, config.run.seed
    chosen = permutation(len(train.listings), seed, 0)[: options.max_listings]
    listings = [train.listings[row] for row in sorted(chosen)]
    asked = val.listings[: options.max_listings // 4]
    cache = Path(config.run.cache) if config.run.cache else output / "run" / "views"
    num_views = options.num_views(len(listings) + len(asked))
    pooled = pool_listings(cache, model, preprocessor, [*listings, *asked], num_views, seed)
    names = pool_names(model, preprocessor, [one.category for one in [*listings, *asked]])
    model.cpu()
    if begins:
        rows = np.arange(len(listings))
        here = pooled[rows]
        model.vector.fit(
            here.words[torch.from_numpy(here.has_words), 0],
            here.picture[torch.from_numpy(here.has_picture), 0],
            config.start.picture_weight,
            whiten=config.start.words is None,
        )
    save(model, preprocessor, output / "run" / "start", config, "the starting point of an alignment")
    aligned = align_head(model.vector, pooled, listings, asked, names, options, seed)
    model.vector = aligned.head
    model.config = replace(model.config, category_levels=aligned.head.category_levels)
    trained = f"the vector on {num_views} views of {len(listings)} listings; {aligned.verdict.why}"
    save(model, preprocessor, output, config, trained, "aligned" if aligned.verdict.better else None)
    outcome = {"views": num_views, "listings": len(listings), "settings": aligned.settings, **aligned.verdict.as_dict()}
    (output / "run" / "guard.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    kept = "aligned" if aligned.verdict.better else "the starting point is kept"
    print(f"{output}: {kept}: {aligned.verdict.why}")


def shut_untrained_gates(model: ITEm) -> None:
    """Gates that no training has moved are shut for good: the vector is fitted to words that read no cells, and an
    engine may then leave the cells out (decision 9)."""
    if (model.gates == GATE_CLOSED).all():
        model.gates.data.fill_(GATE_SHUT)


def save(
    model: ITEm,
    preprocessor: Preprocessor,
    folder: Path,
    config: PretrainConfig,
    trained: str,
    vector: str | None = None,
) -> None:
    """Writes a model folder; `trained` and `vector` are what its card says."""
    preprocessor.save_pretrained(folder)
    write_card(folder, model.config, config, trained, vector)
    model.save_pretrained(folder)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.align", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    beginning = parser.add_mutually_exclusive_group(required=True)
    beginning.add_argument("--config", help="start from its starting weights: a YAML file, see training/configs/")
    beginning.add_argument("--model", type=Path, help="go on from a model folder of training.pretrain")
    parser.add_argument("--catalog", required=True, help="a catalogue file, or the folder with catalog.*")
    parser.add_argument("--output", required=True, type=Path, help="the model folder to write")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--restart", action="store_true", help="discard a run that was begun in OUTPUT")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the configuration")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; errors of the user's input are one line on standard error."""
    try:
        align(parse_arguments(argv))
    except ItemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on from the views that are done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
