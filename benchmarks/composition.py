"""Two adapters on blocks of their own, alone and together; and which blocks carry an attribute.

    python -m benchmarks.composition --model M --catalog DATA/fashion --work W --page W/composition.html --json FILE

Composition (arXiv 2409.00119): the first adapter may rotate one half of every linear layer's blocks and learns one
attribute of the catalogue (baseColour), the second the other half and another attribute (usage), by words, both in one
run of mixed batches. Written as adapters, they are composed (`item.adapters.adapter.compose`) and served by the engine:
`accuracy_ATTRIBUTE_none | own | other | both`; `kept_ATTRIBUTE_WAY` is how much more that is than what it is measured
against, own than none, both than own. For comparison, two adapters on all blocks, one after the other: `both_whole`.

Interventions: in a title one colour is exchanged for another. Then the outputs of some blocks of the model, at all
words, are taken from the run of the one title into that of the other (interchange). `carried`: by how much that moves
the colour's logits, as a share of what the other title does. The page draws it for each layer and linear layer, whole
and by groups of blocks. `rank_correlation`: of that with how far the adapter of colour turns and scales the group.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.report import Result, share, write_report
from item.adapters.adapter import LINEARS, Adapter, compose, linears_of
from item.adapters.files import read_adapter, write_adapter
from item.adapters.head import Category, Head
from item.adapters.method import Adapted, in_place
from item.adapters.methods import make_method
from item.adapters.road import Road
from item.catalog.listing import Listing
from item.engine.interface import Engine
from item.engine.loading import load_engine
from item.errors import CatalogError
from item.evaluation.bootstrap import mean_interval, paired_interval
from item.model.batch import Batch, pad_words
from item.model.encoder import ITEm
from item.model.vector import join_fields
from item.preprocessing.prepared import Prepared
from training.adapt import Material, read_material
from training.adapting import Adapting, AdaptOptions, Assigned, Labelled, Run, fit_head, folder_of
from training.data import WordIds

FREQUENT = 50  # listings of train that a value needs
GROUPS = 24  # of each linear layer's blocks
PAIRS = 64  # of titles
TEMPLATE = "composition_page.html.j2"

Rows = npt.NDArray[np.intp]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One that is learned: its values as paths, (name, value)."""

    name: str
    paths: list[Category]

    def labelled(self, material: Material, split: str, limit: int | None = None) -> tuple[Rows, Labelled]:
        """The listings that have it, by their words alone; the first `limit`."""
        values = {path[1] for path in self.paths}
        listings, whole = material.listings[split], material.labelled[split]
        rows = np.array(
            [row for row, one in enumerate(listings) if one.attributes.get(self.name) in values], dtype=np.intp
        )[:limit]
        part = whole[rows]
        categories: list[Category] = [(self.name, str(listings[row].attributes[self.name])) for row in rows]
        return rows, replace(part, categories=categories, features=part.seen_by("words"))


def attribute_of(material: Material, name: str) -> Attribute:
    """An attribute with the values that are frequent enough."""
    counts = Counter(str(one.attributes[name]) for one in material.listings["train"] if name in one.attributes)
    values = sorted(value for value, count in counts.items() if count >= FREQUENT)
    if len(values) < 2:
        raise CatalogError(f"attribute: {name!r} has {len(values)} values of {FREQUENT} listings or more; take another")
    return Attribute(name=name, paths=[(name, value) for value in values])


def join(parts: Sequence[Labelled]) -> Labelled:
    """One after the other."""
    return Labelled(
        categories=[one for part in parts for one in part.categories],
        word_ids=[one for part in parts for one in part.word_ids],
        features=np.concatenate([part.features for part in parts]),
        words_width=parts[0].words_width,
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Two adapters and their heads, beside the heads of the model alone."""

    adapters: list[Adapter]
    heads: list[Head]
    base: list[Head]


def train(
    material: Material, attributes: Sequence[Attribute], options: AdaptOptions, limit: int, apart: bool, work: Path
) -> Trained:
    """Two adapters in one run. apart: each on half of the blocks."""
    parts = [one.labelled(material, "train", limit)[1] for one in attributes]
    base = [fit_head(part, (one.name,), one.paths) for part, one in zip(parts, attributes, strict=True)]
    road = make_method("road_1", material.model, 2)
    assert isinstance(road, Road)
    if apart:
        road.restrict(0, 0.0, 0.5)
        road.restrict(1, 0.5, 1.0)
    adapting = Adapting(material.model, road, base, parts[0].words_width, shared=False)
    val = join([one.labelled(material, "val")[1] for one in attributes])
    asked = Assigned.of(join(parts), base), Assigned.of(val, base)
    folder = folder_of(work, (apart, options, material.space), *asked)
    Run(adapting, *asked, options, folder).go()
    adapters = []
    for number, one in enumerate(attributes):
        settings = {"config": material.model.config, "model_space": material.space}
        write_adapter(folder, one.name, road.values(number), method="road_1", **settings)  # type: ignore[arg-type]
        adapters.append(read_adapter(folder, one.name, **settings))  # type: ignore[arg-type]
    return Trained(adapters=adapters, heads=[adapting.head(0), adapting.head(1)], base=base)


def one_after_the_other(a: Adapter, b: Adapter) -> Adapter:
    """The product of both rotations, where their blocks are the same: as complex numbers."""
    r1, r2 = a.r1 * b.r1 - a.r2 * b.r2, a.r1 * b.r2 + a.r2 * b.r1
    return replace(a, name=f"{a.name} {b.name}", r1=r1, r2=r2, digest=f"{a.digest} {b.digest}")


def right(engine: Engine, prepared: Sequence[Prepared], adapter: Adapter | None, head: Head, truth: Labelled) -> Values:
    """Whether the head names each listing's value, with an adapter or without, through the engine."""
    features = engine.features_of(prepared, [adapter] * len(prepared))
    features[:, truth.words_width :] = 0
    said = [head.paths[number] for number in head.logits(features).argmax(axis=1)]
    return np.array([a == b for a, b in zip(said, truth.categories, strict=True)], dtype=np.float64)


def compare(
    engine: Engine, material: Material, attributes: Sequence[Attribute], apart: Trained, whole: Trained, split: str
) -> tuple[list[Result], list[dict[str, object]]]:
    """The figures of composition, and the rows of the page's table."""
    results, table = list[Result](), list[dict[str, object]]()
    both, product = compose(*apart.adapters), one_after_the_other(*whole.adapters)
    for number, one in enumerate(attributes):
        rows, truth = one.labelled(material, split)
        listings = [material.listings[split][row] for row in rows]
        prepared = [words for listing in listings if (words := engine.preprocessor(listing).only("words")) is not None]
        groups = [listing.group_id or listing.product_id for listing in listings]
        other = apart.adapters[1 - number]
        ways: dict[str, tuple[Adapter | None, Head]] = {
            "none": (None, apart.base[number]),
            "other": (other, apart.base[number]),
            "own": (apart.adapters[number], apart.heads[number]),
            "both": (both, apart.heads[number]),
            "own_whole": (whole.adapters[number], whole.heads[number]),
            "both_whole": (product, whole.heads[number]),
        }
        found = {way: right(engine, prepared, adapter, head, truth) for way, (adapter, head) in ways.items()}
        where = f"{one.name} ({len(one.paths)} values), {split}, {len(listings)} listings, words"
        for way, values in found.items():
            interval = mean_interval(values, groups)
            results.append(share(f"accuracy_{one.name}_{way}", interval, where))
            table.append({"attribute": one.name, "way": way, "accuracy": interval})
        for way, against in (("own", "none"), ("both", "own"), ("both_whole", "own_whole")):
            interval = paired_interval(found[way], found[against], groups)
            results.append(share(f"kept_{one.name}_{way}", interval, where, against))
    return results, table


class Swapped(Adapted):
    """A linear layer, some of whose outputs are those of another run. kept: of the last run. taken: (out,) bool."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor
        self.source: Tensor
        self.taken: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.linear(x)
        if self.taken is None:
            self.kept = h
            return h
        return torch.where(self.taken, self.source, h)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two titles that differ in one value: their words, and the values' numbers."""

    words: WordIds
    other: WordIds
    value: int
    other_value: int


def pairs_of(material: Material, attribute: Attribute, split: str) -> Iterator[Pair]:
    """Titles that name their value, with as many words when another one stands there."""
    values = [path[1] for path in attribute.paths]
    for listing in material.listings[split]:
        value = str(listing.attributes.get(attribute.name, ""))
        if value not in values or not re.search(rf"\b{re.escape(value)}\b", listing.title, re.IGNORECASE):
            continue
        place = values.index(value)
        other = (place + 1 + len(listing.title) % (len(values) - 1)) % len(values)
        title = re.sub(rf"\b{re.escape(value)}\b", values[other], listing.title, flags=re.IGNORECASE)
        words = material.preprocessor.words(listing)
        changed = material.preprocessor.words(Listing(product_id=listing.product_id, title=title))
        if words is not None and changed is not None and len(words) == len(changed) and "" == listing.description:
            yield Pair(words=words, other=changed, value=place, other_value=other)


@torch.no_grad()
def carried(model: ITEm, head: Head, pairs: Sequence[Pair], words_width: int) -> tuple[Values, Values]:
    """What the outputs of each linear layer carry: (L, 6) whole, and (L, 6, GROUPS) by groups of its blocks."""
    places = linears_of(model.config)
    modules = {name: Swapped() for name in places}
    rows, value = torch.arange(len(pairs)), torch.tensor([one.value for one in pairs])
    other = torch.tensor([one.other_value for one in pairs])
    weight, bias = torch.from_numpy(head.weight[:, :words_width].copy()), torch.from_numpy(head.bias.copy())

    def preference(words: Sequence[WordIds], swapped: Mapping[str, Swapped]) -> float:
        ids, mask = pad_words(list(words))
        batch = Batch(word_ids=ids, word_mask=mask, picture_rows=torch.zeros(0, dtype=torch.int64))
        with in_place(model, swapped):
            pooled = model.pool_words(model(batch), batch)
        features = model.vector.words.centred(join_fields(pooled.means, model.vector.title_weight))
        z = features @ weight.T + bias
        return float((z[rows, other] - z[rows, value]).sum())

    changed = preference([one.other for one in pairs], modules)
    for module in modules.values():
        module.source = module.kept
    start = preference([one.words for one in pairs], {})
    shape = (model.config.num_layers, len(LINEARS))
    whole, by_group = np.zeros(shape), np.zeros((*shape, GROUPS))
    for number, (name, place) in enumerate(places.items()):
        module, width = modules[name], place.stop - place.start
        at = divmod(number, len(LINEARS))
        block = torch.arange(width) // 2
        group = block * GROUPS // (width // 2)
        for taken in range(-1, GROUPS):
            module.taken = group == taken if taken >= 0 else torch.ones(width, dtype=torch.bool)
            share = (preference([one.words for one in pairs], {name: module}) - start) / (changed - start)
            if taken < 0:
                whole[at] = share
            else:
                by_group[(*at, taken)] = share
    return whole, by_group


def turned(adapter: Adapter, model: ITEm) -> Values:
    """(L, 6, GROUPS): how far an adapter turns and scales each group of blocks: the mean of |log alpha| + |theta|."""
    size = np.abs(np.log(np.hypot(adapter.r1, adapter.r2))) + np.abs(np.arctan2(adapter.r2, adapter.r1))
    shape = (model.config.num_layers, len(LINEARS), GROUPS)
    means = [
        [part.mean() for part in np.array_split(size[place][::2], GROUPS)]
        for place in linears_of(model.config).values()
    ]
    return np.array(means).reshape(shape)


def write_page(path: Path, about: Mapping[str, object], table: object, whole: Values, by_group: Values) -> None:
    """The page with both plots."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        about=about, table=table, linears=LINEARS, whole=whole.tolist(), by_group=by_group.tolist(), most=by_group.max()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, composes, intervenes, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.composition",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--attributes", nargs=2, default=("baseColour", "usage"), metavar="NAME", help="(%(default)s)")
    parser.add_argument("--work", required=True, type=Path, help="features, checkpoints, adapters")
    parser.add_argument("--page", type=Path, help="the HTML page to write")
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--listings", type=int, default=2500, help="to learn each attribute from (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--split", default="test", help="for composition; the interventions are on val (%(default)s)")
    arguments = parser.parse_args(argv)
    material = read_material(arguments.model, arguments.catalog, arguments.work)
    attributes = [attribute_of(material, name) for name in arguments.attributes]
    options, limit = AdaptOptions(epochs=arguments.epochs), arguments.listings
    apart, whole = (train(material, attributes, options, limit, one, arguments.work) for one in (True, False))
    engine = load_engine(arguments.model)
    results, table = compare(engine, material, attributes, apart, whole, arguments.split)
    pairs = list(pairs_of(material, attributes[0], "val"))[:PAIRS]
    of_layers, of_groups = carried(material.model, apart.base[0], pairs, 2 * material.model.config.width)
    where = f"{len(pairs)} titles of val, {attributes[0].name}"
    for layer, shares in enumerate(of_layers):
        for linear, value in zip(LINEARS, shares, strict=True):
            results.append(Result(metric=f"carried_{layer}_{linear}", value=float(value), unit="share", where=where))
    sizes = turned(whole.adapters[0], material.model)
    rank = float(spearmanr(np.abs(of_groups).ravel(), sizes.ravel()).statistic)
    results.append(Result(metric="rank_correlation", value=rank, unit="rho", against="its adapter", where=where))
    if arguments.page:
        about = {
            "model": arguments.model,
            "catalog": arguments.catalog,
            "attribute": attributes[0].name,
            "where": where,
        }
        write_page(arguments.page, about, table, of_layers, of_groups)
    write_report("composition", results, ("torch", "numpy"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
