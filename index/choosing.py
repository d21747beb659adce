"""Which index a segment gets, and how it is searched: by its rows and the memory there is, tuned against exact search.

Small segments are searched exactly. docs/decisions/010 compares the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from index.approximate import Approximate, add, adding_order, num_queries, train, wrap
from index.exact import Rows, Vectors, nearest
from index.manifest import Depth
from item.errors import ConfigError

logger = logging.getLogger(__name__)

FLAT = "Flat"
FLAT_ROWS = 20_000  # up to which exact search costs about as much as any other
GRAPH_LINKS = 16
LINK_BYTES, ID_BYTES = 8.5, 8  # of a link of the graph, its share of higher levels included; of a row in a list
DEPTHS = (10, 16, 40, 160, 640)  # neighbours that a search is tuned for
SHALLOW, FEWER = 16, 4  # beyond so many, every fourth query tells enough: an error of a search has less weight there
CANDIDATES = (1.6, 2, 3, 4, 8, 16)  # times the depth, that are tried
AT_ONCE = 256  # queries searched exactly together
HOPEFUL, GAIN = 0.9, 0.001  # above that recall, twice the effort has to bring so much more of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the indexes of segments have to reach, and what they may take.

    recall: recall@10 against exact search, above 0 and below 1. bytes_per_row: of an index, beside the vectors, which
    stay on the disk and in its cache; None: as many as the fastest takes.
    """

    recall: float = 0.99
    bytes_per_row: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.recall < 1:
            raise ConfigError(f"recall: {self.recall} is not between 0 and 1")
        if self.bytes_per_row is not None and self.bytes_per_row < 1:
            raise ConfigError(f"bytes_per_row: {self.bytes_per_row} is below 1")

    def factory(self, count: int, width: int) -> str:
        """FAISS's name of the index of `count` vectors. Raises ConfigError where none is as small as it has to be."""
        if count <= FLAT_ROWS:
            return FLAT
        sizes = factories(count, width)
        for name, size in sizes.items():
            if self.bytes_per_row is None or size <= self.bytes_per_row:
                return name
        least = int(min(sizes.values())) + 1
        raise ConfigError(f"bytes_per_row: {self.bytes_per_row}; an index of {width} dimensions takes at least {least}")


def factories(count: int, width: int) -> dict[str, float]:
    """FAISS's names and the bytes each takes a row, the fastest first."""
    lists = num_lists(count)
    return {
        f"HNSW{GRAPH_LINKS},SQ8": width + GRAPH_LINKS * LINK_BYTES,
        f"IVF{lists},SQ8": width + ID_BYTES,
        f"IVF{lists},RaBitQfs": width / 8 + 12 + ID_BYTES,
    }


def num_lists(count: int) -> int:
    """Inverted lists of `count` vectors: four times the root, to a power of two."""
    return int(2 ** round(np.log2(4 * np.sqrt(count))))


def build(vectors: Vectors, factory: str, recall: float) -> tuple[Any, Rows, tuple[Depth, ...]]:
    """A FAISS index of (n, D), the row of each of its places, (n,), and the depths that it was tuned for."""
    order, num_last = adding_order(len(vectors)), num_queries(len(vectors))
    first, last = order[:-num_last], order[-num_last:]
    index = train(vectors, factory)
    add(index, vectors, first)
    depths = tune(wrap(index, factory, first), vectors, np.ascontiguousarray(vectors[last]), recall)
    add(index, vectors, last)
    return index, order, depths


def tune(index: Approximate, vectors: Vectors, queries: Vectors, recall: float) -> tuple[Depth, ...]:
    """For each depth K the fewest candidates, then the least effort, that reach a recall of the nearest K.

    Measured on queries, (Q, D), that the index does not hold; reached by a standard error. Where nothing reaches it,
    the best that was tried.
    """
    exact = nearest_of(index.order, vectors, queries, DEPTHS[-1])
    depths: list[Depth] = []
    for K in DEPTHS:
        if K >= len(index.order):
            break
        best: Depth | None = None
        for times in CANDIDATES:
            some = slice(None, None, 1 if K <= SHALLOW else FEWER)
            attempt = partial(tried, index, vectors, np.ascontiguousarray(queries[some]), exact[some], K, times)
            found = least_effort(attempt, recall, index.most)
            if best is None or found.recall > best.recall:
                best = found
            if found.recall >= recall:
                break
        assert best is not None
        if best.recall < recall:
            logger.warning("recall of the nearest %d: %.4f at best, %.4f is asked for", K, best.recall, recall)
        depths.append(best)
    return tuple(depths)


def least_effort(attempt: Callable[[int], Depth], recall: float, most: int) -> Depth:
    """The least effort that reaches a recall, or one at which more of it hardly helps."""
    too_little, enough = 0, 1
    best = attempt(enough)
    while best.recall < recall:
        more = attempt(min(most, 2 * enough))
        if more.effort <= enough or (best.recall > HOPEFUL and more.recall < best.recall + GAIN):
            return max(best, more, key=lambda depth: depth.recall)
        too_little, enough, best = enough, more.effort, more
    while enough - too_little > max(1, enough // 32):
        middle = attempt((too_little + enough) // 2)
        if middle.recall >= recall:
            enough, best = middle.effort, middle
        else:
            too_little = middle.effort
    return best


def tried(
    index: Approximate, vectors: Vectors, queries: Vectors, exact: Rows, K: int, times: float, effort: int
) -> Depth:
    """A depth of `times` K candidates, with the recall that it reaches of the first K of `exact`."""
    num_candidates = min(len(index.order), round(times * K))
    depth = Depth(num_neighbours=K, effort=effort, num_candidates=num_candidates, recall=0.0)
    scores, rows = index.near(queries, vectors, depth)
    best = np.take_along_axis(rows, np.argsort(-scores, axis=1)[:, :K], axis=1)
    found = [np.isin(want[:K], have).mean() for want, have in zip(exact, best, strict=True)]
    return replace(depth, recall=float(np.mean(found) - np.std(found) / np.sqrt(len(found))))


def nearest_of(rows: Rows, vectors: Vectors, queries: Vectors, count: int) -> Rows:
    """(Q, count) of some rows of (n, D) those nearest to each query, the best first."""
    wanted = np.isin(np.arange(len(vectors)), rows)
    fetch, count = min(len(vectors), count + len(vectors) - len(rows)), min(count, len(rows))
    found = []
    for start in range(0, len(queries), AT_ONCE):  # of what is fetched, most is not kept
        _, near = nearest(queries[start : start + AT_ONCE], vectors, fetch)
        order = np.argsort(~wanted[near], axis=1, kind="stable")[:, :count]
        found.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(found)
