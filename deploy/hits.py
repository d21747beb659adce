"""The closest products with what is stored of them, whatever is written meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from deploy.errors import Deadline
from deploy.messages import product_message
from deploy.paging import Page
from deploy.queries import Sought
from deploy.rankings import facet_message
from index.planner import Plan
from index.product import Product
from index.ranking import Counts, Ranking
from index.search import Found
from index.store import Store
from index.vector_store import VectorStore
from item.errors import StoreError
from item.v1 import item_pb2

ATTEMPTS = 10
WIDER = 4  # times as many hits, where the one before a page is not among those there were
PLANS = {
    Plan.EXACT: item_pb2.SEARCH_PLAN_EXACT,
    Plan.APPROXIMATE: item_pb2.SEARCH_PLAN_APPROXIMATE,
    Plan.MASKED: item_pb2.SEARCH_PLAN_MASKED,
    Plan.WIDENED: item_pb2.SEARCH_PLAN_WIDENED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hits of a page, the first of them at place `begin` among all; empty `group_sizes`: each counts for itself."""

    found: Found
    begin: int = 0
    group_sizes: Sequence[int] = ()
    facets: Sequence[Counts] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Products side by side with their cosines and the sizes of their groups, in the order of a query's hits, and how
    they were searched; what was counted of all of them, and where the next page begins, None: nowhere."""

    products: list[Product]
    scores: list[float]
    group_sizes: list[int]
    plan: Plan
    facets: list[Counts]
    next_page: Page | None

    def __iter__(self) -> Iterator[tuple[Product, float]]:
        return zip(self.products, self.scores, strict=True)


def find(
    store: VectorStore, sought: Sequence[Sought], k: int, deadline: Deadline, *, max_window: int = sys.maxsize
) -> list[Hits]:
    """The k closest products of each of several queries, or what else their rankings and pages say.

    A query with a hit that was deleted or replaced before its details were read is searched again. `max_window`: hits
    on all pages of a query.

    Raises:
        DeadlineError: the caller has stopped waiting.
        StoreError: the details of hits are not in the store at all.
    """
    found: dict[int, Hits] = {}
    for _ in range(ATTEMPTS):
        pending = [row for row in range(len(sought)) if row not in found]
        if not pending:
            return [found[row] for row in range(len(sought))]
        pages = closest(store, {row: sought[row] for row in pending if sought[row].terms.ranking is None}, k, deadline)
        for row in pending:
            if row not in pages:
                deadline.check()
                pages[row] = ranked_page(store, sought[row], k, max_window)
        products = store.products([key for page in pages.values() for key in page.found.keys])
        for row, page in pages.items():
            if all(key in products for key in page.found.keys):
                found[row] = Hits(
                    products=[products[key] for key in page.found.keys],
                    scores=page.found.scores,
                    group_sizes=list(page.group_sizes) or [1] * len(page.found.keys),
                    plan=page.found.plan,
                    facets=list(page.facets),
                    next_page=page_after(sought[row], page, k, max_window),
                )
    raise StoreError(f"{store.generation}: finds products that it does not hold; run: python -m index.check")


def closest(store: VectorStore, sought: Mapping[int, Sought], k: int, deadline: Deadline) -> dict[int, Answer]:
    """The first pages of queries that want the closest products and no more, searched together."""
    if not sought:
        return {}
    deadline.check()
    answers = store.search(
        np.stack([one.vector for one in sought.values()]),
        k,
        leave_out=[one.leave_out for one in sought.values()],
        filters=[one.terms.filter for one in sought.values()],
    )
    return {row: Answer(found=found) for row, found in zip(sought, answers, strict=True)}


def ranked_page(store: VectorStore, sought: Sought, k: int, max_window: int) -> Answer:
    """The page that a query asks for."""
    terms = sought.terms
    assert isinstance(store, Store)  # `sought_by` takes no ranking for others
    assert terms.ranking is not None
    assert terms.page is not None
    num_all = num_pageable(terms.ranking, max_window)
    rank = partial(store.rank, sought.vector, ranking=terms.ranking, leave_out=sought.leave_out, condition=terms.filter)
    asked = min(terms.page.offset + k, num_all)
    while True:
        ranked = rank(num_hits=asked)
        names = ranked.found.product_ids
        begin = terms.page.begin(names)
        is_all = len(names) < asked or asked == num_all
        if is_all or (terms.page.is_found(names) and begin + k <= asked):
            break
        asked = min(max(WIDER * asked, begin + k), num_all)  # others have moved on the hit before, or it is gone
    page = slice(begin, begin + k)
    return Answer(
        found=ranked.found.part(page), begin=begin, group_sizes=ranked.group_sizes[page], facets=ranked.facets
    )


def page_after(sought: Sought, answer: Answer, k: int, max_window: int) -> Page | None:
    """Where the next page begins; it may turn out to be empty."""
    page, end = sought.terms.page, answer.begin + len(answer.found.keys)
    if page is None or len(answer.found.keys) < k or end >= num_pageable(sought.terms.ranking, max_window):
        return None
    return replace(page, offset=end, after=answer.found.product_ids[-1])


def num_pageable(ranking: Ranking | None, max_window: int) -> int:
    """Hits on all pages together."""
    return ranking.window if ranking is not None and ranking.looks_beyond else max_window


def search_result(hits: Hits, space: str) -> item_pb2.SearchResult:
    """The hits of one query."""
    return item_pb2.SearchResult(
        hits=[
            item_pb2.Hit(product=product_message(product, with_description=False), score=score, group_size=size)
            for product, score, size in zip(hits.products, hits.scores, hits.group_sizes, strict=True)
        ],
        plan=PLANS[hits.plan],
        space=space,
        facets=map(facet_message, hits.facets),
        next_page_token=hits.next_page.token() if hits.next_page else "",
    )
