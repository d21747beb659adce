"""Which index a segment gets, and how it is searched: by its rows and the memory there is, tuned against exact search.

Small segments are searched exactly. docs/decisions/010 compares the others.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from index.approximate import BLOCK, Approximate, add, forget, num_queries, train, wrapped
from index.exact import Rows, Vectors, best_of, nearest
from index.machine import memory_bytes
from index.manifest import FLAT, Depth
from item.errors import ConfigError

logger = logging.getLogger(__name__)

FLAT_ROWS = 20_000  # up to which exact search costs about as much as any other
GRAPH_LINKS = 16
LINK_BYTES, ID_BYTES = 8.5, 8  # of a link of the graph, its share of higher levels included; of a row in a list
MEMORY_SHARE = 0.5  # for one segment; as much again may be needed while it is written
DEPTHS = (10, 16, 40, 160, 640)  # neighbours that a search is tuned for
CANDIDATES = (1.2, 1.6, 2, 3, 4, 8, 16)  # times the neighbours that are wanted, worth a try
SHALLOW, FEWER = 16, 4  # beyond so many, every fourth query tells enough: an error of a search has less weight there
HOPEFUL, GAIN = 0.9, 0.001  # above that recall, twice the effort has to bring so much more of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the indexes of segments have to reach, and what they may take.

    recall: recall@10 against exact search, above 0 and below 1. bytes_per_row: of memory for the index; vectors
    are mapped from their file. None: `MEMORY_SHARE` of the machine's for each segment.
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
        limit = MEMORY_SHARE * memory_bytes() / count if self.bytes_per_row is None else self.bytes_per_row
        for name, size in sizes.items():
            if size <= limit:
                return name
        if self.bytes_per_row is None:
            return min(sizes, key=sizes.__getitem__)
        least = int(min(sizes.values())) + 1
        raise ConfigError(f"bytes_per_row: {self.bytes_per_row}; an index of {width} dimensions takes at least {least}")


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that make a `Choice`."""
    parser.add_argument(
        "--recall",
        type=float,
        default=Choice().recall,
        help="of the nearest 10, that indexes are tuned for (%(default)s)",
    )
    parser.add_argument(
        "--bytes-per-row",
        type=int,
        metavar="N",
        help="memory of an index, beside its vectors (half of the machine's, by rows)",
    )


def factories(count: int, width: int) -> dict[str, float]:
    """FAISS's names and the bytes of memory that each needs a row, the fastest first."""
    lists = num_lists(count)
    return {
        f"HNSW{GRAPH_LINKS},SQfp16": 2 * width + GRAPH_LINKS * LINK_BYTES,
        f"HNSW{GRAPH_LINKS},SQ8": width + GRAPH_LINKS * LINK_BYTES,
        f"IVF{lists},SQ8": width + ID_BYTES,
        f"IVF{lists},RaBitQfs": width / 8 + 12 + ID_BYTES,
    }


def num_lists(count: int) -> int:
    """Inverted lists of `count` vectors: four times the root, to a power of two."""
    return int(2 ** round(np.log2(4 * np.sqrt(count))))


def build(vectors: Vectors, factory: str, recall: float) -> tuple[Any, tuple[Depth, ...]]:
    """A FAISS index of (n, D), which are in the order of adding, and the depths that it was tuned for."""
    num_last = num_queries(len(vectors))
    first, last = vectors[:-num_last], np.array(vectors[-num_last:])
    index = train(vectors, factory)
    add(index, first)
    depths = tune(wrapped(index), first, last, recall)
    add(index, last)
    return index, depths


def tune(index: Approximate, vectors: Vectors, queries: Vectors, recall: float) -> tuple[Depth, ...]:
    """For each depth K the fewest candidates, then the least effort, that reach a recall of the nearest K.

    Measured on queries, (Q, D), that the index does not hold; reached by a standard error. Where nothing reaches it,
    the best that was tried.
    """
    fewer = np.array(queries[::FEWER])
    shallow, deep = (queries, nearest_to(queries, vectors, SHALLOW)), (fewer, nearest_to(fewer, vectors, DEPTHS[-1]))
    depths: list[Depth] = []
    for K in DEPTHS:
        if K >= len(vectors):
            break
        best: Depth | None = None
        for times in CANDIDATES:
            attempt = partial(tried, index, len(vectors), *(shallow if K <= SHALLOW else deep), K, times)
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


def tried(index: Approximate, num_rows: int, queries: Vectors, exact: Rows, K: int, times: float, effort: int) -> Depth:
    """A depth of `times` K candidates, with the recall that it reaches of the first K of `exact`.

    Those of them that are candidates are the first by exact cosines, too: none has to be taken.
    """
    num_candidates = min(num_rows, round(times * K))
    depth = Depth(num_neighbours=K, effort=effort, num_candidates=num_candidates, recall=0.0)
    rows = index.find(queries, depth)
    found = [np.isin(want[:K], have).mean() for want, have in zip(exact, rows, strict=True)]
    return replace(depth, recall=float(np.mean(found) - np.std(found) / np.sqrt(len(found))))


def nearest_to(queries: Vectors, vectors: Vectors, count: int) -> Rows:
    """(Q, count) of (n, D) the rows nearest to each query, the best first; all of them where they are fewer."""
    found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        scores, rows = nearest(queries, block, min(count, len(block)))
        found = best_of(count, found, (scores, rows + start))
        forget(vectors)
    return found[1]
