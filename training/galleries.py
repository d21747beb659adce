"""Queries to look at: which a model answers right and another one wrong, the other way round, and its mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing
from item.evaluation.exam import BY_NEIGHBOURS, SAME_PRODUCT, Positions
from item.evaluation.sitting import Sitting
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.thumbnail import thumbnail

Vectors = npt.NDArray[np.float32]
Key = tuple[str, str]  # a contestant's name and inputs

NUM_EXAMPLES = 12  # of each gallery
NUM_HITS = 5


@dataclass(frozen=True, kw_only=True)
class Card:
    """A listing as shown. picture: a data URI. As a hit also its cosine, its rank and whether it is right."""

    title: str
    picture: str | None
    category: str
    score: float | None = None
    rank: int | None = None
    right: bool = False


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A system's first hits, best first; where none is right, the first right one follows with its rank."""

    system: str
    hits: Sequence[Card]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query, what else is said of it, and what was found."""

    asked: Card
    rankings: Sequence[Ranking]
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Some examples of `count` alike."""

    title: str
    count: int
    examples: Sequence[Example]


def find_galleries(
    sitting: Sitting, system: Key, rival: Key | None, limits: PreprocessorConfig, seed: int = 0
) -> list[Gallery]:
    """Up to `NUM_EXAMPLES` of each kind, drawn with the seed.

    A query is right where its first hit is, and wrong where it is not; where several rows tie at the top and only some
    of them are right, it is neither.

    Args:
        system, rival: names and inputs; without a rival the mistakes are one gallery.
        limits: of the pictures.
    """
    return [
        *_search_galleries(sitting, system, rival, limits, seed),
        *_leaf_galleries(sitting, system, limits, seed),
    ]


def _search_galleries(
    sitting: Sitting, system: Key, rival: Key | None, limits: PreprocessorConfig, seed: int
) -> Iterator[Gallery]:
    found = sitting.find(*system, SAME_PRODUCT)
    other = sitting.find(*rival, SAME_PRODUCT) if rival else None
    if found is None:
        return
    contestants, positions = [found[0]], found[1].positions
    now = found[1].values["recall@1"]
    kinds = {f"{system_name(*system)} wrong": now == 0}
    if rival and other:
        contestants.append(other[0])
        then = other[1].values["recall@1"]  # of the same queries: which are answered depends on the exam alone
        ours, theirs = system_name(*system), system_name(*rival)
        kinds = {
            f"{ours} right, {theirs} wrong": (now == 1) & (then == 0),
            f"{ours} wrong, {theirs} right": (now == 0) & (then == 1),
            f"{ours} and {theirs} wrong": (now == 0) & (then == 0),
        }
    exam = sitting.exam
    base_names = np.array(exam.base_names, dtype=object)
    for kind, chosen in kinds.items():
        examples = []
        for i in _draw(positions[chosen], seed):
            query, own = exam.queries[i], exam.rows[i] if exam.offers is None else None
            rankings = [
                Ranking(
                    system=system_name(one.name, one.inputs),
                    hits=_hits(one.queries[i], one.catalog, exam.catalog, base_names == query.group_id, limits, own),
                )
                for one in contestants
            ]
            examples.append(Example(asked=_card(query, limits), rankings=rankings))
        yield Gallery(title=f"{SAME_PRODUCT.capitalize()}: {kind}", count=int(chosen.sum()), examples=examples)


def _leaf_galleries(sitting: Sitting, system: Key, limits: PreprocessorConfig, seed: int) -> Iterator[Gallery]:
    """Wrong leaves, each with the rows of train that voted for it and the first one of the right leaf."""
    found = sitting.find(*system, BY_NEIGHBOURS)
    if found is None:
        return
    contestant, answers = found
    vectors = contestant.catalog if contestant.for_leaf is None else contestant.for_leaf
    train = sitting.exam.leaf_rows()[0]
    rows = [sitting.exam.catalog[i] for i in train]
    wrong = np.flatnonzero(answers.values["accuracy"] == 0)
    examples = []
    for i in _draw(wrong, seed):
        row, leaf = answers.positions[i], answers.expected[i]
        right = np.array([one.category == leaf for one in rows])
        ranking = Ranking(system="neighbours in train", hits=_hits(vectors[row], vectors[train], rows, right, limits))
        said = f"named {' / '.join(answers.predicted[i] or ('nothing',))}"
        examples.append(Example(asked=_card(sitting.exam.catalog[row], limits), rankings=[ranking], said=said))
    yield Gallery(title="Leaf category: named wrongly", count=len(wrong), examples=examples)


def system_name(name: str, inputs: str) -> str:
    """How a contestant is called where single inputs stand beside both."""
    return name if inputs in ("both", name) else f"{name} ({inputs})"


def _draw(positions: Positions, seed: int) -> list[int]:
    drawn = np.random.default_rng(seed).permutation(positions)[:NUM_EXAMPLES]
    return sorted(drawn.tolist())


def _hits(
    query: Vectors,
    base: Vectors,
    rows: Sequence[Listing],
    right: npt.NDArray[np.bool_],
    limits: PreprocessorConfig,
    own: int | None = None,
) -> list[Card]:
    """query: (D,); base: (N, D) of the rows; right: (N,) which of them are; own: the row that the query is."""
    similarities = base @ query
    order = np.argsort(-similarities, kind="stable")
    order = order[order != own]
    places = [*range(min(NUM_HITS, len(order)))]
    first_right = np.flatnonzero(right[order])[:1].tolist()
    places += [place for place in first_right if place >= NUM_HITS]
    return [
        replace(
            _card(rows[order[place]], limits),
            score=float(similarities[order[place]]),
            rank=place + 1,
            right=bool(right[order[place]]),
        )
        for place in places
    ]


def _card(listing: Listing, limits: PreprocessorConfig) -> Card:
    return Card(
        title=listing.title or listing.description,
        picture=thumbnail(listing.images[0], limits) if listing.images else None,
        category=" / ".join(listing.category),
    )
