"""Products that are probably in a wrong category: their neighbours are confident of another one.

Confident learning (Northcutt, Jiang and Chuang 2021) on the vote of neighbours, leave one out: p(j | x) is the share of
similarity that x's nearest products of other groups give to the path j (item.neighbours). What counts as confident
differs from path to path: t_j is the mean of p(j | x) over the products that the catalogue puts into j. Product x of
path i is listed where another path j has the largest share, p(j | x) >= t_j, and p(i | x) < t_i. The score is the
margin p(j | x) - p(i | x). Unlike theirs, t_j is held between 1/2 and 3/4 where it judges j: a path of a few products
has a t_j near 0, and one where all agree has a t_j of 1, which a second error among the neighbours misses.

A path with fewer than MIN_MEMBERS products cannot be expected to have neighbours in it: its products are judged by the
deepest of its levels that has as many.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from index.housekeeping.finding import Finding, Kind
from index.housekeeping.inventory import Category, Inventory
from item.neighbours import leaf, vote

NUM_VOTERS = 10
MIN_MEMBERS = 5
MIN_SHARE, MAX_SHARE = 0.5, 0.75  # between which a path's threshold lies
NUM_BESIDE = 3  # voters that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """What neighbours say of a row: the path it has and the one they prefer, with the shares of both; the voters."""

    row: int
    given: Category
    preferred: Category
    given_share: float
    preferred_share: float
    voters: tuple[int, ...]

    @property
    def margin(self) -> float:
        """In [-1, 1]; above 0 where the neighbours prefer another path."""
        return self.preferred_share - self.given_share


def find_wrong_categories(inventory: Inventory) -> Iterator[Finding]:
    """Products whose neighbours are confident of another path."""
    doubts = list(ask_neighbours(inventory))
    usual = thresholds(doubts)
    for one in doubts:
        if is_confident(one, usual):
            voters = [row for row in one.voters if inventory.categories[row][: len(one.preferred)] == one.preferred]
            yield Finding(
                kind=Kind.CATEGORY,
                product_ids=(inventory.product_ids[one.row],),
                score=one.margin,
                why=f"is in {' / '.join(one.given)} ({one.given_share:.0%} of its neighbours' vote); they are in"
                f" {' / '.join(one.preferred)} ({one.preferred_share:.0%})",
                beside=tuple(inventory.product_ids[row] for row in voters[:NUM_BESIDE]),
            )


def ask_neighbours(inventory: Inventory) -> Iterator[Doubt]:
    """What the neighbours say of every product that has a category and neighbours with one."""
    paths = judged_paths(inventory.categories)
    for row, given in enumerate(paths):
        if not given:
            continue
        voters, similarities = voters_of(inventory, paths, row)
        preferred = leaf([paths[other] for other in voters], similarities)
        if preferred is None:
            continue
        shares = vote([paths[other] for other in voters], similarities)
        yield Doubt(
            row=row,
            given=given,
            preferred=preferred,
            given_share=shares.get(given, 0.0),
            preferred_share=shares[preferred],
            voters=tuple(voters),
        )


def judged_paths(categories: Sequence[Category]) -> list[Category]:
    """Each path cut to the deepest level that has MIN_MEMBERS products; () where none has."""
    members = Counter(path[:level] for path in categories for level in range(1, len(path) + 1))
    cut = {
        path: next((path[:level] for level in range(len(path), 0, -1) if members[path[:level]] >= MIN_MEMBERS), ())
        for path in set(categories)
    }
    return [cut[path] for path in categories]


def voters_of(inventory: Inventory, paths: Sequence[Category], row: int) -> tuple[list[int], list[float]]:
    """The nearest rows that may vote on one, and their similarities: of other groups, with a path."""
    group, voters, similarities = inventory.groups[row], list[int](), list[float]()
    for other, similarity in zip(inventory.near[row].tolist(), inventory.near_scores[row].tolist(), strict=True):
        if other >= 0 and paths[other] and (group is None or inventory.groups[other] != group):
            voters.append(other)
            similarities.append(similarity)
    return voters[:NUM_VOTERS], similarities[:NUM_VOTERS]


def thresholds(doubts: Sequence[Doubt]) -> dict[Category, float]:
    """t_j: the mean share of a path among the neighbours of its own products."""
    shares: defaultdict[Category, list[float]] = defaultdict(list)
    for one in doubts:
        shares[one.given].append(one.given_share)
    return {path: float(np.mean(values)) for path, values in shares.items()}


def is_confident(doubt: Doubt, usual: dict[Category, float]) -> bool:
    """Whether a product is listed; see the module. Of two paths where one is within the other, neither is wrong."""
    given, preferred = doubt.given, doubt.preferred
    level = min(len(given), len(preferred))
    return (
        given[:level] != preferred[:level]
        and doubt.preferred_share >= max(min(usual.get(preferred, 0.0), MAX_SHARE), MIN_SHARE)
        and doubt.given_share < usual[given]
    )
