"""Specialises a model for a catalogue's categories: heads for all, and an adapter for each top level that it helps.

    python -m training.adapt --model M --catalog C --report R
    python -m training.adapt --model M --catalog C --categories Shoes Bags --method road_2
    python -m training.adapt --model M --catalog C --method full --output M2
    python -m training.adapt --model M --catalog C --grow
    python -m training.adapt --model M --catalog C --hold-back Shoes

The first line fits a head that tells the top levels apart and, for each of them, one that goes down to the leaf; then
it trains a RoAd adapter and a head of its own for each top level with enough listings, all in one run of mixed batches
(arXiv 2409.00119), and keeps those that are better on held-back listings. M gets `categories/` (the heads) and
`adapters/<name>/`; a running server takes them by `item reload`. Adapters of top levels that are not asked for stay.

`linear` fits the heads alone. `full`, `lora`, `road_lora`, `hiwi` and `pafi` train one model for all categories, for
comparison or to serve as a model of its own: --output gets a whole model folder.

--grow keeps all that is there, bit for bit, and adds to the heads the leaves that they do not know yet. --hold-back
writes nothing: it learns without a top level and says how well `unknown` tells its listings from the others.

Started again after an interruption, a run goes on from its last pass over the listings (MODEL/run/adapt).
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from item.adapters.adapter import VALUES, Adapter
from item.adapters.files import ADAPTERS_FOLDER, names_of, read_adapter, read_values, write_adapter
from item.adapters.head import HEADS_FOLDER, Category, Head, Heads, read_heads
from item.adapters.methods import make_method
from item.adapters.road import Road
from item.catalog.listing import Listing
from item.catalog.reader import Refused, read_catalog, write_refused
from item.catalog.splits import assign_splits
from item.engine.loading import load_engine
from item.errors import CatalogError, ConfigError, ItemError, ModelError
from item.model.encoder import ITEm
from item.model.folder import space_of_folder
from item.model.vector import PooledWords
from item.preprocessing.preprocessor import Preprocessor
from training.adapt_report import measure, write_report
from training.adapting import (
    Adapting,
    AdaptOptions,
    Assigned,
    Labelled,
    Run,
    adapted_features,
    fit_head,
    fit_novelty,
    folder_of,
    targets_of,
    with_temperature,
)
from training.pooled import Pooled, pool_listings
from training.pretrain import read_split

WHOLE = ("full", "lora", "road_lora", "hiwi", "pafi")  # methods that change the model itself
CHOICES = (*VALUES, "linear", *WHOLE)
LEAST_GAIN = 0.01  # of the held-back loss: an adapter that gains less is not worth its second pass
WHOLE_LR = {"full": 5e-5, "pafi": 5e-4}  # of these the parameters have starting weights

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """A model and the listings of each split that have a category and can be read."""

    folder: Path
    model: ITEm
    preprocessor: Preprocessor
    space: str
    listings: dict[str, list[Listing]]
    labelled: dict[str, Labelled]


def read_material(folder: Path, catalog_path: str, work: Path) -> Material:
    """Reads all, and computes the features once."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give a model folder, its adapters are written there")
    model, preprocessor = ITEm.from_pretrained(folder), Preprocessor.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    catalog = read_catalog(catalog_path)
    listings = catalog.listings if catalog.has_splits else assign_splits(catalog.listings)
    named = [(one, place) for one, place in zip(listings, catalog.places, strict=True) if one.category]
    catalog = replace(catalog, listings=[one for one, _ in named], places=[place for _, place in named])
    if not any(one.split == "train" for one in catalog.listings):
        raise CatalogError(f"category: {catalog.path} has no listings of split 'train' with one; nothing to learn")
    labelled, kept, refused = dict[str, Labelled](), dict[str, list[Listing]](), list[Refused](catalog.refused)
    for split in SPLITS:
        read, of_split = read_split(catalog, split, preprocessor)
        refused += of_split
        kept[split] = read.listings
        pooled = pool_listings(work / "features", model, preprocessor, read.listings, 0, 0)
        labelled[split] = label(model, pooled, read.listings, read.word_ids)
    work.mkdir(parents=True, exist_ok=True)
    write_refused(refused, work / "refused.jsonl")
    if refused:
        print(f"{len(refused)} listings left out, see {work / 'refused.jsonl'}", file=sys.stderr)
    space = space_of_folder(folder, model.config, preprocessor)
    return Material(
        folder=folder, model=model, preprocessor=preprocessor, space=space, listings=kept, labelled=labelled
    )


@torch.no_grad()
def label(model: ITEm, pooled: Pooled, listings: Sequence[Listing], word_ids: Sequence[Any]) -> Labelled:
    """Listings with the features that the model alone gives them."""
    words = torch.from_numpy(np.flatnonzero(pooled.has_words))
    picture = torch.from_numpy(np.flatnonzero(pooled.has_picture))
    means = PooledWords(words, pooled.words[words, 0])
    features = model.vector.features(len(listings), means, picture, pooled.picture[picture, 0])
    return Labelled(
        categories=[one.category for one in listings],
        word_ids=list(word_ids),
        features=features.numpy(),
        words_width=2 * model.config.width,
    )


def fit_base(train: Labelled, val: Labelled) -> list[Head]:
    """The root's head and those of all top levels, with temperatures that fit `val`."""
    tops = sorted({one[:1] for one in train.categories})
    heads = [fit_head(train, (), tops)]
    for top in tops:
        rows = train.below(top)
        heads.append(fit_head(train[rows], top, sorted({train.categories[row] for row in rows})))
    (root,) = with_temperature(heads[:1], [val.features], [val.categories])
    below = [val[val.below(head.category)] for head in heads[1:]]
    return [root, *with_temperature(heads[1:], [one.features for one in below], [one.categories for one in below])]


def adapted_tops(train: Labelled, heads: Sequence[Head], options: AdaptOptions, asked: Sequence[str]) -> list[Head]:
    """The heads of the top levels that get an adapter."""
    there = {head.category[0]: head for head in heads if head.category}
    if unknown := [name for name in asked if name not in there]:
        raise ConfigError(f"categories: {unknown[0]!r} is no top level of the catalogue; it has {', '.join(there)}")
    return [
        head
        for name, head in there.items()
        if (not asked or name in asked)
        and len(head.paths) > 1
        and len(train.below(head.category)) >= options.min_listings
    ]


def train_on(
    material: Material, method: str, heads: Sequence[Head], options: AdaptOptions, work: Path, *, shared: bool
) -> Run:
    """Trains adapters of the heads' top levels and the heads with them; goes on where it was. shared: one for all."""
    model = material.model
    if method == "full":
        for parameter in model.layers.parameters():
            parameter.requires_grad_(True)
    made = None if method == "full" else make_method(method, model, 1 if shared else len(heads))
    adapting = Adapting(model, made, heads, 2 * model.config.width, shared)
    train, val = (Assigned.of(material.labelled[split], heads) for split in ("train", "val"))
    settings = method, shared, asdict(options), material.space, [head.paths for head in heads]
    folder = folder_of(work, settings, train, val)
    run = Run(adapting, train, val, options, folder)
    run.go()
    return run


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the guard found for one top level, on held-back listings: mean loss and right answers of each."""

    category: str
    name: str
    kept: bool
    held_back: int
    loss_before: float
    loss_after: float
    right_before: int
    right_after: int

    def __str__(self) -> str:
        how = f"loss {self.loss_before:.3f} -> {self.loss_after:.3f}, right {self.right_before} -> {self.right_after}"
        kept = "adapter kept" if self.kept else "the model alone is kept"
        return f"{self.category}: {kept} ({how} of {self.held_back} held back)"


def judge(before: Head, after: Head, seen: Labelled, adapted: np.ndarray, name: str) -> Verdict:
    """Whether an adapter's head is better than the model's on listings of its top level."""
    targets = targets_of(seen.categories, before.paths)
    known = np.flatnonzero(targets >= 0)
    target = targets[known]
    p, q = before.probabilities(seen.features[known]), after.probabilities(adapted[known])

    def loss(x: np.ndarray) -> float:
        return float(-np.log(np.maximum(x[np.arange(len(x)), target], 1e-12)).mean()) if len(x) else 0.0

    right = [int((x.argmax(axis=1) == target).sum()) for x in (p, q)]
    return Verdict(
        category="/".join(before.category),
        name=name,
        kept=loss(q) < (1 - LEAST_GAIN) * loss(p) and right[1] >= right[0],
        held_back=len(known),
        loss_before=loss(p),
        loss_after=loss(q),
        right_before=right[0],
        right_after=right[1],
    )


def adapter_name(category: Category, taken: Sequence[str]) -> str:
    """A name for the adapter of a top level that is not taken: letters, digits, _ and -."""
    plain = re.sub(r"[^\w]+", "-", category[0].lower(), flags=re.ASCII).strip("-") or "category"
    names = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def publish_adapters(
    material: Material, adapting: Adapting, before: Sequence[Head], method: str, options: AdaptOptions
) -> list[Verdict]:
    """Judges each adapter and writes those that are kept; where it is not, an earlier one of the top level goes."""
    assert isinstance(adapting.method, Road)
    val = material.labelled["val"]
    config, folder = material.model.config, material.folder
    earlier = dict[Category, str]()
    for name in names_of(folder):
        try:
            earlier[read_adapter(folder, name, config, material.space).category] = name
        except ModelError as error:
            print(f"{error}", file=sys.stderr)
    seen = [val[val.below(head.category)] for head in before]
    adapted = [
        adapted_features(adapting, one, np.full(len(one), number, dtype=np.int64)) for number, one in enumerate(seen)
    ]
    trained = [adapting.head(number) for number in range(len(before))]
    after = with_temperature(trained, adapted, [one.categories for one in seen])
    taken, verdicts = list(names_of(folder)), list[Verdict]()
    for number, head in enumerate(after):
        name = earlier.get(head.category) or adapter_name(head.category, taken)
        taken.append(name)
        verdict = judge(before[number], head, seen[number], adapted[number], name)
        verdicts.append(verdict)
        if not verdict.kept:
            shutil.rmtree(folder / ADAPTERS_FOLDER / name, ignore_errors=True)
            continue
        own = Heads(model_space=material.space, words_width=val.words_width, heads=(head,))
        write_adapter(
            folder,
            name,
            adapting.method.values(number),
            method=method,
            config=config,
            model_space=material.space,
            category=head.category,
            trained={**asdict(verdict), **asdict(options)},
            write_more=own.write,
        )
    return verdicts


def publish_heads(folder: Path, heads: Heads) -> None:
    """Puts `categories/` into a model folder, as a whole."""
    place, beside = folder / HEADS_FOLDER, folder / f".{HEADS_FOLDER}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    heads.write(beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.replace(place)


def heads_of(material: Material, heads: Sequence[Head]) -> Heads:
    """What `categories/` holds."""
    train, val = material.labelled["train"], material.labelled["val"]
    novelty = fit_novelty(train, val)
    return Heads(model_space=material.space, words_width=train.words_width, heads=tuple(heads), novelty=novelty)


def write_whole(material: Material, adapting: Adapting, output: Path, catalog: str, work: Path) -> Material:
    """Writes a model with one method folded in as a folder of its own, its heads fitted anew on its own features."""
    if adapting.method is not None:
        material.model.load_state_dict(adapting.method.fold())
    output.mkdir(parents=True, exist_ok=True)
    material.preprocessor.save_pretrained(output)
    material.model.save_pretrained(output)
    if (card := material.folder / "README.md").is_file():
        shutil.copy2(card, output / card.name)
    again = read_material(output, catalog, work)
    publish_heads(output, heads_of(again, fit_base(again.labelled["train"], again.labelled["val"])))
    return again


def grow(material: Material) -> list[str]:
    """Adds to all heads of the folder the paths that they do not know; all else stays. Returns what was added."""
    folder, train = material.folder, material.labelled["train"]
    heads = read_heads(folder, material.space)
    if heads is None:
        raise ConfigError(f"grow: {folder} has no heads yet; run training.adapt without --grow first")
    tops = sorted({one[:1] for one in train.categories})
    grown = [grow_head(train, head) for head in heads.heads]
    known = {head.category for head in grown}
    for top in [top for top in tops if top not in known]:
        rows = train.below(top)
        grown.append(fit_head(train[rows], top, sorted({train.categories[row] for row in rows})))
    added = [
        "/".join(path) for old, new in zip(heads.heads, grown, strict=False) for path in new.paths[len(old.paths) :]
    ]
    added += ["/".join(path) for head in grown[len(heads.heads) :] for path in head.paths]
    for name in names_of(folder):
        grow_adapter(material, read_adapter(folder, name, material.model.config, material.space))
    if added:
        publish_heads(folder, replace(heads, heads=tuple(grown), novelty=heads_of(material, grown).novelty))
    return added


def grow_head(train: Labelled, head: Head) -> Head:
    """A head with rows for the paths of its listings that it does not know."""
    rows = train.below(head.category)
    depth = None if head.category else 1
    there = {train.categories[row][:depth] for row in rows}
    new = sorted(there - set(head.paths))
    return fit_head(train[rows], head.category, (*head.paths, *new), head) if new else head


def grow_adapter(material: Material, adapter: Adapter) -> None:
    """As `grow_head`, on the features that an adapter gives; its rotations stay."""
    if adapter.heads is None:
        return
    (head,) = adapter.heads.heads
    train = material.labelled["train"]
    mine = train[train.below(head.category)]
    method, values = read_values(material.folder / ADAPTERS_FOLDER / adapter.name)
    road = make_method(method, material.model, 1)
    assert isinstance(road, Road)
    road.set_values(values)
    adapting = Adapting(material.model, road, [head], train.words_width, shared=False)
    features = adapted_features(adapting, mine, np.zeros(len(mine), dtype=np.int64))
    grown = grow_head(replace(mine, features=features), head)
    if grown is not head:
        write_adapter(
            material.folder,
            adapter.name,
            values,
            method=method,
            config=material.model.config,
            model_space=material.space,
            category=adapter.category,
            write_more=replace(adapter.heads, heads=(grown,)).write,
        )


def hold_back(material: Material, category: str, split: str) -> str:
    """How well `unknown` tells listings of a top level that was not learned from."""
    from sklearn.metrics import roc_auc_score

    train, val, asked = (material.labelled[one] for one in ("train", "val", split))
    novel = np.array([one[0] == category for one in asked.categories])
    if not novel.any() or novel.all():
        there = ", ".join(sorted({one[0] for one in asked.categories}))
        raise ConfigError(
            f"hold_back: {category!r} is no top level of split {split!r}, or the only one; it has {there}"
        )
    others = [np.flatnonzero([one[0] != category for one in part.categories]) for part in (train, val)]
    known = fit_novelty(train[others[0]], val[others[1]])
    unknown = known.unknown(asked.features, asked.words_width)
    area = float(roc_auc_score(novel, known.novelty(asked.features)))
    refused = float((unknown[novel] > known.threshold).mean())
    wrongly = float((unknown[~novel] > known.threshold).mean())
    return (
        f"{category}: AUROC of unknown {area:.3f} on {novel.sum()} of {len(novel)} listings of {split}; "
        f"above the threshold: {refused:.1%} of them, {wrongly:.1%} of the others"
    )


def adapt(arguments: argparse.Namespace) -> None:
    """Reads, fits, trains, judges, publishes, reports."""
    options = AdaptOptions(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr or WHOLE_LR.get(arguments.method, AdaptOptions.lr),
        min_listings=arguments.min_listings,
        seed=arguments.seed,
    )
    whole = arguments.method in WHOLE
    if whole != (arguments.output is not None):
        needs = (
            f"needs --output, a folder for the model that {arguments.method} makes" if whole else "takes no --output"
        )
        raise ConfigError(f"method: {arguments.method} {needs}")
    folder: Path = arguments.model
    work = arguments.work or folder / "run" / "adapt"
    if arguments.restart:
        shutil.rmtree(work, ignore_errors=True)
    material = read_material(folder, arguments.catalog, work)
    if arguments.hold_back:
        print(hold_back(material, arguments.hold_back, arguments.split))
        return
    if arguments.grow:
        added = grow(material)
        print(f"{folder}: " + (f"{len(added)} paths added: {', '.join(added)}" if added else "no new paths"))
        return
    heads = fit_base(material.labelled["train"], material.labelled["val"])
    verdicts = list[Verdict]()
    if arguments.method != "linear":
        chosen = adapted_tops(material.labelled["train"], heads, options, arguments.categories)
        if not chosen:
            least = options.min_listings
            print(f"no top level has {least} listings of several leaves: heads alone", file=sys.stderr)
        else:
            run = train_on(material, arguments.method, chosen, options, work, shared=arguments.method not in VALUES)
            if whole and run.best[0].epoch == 0:
                print(f"no pass was better than the model as it is: {arguments.output} is not written")
                return
            if whole:
                material = write_whole(material, run.adapting, arguments.output, arguments.catalog, work / "whole")
            else:
                verdicts = publish_adapters(material, run.adapting, chosen, arguments.method, options)
    if not whole:
        publish_heads(folder, heads_of(material, heads))
    for verdict in verdicts:
        print(verdict)
    if arguments.report is not None:
        engine = load_engine(material.folder)
        asked = material.listings[arguments.split]
        figures = measure(engine, asked)
        about = {"model": str(material.folder), "catalog": arguments.catalog, "split": arguments.split}
        write_report(arguments.report, figures, about, [str(one) for one in verdicts])
        print(figures.text())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    defaults = AdaptOptions()
    parser = argparse.ArgumentParser(
        prog="python -m training.adapt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="the model folder; heads and adapters go into it")
    parser.add_argument("--catalog", required=True, help="a catalogue file, or the folder with catalog.*")
    parser.add_argument("--method", default="road_1", choices=CHOICES, help="what is trained (%(default)s)")
    parser.add_argument("--categories", nargs="+", default=[], metavar="TOP", help="top levels to adapt (all)")
    parser.add_argument("--output", type=Path, help="a folder for the model that full, lora, hiwi and such make")
    parser.add_argument("--report", type=Path, metavar="DIR", help="measure on --split; adaptation.html and .json")
    parser.add_argument("--split", default="test", choices=SPLITS, help="what is measured (%(default)s)")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes at most (%(default)s)")
    parser.add_argument("--batch-size", type=int, help="listings a step (16 to 64, by the catalogue)")
    parser.add_argument("--lr", type=float, help=f"of the adapters ({defaults.lr}; full 5e-5, pafi 5e-4)")
    parser.add_argument(
        "--min-listings", type=int, default=defaults.min_listings, help="of a top level to adapt (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--work", type=Path, help="features and checkpoints (MODEL/run/adapt)")
    parser.add_argument("--restart", action="store_true", help="discard what an interrupted run has left")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--grow", action="store_true", help="only add leaves that the heads do not know yet")
    what.add_argument("--hold-back", metavar="TOP", help="only say how well listings of it are told as unknown")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; errors of the user's input are one line on standard error."""
    try:
        adapt(parse_arguments(argv))
    except (ItemError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on from the last pass", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
