"""Approximate indexes of a segment's vectors.

`Graph` is FAISS's HNSW over vectors of 16 or 8 bits a value: the fastest. `Lists` is FAISS's IVF, over 8 bits or 1 a
value: less memory, and it can be told of a filter. They find candidates; exact cosines tell which of these are near.

Vectors are first in the order of `adding_order`: the last are added when the index has been tuned with them as queries,
for a graph finds the neighbours of what it holds too easily. Then a graph's vectors are laid out cluster by cluster:
what a search compares is then mostly in the processor's caches.

Shapes: Q queries, F candidates of a query, n rows of width D.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from index.exact import Mask, Rows, Vectors, nearest
from index.manifest import Depth, depth_for

GRAPH = "HNSW"
EF_CONSTRUCTION = 128
TRAINING_ROWS = 64  # for each list
GRAPH_TRAINING_ROWS = 100_000
BLOCK = 16_384  # vectors that are added, compared or copied at once
ROWS_MAPPED = 512  # of a file, which may lie anywhere in it, at once
SPREAD = 64 * BLOCK  # rows among which a block's are spread evenly; more would be written far apart on the disk
TUNING_QUERIES = 4096
SPARE_LEVELS = 1.05  # times the links of higher levels that are expected
MAX_CLUSTERS, FEW_ROWS, FEW_CLUSTERS = 1024, 2048, 64  # of `close_together`
CLUSTER_TRAINING_ROWS, CLUSTER_ROUNDS = 64, 5  # of k-means; rows for each cluster


class Approximate(Protocol):
    """An index that was made for one segment.

    most: how much `Depth.effort` makes sense.
    """

    faiss_index: Any
    most: int

    def find(self, queries: Vectors, depth: Depth) -> Rows:
        """(Q, F) rows, the best first as far as the index can tell; -1 for none."""
        ...


class Graph:
    """HNSW; `effort` is its ef. It cannot be told of a filter: links lead through what is not allowed, and beyond it
    too little is found."""

    def __init__(self, faiss_index: Any) -> None:
        self.faiss_index = faiss_index
        self.most = faiss_index.ntotal

    def find(self, queries: Vectors, depth: Depth) -> Rows:
        """See `Approximate`."""
        parameters = faiss.SearchParametersHNSW(efSearch=depth.effort)  # type: ignore[attr-defined]
        return np.asarray(self.faiss_index.search(queries, depth.num_candidates, params=parameters)[1])


class Lists:
    """Inverted lists; `effort` is the number of them that are looked into. It can be told of a filter."""

    def __init__(self, faiss_index: Any) -> None:
        self.faiss_index = faiss_index
        self.most = faiss_index.nlist
        self.centroids: Vectors = faiss_index.quantizer.reconstruct_n(0, faiss_index.nlist)
        self.list_of = lists_of(faiss_index)

    def find(self, queries: Vectors, depth: Depth) -> Rows:
        """See `Approximate`."""
        scores, lists = self.faiss_index.quantizer.search(queries, min(depth.effort, self.most))
        return self.look_into(queries, lists, scores, depth.num_candidates, None)

    def find_allowed(self, queries: Vectors, depths: Sequence[Depth], allowed: Mask, k: int, count: int) -> Rows:
        """(Q, count) rows of those that are allowed, (n,), of which k are wanted.

        What a filter keeps may lie far off: lists without any of it are passed over, and a query looks as deep as its
        k-th allowed row is likely to lie.
        """
        passing = np.bincount(self.list_of[allowed], minlength=self.most)
        scores = queries @ self.centroids.T
        depth = depth_for(depths, self.rank(scores, passing, k))
        scores[:, passing == 0] = -np.inf
        num_lists = min(int(np.count_nonzero(passing)), depth.effort)
        lists = np.ascontiguousarray(np.argpartition(-scores, num_lists - 1, axis=1)[:, :num_lists])
        scores = np.take_along_axis(scores, lists, axis=1)
        with selector(allowed) as only:
            return self.look_into(queries, lists, scores, count, only)

    def rank(self, scores: Vectors, passing: Rows, k: int) -> int:
        """About how many rows, allowed or not, lie as near as the k-th allowed one, for the worst of the queries.

        scores: (Q, L) of the centroids of L lists. passing: (L,) allowed rows of each.
        """
        order = np.argsort(-scores, axis=1)
        sizes = np.cumsum(np.bincount(self.list_of, minlength=self.most)[order], axis=1)
        last = np.argmax(np.cumsum(passing[order], axis=1) >= min(k, int(passing.sum())), axis=1)
        return int(np.take_along_axis(sizes, last[:, None], axis=1).max())

    def look_into(self, queries: Vectors, lists: Rows, scores: Vectors, count: int, only: Any) -> Rows:
        """(Q, count) rows of the best candidates in lists, (Q, P), of which the queries' scores are known."""
        parameters = faiss.IVFSearchParameters(nprobe=lists.shape[1], sel=only)  # type: ignore[call-arg]
        rows, their = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
        x, of, at, D, found = (faiss.swig_ptr(one) for one in (queries, lists, scores, their, rows))
        # The wrapper in Python knows no parameters.
        self.faiss_index.search_preassigned_c(len(queries), x, count, of, at, D, found, False, parameters)
        return rows


@contextmanager
def selector(allowed: Mask) -> Iterator[Any]:
    """What tells FAISS which rows are allowed, (n,)."""
    bits = np.packbits(allowed, bitorder="little")  # FAISS reads this memory
    yield faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))


def lists_of(index: Any) -> npt.NDArray[np.int32]:
    """(n,) the inverted list of each row."""
    found = np.empty(index.ntotal, dtype=np.int32)
    lists = index.invlists
    for number in range(index.nlist):
        if size := lists.list_size(number):
            found[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
    return found


def adding_order(count: int) -> Rows:
    """(count,) rows: evenly spaced ones, `num_queries` of them, come last.

    Of the others each block is spread over many: a catalogue is often in the order of its categories, and a graph that
    gets one after the other finds a quarter of a percent less.
    """
    step = max(10, count // TUNING_QUERIES)
    last = np.arange(step - 1, count, step)[:TUNING_QUERIES]
    others = np.delete(np.arange(count), last)
    blocks = []
    for start in range(0, len(others), SPREAD):
        near = others[start : start + SPREAD]
        num_blocks = -(-len(near) // BLOCK)
        blocks += [near[number::num_blocks] for number in range(num_blocks)]
    return np.concatenate([*blocks, last])


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
        reserve(index, count)
    else:
        index.cp.min_points_per_centroid = 1  # it warns below 39
        num_training = TRAINING_ROWS * index.nlist
    if not index.is_trained:
        sample = np.sort(np.random.default_rng(0).permutation(count)[:num_training])
        index.train(copied(vectors, sample))
    return index


def reserve(index: Any, count: int) -> None:
    """Memory of a graph for so many rows, which would else be twice what is needed while it grows."""
    storage: Any = faiss.downcast_index(index.storage)
    on_ground, above = index.hnsw.nb_neighbors(0), index.hnsw.nb_neighbors(1)
    num_links = count * (on_ground + SPARE_LEVELS * above / (above - 1))  # of `above` rows one is in the next level too
    for held, size in ((storage.codes, count * storage.sa_code_size()), (index.hnsw.neighbors, int(num_links))):
        held.resize(size)
        held.clear()  # which keeps the memory


def add(index: Any, vectors: Vectors) -> None:
    """Adds (n, D) to a FAISS index, a block at a time."""
    for start in range(0, len(vectors), BLOCK):
        index.add(np.array(vectors[start : start + BLOCK]))
        forget(vectors)


def forget(vectors: Vectors) -> None:
    """Lets go of the memory of vectors that are mapped to be read; they stay in the cache of the disk."""
    owner: Any = vectors
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def copied(vectors: Vectors, rows: Rows) -> Vectors:
    """(m, D) of some rows, (m,). Of a mapped file the kernel maps 16 pages for each row: a few rows at once, then no
    more of it is in memory."""
    found = np.empty((len(rows), vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), ROWS_MAPPED):
        found[start : start + ROWS_MAPPED] = vectors[rows[start : start + ROWS_MAPPED]]
        forget(vectors)
    return found


def close_together(vectors: Vectors) -> Rows:
    """(n,) an order of rows in which near ones follow each other: cluster by cluster, within each again."""
    order = clustered(vectors, min(MAX_CLUSTERS, int(np.sqrt(len(vectors)))))
    for start in range(0, len(order), FEW_ROWS):
        few = order[start : start + FEW_ROWS]
        num_clusters = min(FEW_CLUSTERS, int(np.sqrt(len(few))))
        order[start : start + FEW_ROWS] = few[clustered(copied(vectors, few), num_clusters)]
    return order


def clustered(vectors: Vectors, num_clusters: int) -> Rows:
    """(n,) an order of rows by k-means' clusters, each of which is followed by the nearest of those that are left."""
    count, width = vectors.shape
    sample = np.sort(np.random.default_rng(0).permutation(count)[: CLUSTER_TRAINING_ROWS * num_clusters])
    clusters: Any = faiss.Kmeans(width, num_clusters, niter=CLUSTER_ROUNDS, seed=0, min_points_per_centroid=1)
    clusters.train(copied(vectors, sample))
    place = np.argsort(chained(clusters.centroids))
    of_rows = np.empty(count, dtype=np.int64)
    for start in range(0, count, BLOCK):
        block = vectors[start : start + BLOCK]
        of_rows[start : start + BLOCK] = place[nearest(block, clusters.centroids, 1)[1][:, 0]]
        forget(vectors)
    return np.argsort(of_rows, kind="stable")


def chained(points: Vectors) -> Rows:
    """(n,) an order of few points: after each the nearest of those that are left."""
    alike = points @ points.T
    order, left = np.zeros(len(points), dtype=np.int64), np.ones(len(points), dtype=bool)
    for place in range(1, len(points)):
        left[order[place - 1]] = False
        order[place] = np.argmax(np.where(left, alike[order[place - 1]], -np.inf))
    return order


def wrapped(index: Any) -> Approximate:
    """A FAISS index as one of ours."""
    return Graph(index) if isinstance(index, faiss.IndexHNSW) else Lists(index)


def read(path: Path) -> Approximate:
    """What FAISS has written to a file. Raises RuntimeError where it cannot be read."""
    return wrapped(faiss.read_index(str(path)))
