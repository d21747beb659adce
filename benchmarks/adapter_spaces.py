"""Whether vectors that different adapters make may share an index.

    python -m benchmarks.adapter_spaces --model M --catalog DATA/fashion --offers OFFERS/fashion --json FILE

M has adapters of top levels (training.adapt). All listings of the catalogue are encoded by their words, by the model
alone and by the adapter of their top level; so are second offers of a split's listings, and by another top level's
adapter. Then each offer looks for its listing: `same_product_QUERY_in_INDEX`, recall@1, where QUERY and INDEX say who
made the vectors: `base`, `own`, `another`. `loss_*`: how much less than base in base, paired, with intervals by
products. `cosine_*`: the mean cosine of the same listing's vectors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.report import Result, share, write_report
from item.adapters.adapter import Adapter
from item.catalog.listing import Listing
from item.engine.interface import Engine
from item.engine.loading import load_engine
from item.errors import ListingError, ModelError
from item.evaluation.bootstrap import mean_interval, paired_interval
from item.evaluation.exam import Exam
from item.preprocessing.prepared import Prepared
from training.material import read_material

Vectors = npt.NDArray[np.float32]

WAYS = (("base", "base"), ("own", "own"), ("own", "base"), ("base", "own"), ("another", "base"), ("another", "own"))


def by_words(engine: Engine, listings: Sequence[Listing]) -> tuple[list[Listing], list[Prepared]]:
    """Those that have words, made ready without their pictures."""
    kept, prepared = list[Listing](), list[Prepared]()
    for listing, one in zip(listings, engine.prepare_all(listings), strict=True):
        if not isinstance(one, ListingError) and (words := one.only("words")) is not None:
            kept.append(listing)
            prepared.append(words)
    return kept, prepared


def vectors(engine: Engine, prepared: Sequence[Prepared], adapters: Sequence[Adapter | None]) -> Vectors:
    """(N, D), so many at a time that memory stays flat."""
    step = 1024
    parts = [
        engine.encode_prepared(prepared[start : start + step], adapters[start : start + step])
        for start in range(0, len(prepared), step)
    ]
    return np.concatenate(parts)


def measure(engine: Engine, catalog: str, offers: str, split: str) -> list[Result]:
    """All ways."""
    adapters = engine.adapters.specialists()
    if len(adapters) < 2:
        raise ModelError(
            f"{engine.adapters.model}: has {len(adapters)} adapters of top levels; it takes two to compare"
        )
    material = read_material(catalog, offers, split)
    listings, ready = by_words(engine, material.listings)
    queries, asked = by_words(engine, material.offers_of(split))
    top_of = {listing.product_id: listing.category[:1] for listing in listings}
    tops = sorted(adapters)
    another = {top: adapters[tops[(number + 1) % len(tops)]] for number, top in enumerate(tops)}
    of_query = [top_of.get(query.group_id or "", ()) for query in queries]
    made = {
        "base": vectors(engine, asked, [None] * len(asked)),
        "own": vectors(engine, asked, [adapters.get(top) for top in of_query]),
        "another": vectors(engine, asked, [another.get(top) for top in of_query]),
    }
    index = {
        "base": vectors(engine, ready, [None] * len(ready)),
        "own": vectors(engine, ready, [adapters.get(listing.category[:1]) for listing in listings]),
    }
    exam = Exam(catalog=listings, offers=queries, split=split)
    where = f"{Path(catalog).name}, {split}, {len(queries)} offers in {len(listings)} listings, words"
    results = list[Result]()
    found = {way: exam.same_product(index[way[1]], made[way[0]]) for way in WAYS}
    baseline = found["base", "base"]
    groups, metric = baseline.products, "recall@1"
    for (query, stored), answers in found.items():
        right, before = answers.values[metric], baseline.values[metric]
        name = f"{query}_in_{stored}"
        results.append(share(f"same_product_{name}", mean_interval(right, groups), where))
        if answers is not baseline:
            results.append(share(f"loss_{name}", paired_interval(before, right, groups), where, "base_in_base"))
    for name in ("own", "another"):
        cosine = float((made["base"] * made[name]).sum(axis=1).mean())
        results.append(Result(metric=f"cosine_{name}", value=cosine, unit="cosine", against="base", where=where))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapter_spaces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path, help="with adapters of two top levels or more")
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--offers", required=True, help="second offers of its listings")
    parser.add_argument("--split", default="test", help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="the results file to write")
    arguments = parser.parse_args(argv)
    results = measure(load_engine(arguments.model), arguments.catalog, arguments.offers, arguments.split)
    write_report("adapter_spaces", results, ("torch", "numpy"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
