"""Search over a view: near ones of each part, then one way of scoring and ordering them all.

Every hit's score is the exact cosine, in the same arithmetic wherever it was found; ties are in the order of keys. What
is searched exactly is exact, ties at the last hit included. Approximate or not, a query gets k hits where k products
may be hits.

Shapes: Q queries of one filter, n rows of the view, F candidates of a query.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from index.approximate import Approximate, Lists
from index.exact import ROUNDING, SPARE, Mask, Rows, Vectors, nearest, nearest_of, score
from index.gpu import MAX_NEIGHBOURS, GpuFlat
from index.manifest import Depth, depth_for
from index.memory import View
from index.planner import Plan, Work, choose, neighbours_for
from index.segment import Segment

MOSTLY = 0.9  # share of rows from which on those that may not be hits are taken out afterwards
WIDEN = 4  # times as many candidates, where those before end within a tie
PRECEDENCE = (Plan.MASKED, Plan.WIDENED, Plan.APPROXIMATE, Plan.EXACT)  # of the parts' plans, for that of the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One answer: the product's id, its cosine in [-1, 1], its key in the store."""

    product_id: str
    score: float
    key: int


@dataclass(slots=True, kw_only=True)  # one is made for each query: a frozen one takes three times as long
class Found:
    """What was found for one query, the best first: ids, cosines and keys side by side, and how."""

    product_ids: list[str]
    scores: list[float]
    keys: list[int]
    plan: Plan

    def without(self, product_ids: Collection[str], k: int) -> Found:
        """The best k that are none of these."""
        kept = [place for place, one in enumerate(self.product_ids) if one not in product_ids][:k]
        if len(kept) == len(self.product_ids):
            return self
        return Found(
            product_ids=[self.product_ids[place] for place in kept],
            scores=[self.scores[place] for place in kept],
            keys=[self.keys[place] for place in kept],
            plan=self.plan,
        )

    def part(self, places: slice) -> Found:
        """Some of them."""
        return Found(
            product_ids=self.product_ids[places], scores=self.scores[places], keys=self.keys[places], plan=self.plan
        )

    @property
    def hits(self) -> list[Hit]:
        """The same, hit by hit."""
        found = zip(self.product_ids, self.scores, self.keys, strict=True)
        return [Hit(product_id=product_id, score=score, key=key) for product_id, score, key in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """(Q, F) rows of the view with their cosines, -inf for none.

    rest: (Q,) what the cosines of the part's other rows do not exceed by more than `ROUNDING`, where it was searched
    exactly and there are others.
    """

    rows: Rows
    scores: Vectors
    plan: Plan
    rest: Vectors | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of the view from `first` on: a segment, or the fresh ones."""

    first: int
    vectors: Vectors
    segment: Segment | None = None


def search(view: View, queries: Vectors, k: int, masks: Sequence[Mask | None]) -> list[Found]:
    """The nearest k of each query, (Q, D) of unit norm.

    masks: (n,) of living rows that pass each query's filter, None without filter; equal filters share one array.
    """
    by_mask: dict[int, list[int]] = {}
    for query, mask in enumerate(masks):
        by_mask.setdefault(id(mask), []).append(query)
    found: dict[int, Found] = {}
    for members in by_mask.values():
        group = Group(view=view, mask=masks[members[0]], k=k)
        found |= dict(zip(members, group.search(queries[members]), strict=True))
    return [found[query] for query in range(len(queries))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Queries with one filter, or without any. exactly: whether no index is used."""

    view: View
    mask: Mask | None
    k: int
    exactly: bool = False

    @property
    def allowed(self) -> Mask | None:
        """(n,) the rows that may be hits; None: all."""
        return self.view.alive if self.mask is None else self.mask

    def search(self, queries: Vectors, spare: int = SPARE) -> list[Found]:
        """See the function `search`; `spare`: candidates of each part beyond those that are needed."""
        num_allowed = count(self.allowed, len(self.view))
        if num_allowed == 0:
            return [Found(product_ids=[], scores=[], keys=[], plan=Plan.EXACT) for _ in queries]
        parts = [self.candidates(part, queries, spare) for part in view_parts(self.view)]
        rows, scores = parts[0].rows, parts[0].scores
        if len(parts) > 1:
            rows = np.concatenate([part.rows for part in parts], axis=1)
            scores = np.concatenate([part.scores for part in parts], axis=1)
        plan = next(plan for plan in PRECEDENCE if any(part.plan is plan for part in parts))
        answers = self.best(rows, scores, plan)
        rests = [part.rest for part in parts if part.rest is not None] if plan is Plan.EXACT else []
        again = [query for query, answer in enumerate(answers) if self.is_unsure(query, answer, num_allowed, rests)]
        if again:
            wider = WIDEN * (self.k + spare) if plan is Plan.EXACT else spare
            exactly = replace(self, exactly=True)
            found = exactly.search(np.ascontiguousarray(queries[again]), wider)
            for query, answer in zip(again, found, strict=True):
                answers[query] = answer
        return answers

    def is_unsure(self, query: int, answer: Found, num_allowed: int, rests: Sequence[Vectors]) -> bool:
        """Whether there are more hits than were found, or the last is equal to what was not looked at, as far as matrix
        products tell."""
        if len(answer.keys) < self.k:
            return len(answer.keys) < num_allowed
        return any(rest[query] >= answer.scores[-1] - ROUNDING for rest in rests)

    def candidates(self, part: Part, queries: Vectors, spare: int) -> Candidates:
        """What one part has, by the plan that is cheapest for it."""
        allowed = None if self.allowed is None else self.allowed[part.first : part.first + len(part.vectors)]
        num_rows, num_allowed = len(part.vectors), count(allowed, len(part.vectors))
        segment = part.segment
        if num_allowed and not self.exactly and segment is not None and segment.on_gpu is not None:
            found = compared_on_gpu(part, segment.on_gpu, queries, self.k + spare, allowed, num_allowed)
            if found is not None:
                return found
        if num_allowed == 0 or self.exactly or segment is None or segment.index is None:
            return exact(part, queries, self.k + spare, allowed, num_allowed)
        work = Work(
            num_rows=num_rows,
            num_allowed=num_allowed,
            num_lists=segment.index.most if isinstance(segment.index, Lists) else None,
            num_queries=len(queries),
            width=queries.shape[1],
        )
        plan = choose(work, segment.info.depths, self.k)
        if plan is Plan.EXACT:
            return exact(part, queries, self.k + spare, allowed, num_allowed)
        depth = depth_for(segment.info.depths, neighbours_for(self.k, work.share))
        num_candidates = min(num_rows, max(depth.num_candidates, self.k))
        num_neighbours = min(num_candidates, depth.num_neighbours)
        depth = replace(depth, num_candidates=num_candidates, num_neighbours=num_neighbours)
        scores, rows = self.near(part, segment.index, queries, depth, allowed, plan)
        return Candidates(rows=rows + part.first, scores=scores, plan=Plan.APPROXIMATE if self.mask is None else plan)

    def near(
        self, part: Part, index: Approximate, queries: Vectors, depth: Depth, allowed: Mask | None, plan: Plan
    ) -> tuple[Vectors, Rows]:
        """(Q, F) scores and rows of a part by its index, -inf for none.

        An index that is not told of the filter finds the nearest `depth.num_neighbours`: where k of them are allowed,
        these are the nearest allowed. Where not, because a filter keeps little of what lies near a query, it is told;
        if it cannot be, the query is compared with all that are allowed.
        """
        assert part.segment is not None
        depths = part.segment.info.depths
        if plan is Plan.MASKED and isinstance(index, Lists) and allowed is not None:
            rows = index.find_allowed(queries, depths, allowed, self.k, depth.num_candidates)
            return score(queries, part.vectors, rows), rows
        rows = index.find(queries, depth)
        scores = score(queries, part.vectors, rows)
        if allowed is None:
            return scores, rows
        few = take_out(scores, rows, allowed, depth.num_neighbours, self.k)
        if len(few):
            others = np.ascontiguousarray(queries[few])
            if isinstance(index, Lists):
                rows[few] = index.find_allowed(others, depths, allowed, self.k, depth.num_candidates)
            else:
                num_allowed = count(allowed, len(allowed))
                fetch = min(rows.shape[1], num_allowed)
                rows[few] = -1
                rows[few, :fetch] = nearest_allowed(others, part.vectors, fetch, allowed, num_allowed)[1]
            scores[few] = score(others, part.vectors, rows[few])
        return scores, rows

    def best(self, rows: Rows, scores: Vectors, plan: Plan) -> list[Found]:
        """The best k of candidates, (Q, F)."""
        keys = self.view.keys[rows]
        best = np.arange(len(rows))[:, None], np.lexsort((keys, -scores), axis=1)[:, : self.k]
        rows, scores, keys = rows[best], scores[best], keys[best]
        there = scores > -np.inf
        ids = self.view.product_ids(np.where(there, rows, 0).ravel())
        width, values, all_keys = rows.shape[1], scores.tolist(), keys.tolist()
        return [
            Found(
                product_ids=ids[query * width : query * width + number],
                scores=values[query][:number],
                keys=all_keys[query][:number],
                plan=plan,
            )
            for query, number in enumerate(there.sum(axis=1).tolist())
        ]


def view_parts(view: View) -> list[Part]:
    """All rows of a view."""
    parts = [Part(first=first, vectors=segment.vectors, segment=segment) for segment, first in view.parts()]
    if len(view.fresh) or not parts:
        parts.append(Part(first=view.num_segment_rows, vectors=view.fresh))
    return parts


def exact(part: Part, queries: Vectors, fetch: int, allowed: Mask | None, num_allowed: int) -> Candidates:
    """The nearest `fetch` of the allowed rows of a part, the best first."""
    fetch = min(fetch, num_allowed)
    if fetch == 0:
        scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    elif allowed is None or num_allowed == len(part.vectors):
        scores, rows = nearest(queries, part.vectors, fetch)
    else:
        scores, rows = nearest_allowed(queries, part.vectors, fetch, allowed, num_allowed)
    return compared(part, queries, scores, rows, num_allowed)


def compared_on_gpu(
    part: Part, gpu: GpuFlat, queries: Vectors, fetch: int, allowed: Mask | None, num_allowed: int
) -> Candidates | None:
    """As `exact`. None where a filter keeps so little near a query that more would have to be found than a GPU can."""
    num_rows, fetch = len(part.vectors), min(fetch, num_allowed)
    num_found = min(num_rows, ceil(neighbours_for(fetch, num_allowed / num_rows)))
    if num_found > MAX_NEIGHBOURS:
        return None
    scores, rows = gpu.nearest(queries, num_found)
    kept = (scores, rows) if allowed is None else first_allowed(scores, rows, allowed, fetch)
    return None if kept is None else compared(part, queries, *kept, num_allowed)


def compared(part: Part, queries: Vectors, scores: Vectors, rows: Rows, num_allowed: int) -> Candidates:
    """(Q, F) rows of a part, the nearest of those allowed, the best first, and their scores up to `ROUNDING`."""
    rest = None if rows.shape[1] == num_allowed else scores[:, -1]
    return Candidates(rows=rows + part.first, scores=score(queries, part.vectors, rows), plan=Plan.EXACT, rest=rest)


def nearest_allowed(
    queries: Vectors, vectors: Vectors, fetch: int, allowed: Mask, num_allowed: int
) -> tuple[Vectors, Rows]:
    """(Q, fetch) scores and rows, the best first. Where nearly all are allowed, the others are taken out afterwards."""
    if num_allowed >= MOSTLY * len(vectors) and (wider := 2 * fetch) <= len(vectors):
        kept = first_allowed(*nearest(queries, vectors, wider), allowed, fetch)
        if kept is not None:
            return kept
    return nearest_of(queries, vectors, np.flatnonzero(allowed), fetch)


def first_allowed(scores: Vectors, rows: Rows, allowed: Mask, fetch: int) -> tuple[Vectors, Rows] | None:
    """(Q, fetch) of neighbours, (Q, F), the first that are allowed; None where a query has fewer."""
    fails = ~allowed[rows]
    if np.any(rows.shape[1] - fails.sum(axis=1) < fetch):
        return None
    order = np.argsort(fails, axis=1, kind="stable")[:, :fetch]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def take_out(scores: Vectors, rows: Rows, allowed: Mask, num_neighbours: int, k: int) -> Rows:
    """Leaves what is allowed of (Q, F) candidates. Returns the queries among whose nearest fewer than k are."""
    passes = allowed[rows] & (rows >= 0)
    closest = np.argpartition(-scores, num_neighbours - 1, axis=1)[:, :num_neighbours]
    few = np.take_along_axis(passes, closest, axis=1).sum(axis=1) < k
    scores[~passes] = -np.inf
    return np.flatnonzero(few)


def count(allowed: Mask | None, num_rows: int) -> int:
    """Rows that are allowed."""
    return num_rows if allowed is None else int(np.count_nonzero(allowed))
