"""What words and picture contribute: the same queries without one of them, and with a wrong one.

A query is asked five ways, always against the rows' vectors by both: by both, by its words alone, by its picture alone,
and by both with its words or its picture exchanged for those of a random listing of another product. Only queries that
have words and picture are asked, so that all five figures are of the same queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing
from item.evaluation.bootstrap import mean_interval, paired_interval
from item.evaluation.exam import Answers, Exam, Positions
from item.evaluation.result import Result, result_of

Vectors = npt.NDArray[np.float32]

COMPLETE = "words and picture"  # the subset of the queries that have both
WAYS = {  # how a query is asked -> the same in words
    "words": "without its picture",
    "wrong picture": "with a wrong picture",
    "picture": "without its words",
    "wrong words": "with wrong words",
}


def swapped(
    listings: Sequence[Listing], products: Sequence[str], part: Literal["words", "picture"], seed: int = 0
) -> list[Listing]:
    """The listings, each with its words or its picture exchanged for those of another one, of another product.

    products: what each is about, two different ones at least.
    """
    names = np.array(products)
    generator = np.random.default_rng(seed)
    others = [listings[generator.choice(np.flatnonzero(names != own))] for own in products]
    if part == "picture":
        return [replace(own, images=other.images) for own, other in zip(listings, others, strict=True)]
    return [
        replace(own, title=other.title, description=other.description)
        for own, other in zip(listings, others, strict=True)
    ]


def complete(vectors: Mapping[str, Vectors]) -> Positions:
    """Positions of the rows that have a vector by words and one by picture."""
    return np.flatnonzero(vectors["words"].any(axis=1) & vectors["picture"].any(axis=1))


def contributions(
    exam: Exam, system: str, catalog: Vectors, queries: Mapping[str, Vectors], rows: Mapping[str, Vectors]
) -> Iterator[Result]:
    """Recall@1 of the same product and accuracy by five neighbours, by both and in `WAYS`.

    catalog: (N, D) by both; queries, rows: by "both" and in each way, (Q, D) of the exam's queries and of its rows.
    Each way has its value, and with `against` "both" how much higher it is than by both.
    """
    asked, asked_rows = complete(queries), exam.rows[complete(rows)]

    def answers(way: str) -> list[Answers]:
        of_rows = catalog.copy()
        of_rows[exam.rows] = rows[way]
        found, named = exam.same_product(catalog, queries[way]), exam.leaf_by_neighbours(of_rows)
        return [found.only(asked), named.only(asked_rows)]

    whole = answers("both")
    for way in ("both", *(way for way in WAYS if way in queries and way in rows)):
        for given, by_both in zip(answers(way), whole, strict=True):
            if not len(given.ids):
                continue
            measure = next(iter(given.values))
            interval = mean_interval(given.values[measure], given.products)
            said = {"system": system, "inputs": way, "subset": COMPLETE}
            yield result_of(given, measure, interval, **said)
            if way != "both":
                change = paired_interval(given.values[measure], by_both.values[measure], given.products)
                yield result_of(given, measure, change, **said, against="both")


def sentences(results: Sequence[Result]) -> Iterator[str]:
    """What the contributions say, a sentence for each system and task."""
    values = {(one.system, one.task, one.measure, one.inputs): one.value for one in results if one.against is None}
    for (system, task, measure, inputs), by_both in values.items():
        if inputs == "both":
            keys = {said: (system, task, measure, way) for way, said in WAYS.items()}
            ways = ", ".join(f"to {values[key]:.3f} {said}" for said, key in keys.items() if key in values)
            yield f"{system}, {task}: a query's {measure} goes from {by_both:.3f} {ways}."
