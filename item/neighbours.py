"""Categories by the vote of neighbours: what PredictCategory answers from the index and what evaluation scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import fsum

Path = tuple[str, ...]


def vote(categories: Sequence[Path], similarities: Sequence[float]) -> dict[Path, float]:
    """Share of the positive similarity that the neighbours give to every level of their categories.

    Args:
        categories: K paths, levels the widest first; ``()`` for a neighbour without category, which has no vote.
        similarities: K cosines, the neighbours' to the query; one of zero or less is no vote.

    Returns:
        For every prefix of a voter's path its share in (0, 1], wider paths first; the shares of one level sum to 1
        where all voters reach it. Empty when there is no voter. The order of the neighbours makes no difference.
    """
    given = _similarities_by_path(categories, similarities)
    total = fsum(similarity for votes in given.values() for similarity in votes)
    below: defaultdict[Path, list[float]] = defaultdict(list)
    for path, votes in given.items():
        for level in range(1, len(path) + 1):
            below[path[:level]].extend(votes)
    return {path: fsum(below[path]) / total for path in sorted(below, key=lambda path: (len(path), path))}


def leaf(categories: Sequence[Path], similarities: Sequence[float]) -> Path | None:
    """The full path with the largest share of the positive similarity, or None when there is no voter.

    Equal shares: the path of the nearest neighbour, then the first in the alphabet.
    """
    given = _similarities_by_path(categories, similarities)
    return min(given, key=lambda path: (-fsum(given[path]), -max(given[path]), path), default=None)


def _similarities_by_path(categories: Sequence[Path], similarities: Sequence[float]) -> Mapping[Path, list[float]]:
    given: defaultdict[Path, list[float]] = defaultdict(list)
    for path, similarity in zip(categories, similarities, strict=True):
        if path and similarity > 0:
            given[path].append(float(similarity))
    return given
