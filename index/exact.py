"""Exact search by cosine, and the one way in which scores are computed: they depend on query and product alone."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from item.errors import SpaceError

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# FAISS sums float32 in an order that depends on the number of queries: two of its scores of one pair differ by less.
ROUNDING = 1e-5
NORM_TOLERANCE = 1e-3
# Rows and queries of one matrix product, whose scores take 16 MiB. FAISS's 1,024 rows make its threads meet four times
# as often, its 4,096 queries take four times the memory.
ROWS_AT_ONCE, QUERIES_AT_ONCE = 4096, 1024
# Asked for beyond k, so that a tie at the last hit is seldom cut by the first search.
SPARE = 8
# Vectors that are copied side by side at once.
COPIED = 65_536
# Scores of one FAISS call at most: with their rows 48 MiB.
MAX_SCORES = 2**22


def unit(queries: Vectors, width: int) -> Vectors:
    """(Q, D) scaled to unit norm. Raises SpaceError for another width, and for a query without direction."""
    if queries.ndim != 2 or queries.shape[1] != width:
        raise SpaceError(f"queries of shape {queries.shape}: the index holds vectors of width {width}, (Q, {width})")
    lengths = np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64))
    if bad := np.flatnonzero(~np.isfinite(lengths) | (lengths == 0)).tolist():
        raise SpaceError(f"query {bad[0]}: its length is {lengths[bad[0]]}: no direction to search in")
    return np.ascontiguousarray(queries / lengths[:, None], dtype=np.float32)


def is_unit(lengths: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(n,) whether vectors of these lengths are of unit norm."""
    return np.abs(lengths - 1) <= NORM_TOLERANCE


def score(queries: Vectors, vectors: Vectors, rows: Rows) -> Vectors:
    """(Q, F) cosines of each query, (Q, D), with its own rows, (Q, F), of (n, D); -inf for row -1.

    FAISS sums each pair by itself: unlike those of `nearest`, a score depends on the pair alone.
    """
    found = np.empty(rows.shape, dtype=np.float32)
    ip, x, y, ids = (faiss.swig_ptr(one) for one in (found, queries, vectors, rows))
    faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]  # its stubs do not know it
        ip, x, y, ids, vectors.shape[1], *rows.shape
    )
    np.clip(found, -1.0, 1.0, out=found)
    found[rows < 0] = -np.inf
    return found


def nearest_of(queries: Vectors, vectors: Vectors, rows: Rows, count: int) -> tuple[Vectors, Rows]:
    """(Q, count) scores and rows, as `nearest`, of some rows, (m,), of (n, D); count is at most m."""
    found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), COPIED):
        some = rows[start : start + COPIED]
        scores, places = nearest(queries, vectors[some], min(count, len(some)))
        found = best_of(count, found, (scores, some[places]))
    return found


def best_of(count: int, *parts: tuple[Vectors, Rows]) -> tuple[Vectors, Rows]:
    """(Q, count) of the scores and rows of parts, (Q, F), the best first, ties in the order of parts."""
    scores, rows = (np.hstack(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def nearest(queries: Vectors, vectors: Vectors, count: int) -> tuple[Vectors, Rows]:
    """(Q, count) scores and rows of the nearest of (n, D), the best first, up to `ROUNDING`; count is at most n."""
    # Matrix products from two queries on. By default FAISS 1.15 scans for each alone until all together have
    # 128,000 numbers: 64 queries over 300,000 rows of width 384 took 3.3 s on one core instead of 0.2 s.
    faiss.cvar.distance_compute_blas_threshold = 2 * vectors.shape[1]
    faiss.cvar.distance_compute_blas_database_bs = ROWS_AT_ONCE
    faiss.cvar.distance_compute_blas_query_bs = QUERIES_AT_ONCE
    step = max(1, MAX_SCORES // count)
    parts = [
        faiss.knn(queries[start : start + step], vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        for start in range(0, len(queries), step)
    ]
    scores, rows = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(rows)
