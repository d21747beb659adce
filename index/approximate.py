"""Approximate indexes of a segment's vectors, with the exact cosines of what they find.

`Graph` is FAISS's HNSW over vectors of 8 bits a value: the fastest. `Lists` is its IVF, over 8 bits or 1 a value:
less memory, and it can be told of a filter. Both find candidates, whose cosines are then taken of the vectors.

Some rows are added last, when the index has been tuned with them as queries: a graph finds the neighbours of what it
holds too easily. At the end a graph's rows are put into the order of clusters: what a search compares is then mostly in
the processor's caches. FAISS's numbers are thus places in an `order` of rows.

Shapes: Q queries, F candidates of a query, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from index.exact import Mask, Rows, Vectors, nearest, score
from index.manifest import Depth, depth_for

GRAPH = "HNSW"
EF_CONSTRUCTION = 128
TRAINING_ROWS = 64  # for each list
GRAPH_TRAINING_ROWS = 100_000
BLOCK = 65_536  # vectors that are added at once
TUNING_QUERIES = 4096
MAX_CLUSTERS, CLUSTER_TRAINING_ROWS, CLUSTER_ROUNDS = 1024, 64, 5  # of `close_together`; training rows of each


class Approximate(Protocol):
    """An index that was made for one segment.

    order: (n,) the row of each place that FAISS knows. most: how much `Depth.effort` makes sense.
    """

    faiss_index: Any
    order: Rows
    most: int

    def near(self, queries: Vectors, vectors: Vectors, depth: Depth) -> tuple[Vectors, Rows]:
        """(Q, F) cosines and rows, unordered; -1 and -inf for none. `vectors`: (n, D), those of the segment."""
        ...


class Graph:
    """HNSW; `effort` is its ef. It cannot be told of a filter: links lead through what is not allowed, and beyond it
    too little is found."""

    def __init__(self, faiss_index: Any, order: Rows) -> None:
        self.faiss_index, self.order = faiss_index, order
        self.most = faiss_index.ntotal

    def near(self, queries: Vectors, vectors: Vectors, depth: Depth) -> tuple[Vectors, Rows]:
        """See `Approximate`."""
        parameters = faiss.SearchParametersHNSW(efSearch=depth.effort)  # type: ignore[attr-defined]
        _, places = self.faiss_index.search(queries, depth.num_candidates, params=parameters)
        return scored(queries, vectors, places, self.order)


class Lists:
    """Inverted lists; `effort` is the number of them that are looked into. It can be told of a filter."""

    def __init__(self, faiss_index: Any, order: Rows) -> None:
        self.faiss_index, self.order = faiss_index, order
        self.most = faiss_index.nlist
        self.centroids: Vectors = faiss_index.quantizer.reconstruct_n(0, faiss_index.nlist)
        self.list_of = lists_of(faiss_index)

    def near(self, queries: Vectors, vectors: Vectors, depth: Depth) -> tuple[Vectors, Rows]:
        """See `Approximate`."""
        scores, lists = self.faiss_index.quantizer.search(queries, min(depth.effort, self.most))
        places = self.look_into(queries, lists, scores, depth.num_candidates, None)
        return scored(queries, vectors, places, self.order)

    def told(
        self, queries: Vectors, vectors: Vectors, depths: Sequence[Depth], allowed: Mask, k: int, count: int
    ) -> tuple[Vectors, Rows]:
        """(Q, count) cosines and rows of those that are allowed, (n,), of which k are wanted.

        What a filter keeps may lie far off: lists without any of it are passed over, and a query looks as deep as its
        k-th allowed row is likely to lie.
        """
        allowed = allowed[self.order]
        passing = np.bincount(self.list_of[allowed], minlength=self.most)
        scores = queries @ self.centroids.T
        depth = depth_for(depths, self.rank(scores, passing, k))
        scores[:, passing == 0] = -np.inf
        num_lists = min(int(np.count_nonzero(passing)), depth.effort)
        lists = np.ascontiguousarray(np.argpartition(-scores, num_lists - 1, axis=1)[:, :num_lists])
        scores = np.take_along_axis(scores, lists, axis=1)
        with selector(allowed) as only:
            places = self.look_into(queries, lists, scores, count, only)
        return scored(queries, vectors, places, self.order)

    def rank(self, scores: Vectors, passing: Rows, k: int) -> int:
        """About how many rows, allowed or not, lie as near as the k-th allowed one, for the worst of the queries.

        scores: (Q, L) of the centroids of L lists. passing: (L,) allowed rows of each.
        """
        order = np.argsort(-scores, axis=1)
        sizes = np.cumsum(np.bincount(self.list_of, minlength=self.most)[order], axis=1)
        last = np.argmax(np.cumsum(passing[order], axis=1) >= min(k, int(passing.sum())), axis=1)
        return int(np.take_along_axis(sizes, last[:, None], axis=1).max())

    def look_into(self, queries: Vectors, lists: Rows, scores: Vectors, count: int, only: Any) -> Rows:
        """(Q, count) places of the best candidates in lists, (Q, P), of which the queries' scores are known."""
        parameters = faiss.IVFSearchParameters(nprobe=lists.shape[1], sel=only)  # type: ignore[call-arg]
        places, their = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
        x, of, at, D, found = (faiss.swig_ptr(one) for one in (queries, lists, scores, their, places))
        # The wrapper in Python knows no parameters.
        self.faiss_index.search_preassigned_c(len(queries), x, count, of, at, D, found, False, parameters)
        return places


@contextmanager
def selector(allowed: Mask) -> Iterator[Any]:
    """What tells FAISS which rows are allowed, (n,)."""
    bits = np.packbits(allowed, bitorder="little")  # FAISS reads this memory
    yield faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))


def lists_of(index: Any) -> npt.NDArray[np.int32]:
    """(n,) the inverted list of each place."""
    found = np.empty(index.ntotal, dtype=np.int32)
    lists = index.invlists
    for number in range(index.nlist):
        if size := lists.list_size(number):
            found[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
    return found


def scored(queries: Vectors, vectors: Vectors, places: Rows, order: Rows) -> tuple[Vectors, Rows]:
    """(Q, F) cosines and rows of places, -1 for none."""
    rows = np.where(places < 0, -1, order[places])
    return score(queries, vectors, rows), rows


def adding_order(count: int, most: int = TUNING_QUERIES) -> Rows:
    """(count,) rows: evenly spaced ones, at most `most`, come last."""
    step = max(10, count // most)
    last = np.arange(step - 1, count, step)[:most]
    return np.concatenate([np.delete(np.arange(count), last), last])


def num_queries(count: int) -> int:
    """Of `count` rows, those that are added last."""
    return min(TUNING_QUERIES, count // max(10, count // TUNING_QUERIES))


def train(vectors: Vectors, factory: str) -> Any:
    """An empty FAISS index for (n, D), trained on a sample of it."""
    count, width = vectors.shape
    index: Any = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    if factory.startswith(GRAPH):
        index.hnsw.efConstruction = EF_CONSTRUCTION
        num_training = GRAPH_TRAINING_ROWS
    else:
        index.cp.min_points_per_centroid = 1  # it warns below 39
        num_training = TRAINING_ROWS * index.nlist
    sample = np.sort(np.random.default_rng(0).permutation(count)[:num_training])
    index.train(np.ascontiguousarray(vectors[sample]))
    return index


def add(index: Any, vectors: Vectors, rows: Rows) -> None:
    """Adds rows of (n, D) to a FAISS index, a block at a time."""
    for start in range(0, len(rows), BLOCK):
        index.add(np.ascontiguousarray(vectors[rows[start : start + BLOCK]]))


def close_together(vectors: Vectors, order: Rows) -> Rows:
    """(n,) places, which hold the rows `order`, such that near ones follow each other: cluster by cluster.

    A search of a million rows of 256 dimensions takes 0.65 to 0.75 of the time with them.
    """
    count, width = vectors.shape
    num_clusters = min(MAX_CLUSTERS, int(np.sqrt(count)))
    sample = np.sort(np.random.default_rng(0).permutation(count)[: CLUSTER_TRAINING_ROWS * num_clusters])
    clusters: Any = faiss.Kmeans(width, num_clusters, niter=CLUSTER_ROUNDS, seed=0, min_points_per_centroid=1)
    clusters.train(np.ascontiguousarray(vectors[sample]))
    starts = range(0, count, BLOCK)
    of_rows = np.concatenate([nearest(vectors[one : one + BLOCK], clusters.centroids, 1)[1][:, 0] for one in starts])
    return np.argsort(of_rows[order], kind="stable")


def rearrange(index: Any, order: Rows, places: Rows) -> Rows:
    """Gives a graph's rows other places; returns the row of each, (n,). The graph is there twice meanwhile."""
    index.permute_entries(places)
    return order[places]


def read(path: Path, factory: str, order: Rows | None) -> Approximate:
    """What was written with faiss.write_index; no order: by an earlier version. Raises RuntimeError."""
    index = faiss.read_index(str(path))
    return wrap(index, factory, adding_order(index.ntotal, 1024) if order is None else order)


def wrap(index: Any, factory: str, order: Rows) -> Approximate:
    """A FAISS index as one of ours."""
    return Graph(index, order) if factory.startswith(GRAPH) else Lists(index, order)
