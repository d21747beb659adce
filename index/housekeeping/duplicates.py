"""Near duplicates: groups of listings that are probably one product, and variants, which differ in a word.

The cosine of two listings' vectors cannot tell a duplicate from the same shirt in another size, so it only proposes
pairs: each product and its nearest. A pair is judged by titles and pictures apart. Words weigh as they are rare, w(t) =
log(1 + N / n_t) of N titles, of which n_t have the word:

    overlap = w(A and B) / w(A or B)               weighted Jaccard resemblance (Broder 1997)
    containment = w(A and B) / min(w(A), w(B))     1 where one title says nothing that the other does not

twins        the same title, case and punctuation aside, and the same picture: their cosine by picture alone is high
duplicates   like pictures, and one title is contained in the other: a second seller leaves words out
variants     like pictures, and titles that overlap, but each has words that the other lacks: red and blue

Pairs that are twins or duplicates are joined into groups, those of variants likewise (union-find; Hernández and Stolfo
1995 join records so). What the catalogue itself puts into one group is known and no finding. Settings were chosen on
two catalogues with planted duplicates (benchmarks.housekeeping): pictures encoded again keep their cosine where a
difference hash of 256 bits loses a dozen bits.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from index.housekeeping.finding import Finding, Kind
from index.housekeeping.inventory import Inventory
from item.catalog.listing import Listing
from item.evaluation.twins import folded_title

SAME_PICTURE = 0.95  # cosine by picture alone: one file, encoded again
LIKE_PICTURE = 0.8  # cut or lit otherwise
CONTAINED = 0.95  # not 1, so that a frequent word may differ
MIN_OVERLAP = 0.4  # of duplicates: a title of one frequent word is contained in many
VARIANT_OVERLAP = 0.6
PAIRS_AT_ONCE = 65_536  # whose pictures are compared together


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two rows, a < b, and how they are alike: overlap of the titles, cosine of the pictures."""

    a: int
    b: int
    kind: Kind
    overlap: float
    picture: float


class Titles:
    """The words of N titles and what they weigh."""

    def __init__(self, titles: Iterable[str]) -> None:
        self.folded = [folded_title(Listing(title=title)) for title in titles]
        counts = Counter(word for title in self.folded for word in set(title.split()))
        N = len(self.folded)
        self.weights = {word: math.log(1 + N / count) for word, count in counts.items()}

    def weight(self, words: Iterable[str]) -> float:
        """w of a set of words."""
        return math.fsum(self.weights[word] for word in words)

    def overlap(self, a: int, b: int) -> float:
        """Of two titles, in [0, 1]; 0 where one has no words."""
        left, right = set(self.folded[a].split()), set(self.folded[b].split())
        return self.weight(left & right) / self.weight(left | right) if left and right else 0.0

    def containment(self, a: int, b: int) -> float:
        """Of two titles, in [0, 1]; 0 where one has no words."""
        left, right = set(self.folded[a].split()), set(self.folded[b].split())
        return self.weight(left & right) / min(self.weight(left), self.weight(right)) if left and right else 0.0


def find_duplicates(inventory: Inventory) -> Iterator[Finding]:
    """Groups of twins, of duplicates and of variants, each product in one group of each at most."""
    pairs = [one for one in find_pairs(inventory) if not is_known(inventory, one.a, one.b)]
    alike = [one for one in pairs if one.kind is not Kind.VARIANTS]
    yield from _groups(inventory, alike, {Kind.TWINS, Kind.DUPLICATES})
    yield from _groups(inventory, [one for one in pairs if one.kind is Kind.VARIANTS], {Kind.VARIANTS})


def is_known(inventory: Inventory, a: int, b: int) -> bool:
    """Whether the catalogue itself says that two rows are one product."""
    return inventory.groups[a] is not None and inventory.groups[a] == inventory.groups[b]


def find_pairs(inventory: Inventory) -> Iterator[Pair]:
    """All pairs of products and their nearest that pass, known ones too."""
    titles = Titles(inventory.titles)
    has_picture = inventory.has_picture
    rows = np.repeat(np.arange(len(inventory)), inventory.near.shape[1])
    near = inventory.near.ravel()
    candidates = np.unique(np.stack([np.minimum(rows, near), np.maximum(rows, near)], axis=1)[near >= 0], axis=0)
    for start in range(0, len(candidates), PAIRS_AT_ONCE):
        a, b = candidates[start : start + PAIRS_AT_ONCE].T
        cosines = np.einsum("pd,pd->p", inventory.picture[a], inventory.picture[b])
        cosines[~has_picture[a] & ~has_picture[b]] = 1.0  # nothing to tell them apart
        for left, right, cosine in zip(a.tolist(), b.tolist(), cosines.tolist(), strict=True):
            if cosine >= LIKE_PICTURE and (kind := judge(titles, left, right, cosine)) is not None:
                yield Pair(a=left, b=right, kind=kind, overlap=titles.overlap(left, right), picture=cosine)


def judge(titles: Titles, a: int, b: int, cosine: float) -> Kind | None:
    """What two rows with like pictures are; None: nothing in particular."""
    overlap = titles.overlap(a, b)
    if overlap < MIN_OVERLAP:
        return None
    if titles.folded[a] == titles.folded[b] and cosine >= SAME_PICTURE:
        return Kind.TWINS
    if titles.containment(a, b) >= CONTAINED:
        return Kind.DUPLICATES
    return Kind.VARIANTS if overlap >= VARIANT_OVERLAP else None


def _groups(inventory: Inventory, pairs: list[Pair], kinds: set[Kind]) -> Iterator[Finding]:
    """The groups that pairs of these kinds make."""
    by_root: defaultdict[int, list[Pair]] = defaultdict(list)
    roots = join((one.a, one.b) for one in pairs)
    for one in pairs:
        by_root[roots[one.a]].append(one)
    for members in by_root.values():
        rows = sorted({row for one in members for row in (one.a, one.b)})
        kind = Kind.DUPLICATES if Kind.DUPLICATES in kinds else Kind.VARIANTS
        if all(one.kind is Kind.TWINS for one in members):
            kind = Kind.TWINS
        overlap, picture = (float(np.mean([getattr(one, name) for one in members])) for name in ("overlap", "picture"))
        yield Finding(
            kind=kind,
            product_ids=tuple(inventory.product_ids[row] for row in rows),
            score=(overlap + picture) / 2,
            why=f"{_SAID[kind]}; titles share {overlap:.0%} of their words by weight, cosine of the pictures"
            f" {picture:.2f}",
        )


_SAID = {
    Kind.TWINS: "the same title and the same picture",
    Kind.DUPLICATES: "like pictures, and one title says nothing that the other does not",
    Kind.VARIANTS: "like pictures, and titles that differ in a few words",
}


def join(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Union-find: every member of a pair to the smallest one of its group."""
    parent: dict[int, int] = {}

    def root(member: int) -> int:
        while parent.setdefault(member, member) != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return {member: root(member) for member in list(parent)}
