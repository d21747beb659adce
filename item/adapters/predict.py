"""Categories by heads, in two passes: all listings by the model alone, then each again by its category's adapter.

The first pass gives P(top level), and P(path | top level) by the model alone. In the second, listings are encoded with
the adapters of the top levels that are likely, in one mixed batch; an adapter's own head then replaces the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from item.adapters.head import Array, Category, Features, Head, Heads, levels_of

LIKELY = 0.05  # of a top level, from which its adapter is asked

Adapted = Callable[[Sequence[tuple[int, str]]], Features]  # pairs of a listing's row and an adapter -> (pairs, F)


@dataclass(frozen=True, kw_only=True)
class Specialist:
    """An adapter that may be asked: its name, and its head."""

    name: str
    head: Head


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable paths of one listing, the best first, each with the probability of each of its levels.

    adapter: that told the best path from others of its top level; "": the model alone. unknown: within [0, 1].
    """

    paths: list[tuple[Category, list[float]]]
    adapter: str
    unknown: float
    abstained: bool


def predict(
    heads: Heads,
    features: Features,
    specialists: Mapping[Category, Specialist],
    adapted: Adapted,
    *,
    top_k: int,
    start: Category = (),
) -> list[Prediction]:
    """Predicts N listings.

    Args:
        heads: of the model alone, that of the root among them.
        features: (N, F) by the model alone.
        specialists: by the top level that they are for.
        adapted: the second pass.
        top_k: paths of a listing.
        start: only paths below it, or it itself; their probabilities are those given that it is right.
    """
    root = heads.of(())
    assert root is not None
    given = np.array([[float(top == start[:1]) for top in root.paths]])
    p_top = given.repeat(len(features), axis=0) if start else root.probabilities(features)
    p_paths = {top: head.probabilities(features) for top in root.paths if (head := heads.of(top)) is not None}
    asks = np.array([[top in specialists for top in root.paths]])
    pairs = [(row, column) for row, column in np.argwhere(asks & (p_top >= LIKELY)).tolist()]
    asked: dict[tuple[int, int], Array] = {}
    if pairs:
        seen = adapted([(row, specialists[root.paths[column]].name) for row, column in pairs])
        for column in {column for _, column in pairs}:
            here = [number for number, (_, one) in enumerate(pairs) if one == column]
            by_head = specialists[root.paths[column]].head.probabilities(seen[here])
            asked |= {pairs[number]: p for number, p in zip(here, by_head, strict=True)}
    known = heads.novelty
    unknown = np.zeros(len(features)) if known is None else known.unknown(features, heads.words_width)
    predictions = []
    for row in range(len(features)):
        paths, p, names = list[Category](), list[float](), list[str]()
        for column, top in enumerate(root.paths):
            specialist = specialists.get(top) if (row, column) in asked else None
            head = heads.of(top) if specialist is None else specialist.head
            below = head.paths if head is not None else (top,)
            of_below = asked.get((row, column), p_paths[top][row] if top in p_paths else np.ones(1))
            paths += below
            p += (p_top[row, column] * of_below).tolist()
            names += ["" if specialist is None else specialist.name] * len(below)
        predictions.append(
            best_paths(
                paths,
                np.array(p),
                names,
                top_k=top_k,
                start=start,
                unknown=float(unknown[row]),
                threshold=1.0 if known is None else known.threshold,
            )
        )
    return predictions


def best_paths(
    paths: Sequence[Category],
    p: Array,
    names: Sequence[str],
    *,
    top_k: int,
    start: Category,
    unknown: float,
    threshold: float,
) -> Prediction:
    """The prediction of one listing from all paths, their probabilities and the adapters that they are from."""
    below = [number for number, path in enumerate(paths) if path[: len(start)] == start]
    total = float(p[below].sum())
    if total <= 0:
        return Prediction(paths=[], adapter="", unknown=unknown, abstained=True)
    share = {number: float(p[number]) / total for number in below}
    levels = levels_of([paths[number] for number in below], np.array(list(share.values())))
    best = sorted(below, key=lambda number: (-share[number], paths[number]))[:top_k]
    return Prediction(
        paths=[
            (paths[one], [min(1.0, levels[paths[one][:depth]]) for depth in range(1, len(paths[one]) + 1)])
            for one in best
        ],
        adapter=names[best[0]],
        unknown=unknown,
        abstained=unknown > threshold,
    )
