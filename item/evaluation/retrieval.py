"""Finding the same product: recall@1, recall@10 and the reciprocal rank of each query, ties at their expected value.

Identical titles and pictures are common in shops, so equal similarities are too. A sort would rank them by their place
in the file; here each measure is its mean over all orders of the tied rows. All three measures depend only on the rank
of the first row of the same product, so ir-measures scores every rank once (Success@1, Success@10, RR) and a query's
value is the mean of those scores, weighted by the probability of each rank. Needs the extra `programs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

TIE = 1e-7  # cosines that differ by no more are equal: the rounding of a float32 product
DEPTH = 1000  # as TREC runs are cut: a first row below this rank counts as not found
_BLOCK_CELLS = 2**23  # similarities held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class SameProduct:
    """Measures of Q queries, (Q,) float64 in [0, 1] each; NaN for a query whose product is not in the base.

    Recall@k is 1 where at least one of the first k rows is of the query's product, whatever the number of its rows.
    """

    recall_at_1: Values
    recall_at_10: Values
    reciprocal_rank: Values


def same_product(
    queries: Vectors,
    base: Vectors,
    *,
    query_products: Sequence[str | None],
    base_products: Sequence[str | None],
    own_rows: Sequence[int] | None = None,
) -> SameProduct:
    """Rank the base for each query by cosine and score where the first row of the same product stands.

    Args:
        queries: (Q, D) float32 of unit norm, or zero (similarity 0 to everything, so a tie of all rows).
        base: (N, D) float32, likewise.
        query_products: Q names of products; None: unknown, no row is of the same product.
        base_products: N names; None: of no product that is asked for.
        own_rows: where the queries are rows of the base, the row of each, which is left out for it.
    """
    codes = {product: code for code, product in enumerate(dict.fromkeys(filter(None, base_products)))}
    base_codes = np.array([codes.get(product or "", -1) for product in base_products])
    query_codes = np.array([codes.get(product or "", -2) for product in query_products])
    own = None if own_rows is None else np.asarray(own_rows)
    scores = np.empty((len(queries), 3))
    step = max(1, _BLOCK_CELLS // max(1, len(base)))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        similarities = queries[block] @ base.T
        relevant = query_codes[block, None] == base_codes[None, :]
        if own is not None:
            rows = np.arange(len(similarities))
            similarities[rows, own[block]] = -np.inf
            relevant[rows, own[block]] = False
        scores[block] = _expected_scores(similarities, relevant)
    return SameProduct(recall_at_1=scores[:, 0], recall_at_10=scores[:, 1], reciprocal_rank=scores[:, 2])


def unit(x: Vectors) -> Vectors:
    """(N, D) -> (N, D) with rows of unit norm; rows of zeros stay."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _expected_scores(similarities: Vectors, relevant: npt.NDArray[np.bool_]) -> Values:
    """(Q, N) similarities and which rows are relevant -> (Q, 3), NaN where none is."""
    found = relevant.any(axis=1)
    best = np.where(relevant, similarities, -np.inf).max(axis=1, initial=-np.inf)
    ahead = similarities - np.where(found, best, 0)[:, None]
    tied = np.abs(ahead) <= TIE
    placements = zip((ahead > TIE).sum(1), tied.sum(1), (tied & relevant).sum(1), strict=True)
    scores = [_score_placement(int(a), int(t), int(g)) if g else np.full(3, np.nan) for a, t, g in placements]
    return np.array(scores).reshape(-1, 3)


@cache
def _score_placement(above: int, tied: int, relevant: int) -> Values:
    """(3,) expected scores when `tied` rows, of which `relevant` count, follow `above` others in a random order.

    The first relevant one is the j-th of the tied with the negative hypergeometric probability
    p_1 = relevant / tied,  p_(j+1) = p_j (tied - relevant - j + 1) / (tied - j).
    """
    j = np.arange(1, tied - relevant + 1)
    probability = relevant / tied * np.cumprod(np.append(1.0, (tied - relevant - j + 1) / (tied - j)))
    ranks = np.minimum(above + 1 + np.arange(len(probability)), DEPTH + 1)
    return np.asarray(probability @ _scores_by_rank()[ranks])


@cache
def _scores_by_rank() -> Values:
    """(DEPTH + 2, 3): ir-measures' scores of a run whose only relevant row stands at that rank (row 0 is not used)."""
    import ir_measures
    from ir_measures import RR, Success

    column = {measure: position for position, measure in enumerate((Success @ 1, Success @ 10, RR))}
    ladder = {str(rank): float(-rank) for rank in range(1, DEPTH + 1)}
    runs = {rank: {row: ladder[row] for row in list(ladder)[: int(rank)]} for rank in ladder}
    scores = np.zeros((DEPTH + 2, len(column)))
    for metric in ir_measures.iter_calc(list(column), {rank: {rank: 1} for rank in ladder}, runs):
        scores[int(metric.query_id), column[metric.measure]] = metric.value
    return scores
