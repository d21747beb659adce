"""The closest products with what is stored of them, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.errors import Deadline
from deploy.messages import product_message
from deploy.queries import Sought
from index.planner import Plan
from index.product import Product
from index.store import Store
from item.errors import StoreError
from item.v1 import item_pb2

ATTEMPTS = 10
PLANS = {
    Plan.EXACT: item_pb2.SEARCH_PLAN_EXACT,
    Plan.APPROXIMATE: item_pb2.SEARCH_PLAN_APPROXIMATE,
    Plan.MASKED: item_pb2.SEARCH_PLAN_MASKED,
    Plan.WIDENED: item_pb2.SEARCH_PLAN_WIDENED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Products side by side with their cosines, the best first, and how they were searched."""

    products: list[Product]
    scores: list[float]
    plan: Plan

    def __iter__(self) -> Iterator[tuple[Product, float]]:
        return zip(self.products, self.scores, strict=True)


def find(store: Store, sought: Sequence[Sought], k: int, deadline: Deadline) -> list[Hits]:
    """The k closest products of each of several queries.

    A query with a hit that was deleted or replaced before its details were read is searched again.

    Raises:
        DeadlineError: the caller has stopped waiting.
        StoreError: the details of hits are not in the store at all.
    """
    found: dict[int, Hits] = {}
    for _ in range(ATTEMPTS):
        pending = [row for row in range(len(sought)) if row not in found]
        if not pending:
            return [found[row] for row in range(len(sought))]
        deadline.check()
        answers = store.search(
            np.stack([sought[row].vector for row in pending]),
            k,
            leave_out=[sought[row].leave_out for row in pending],
            filters=[sought[row].filter for row in pending],
        )
        products = store.products([key for answer in answers for key in answer.keys])
        for row, answer in zip(pending, answers, strict=True):
            if all(key in products for key in answer.keys):
                details = [products[key] for key in answer.keys]
                found[row] = Hits(products=details, scores=answer.scores, plan=answer.plan)
    raise StoreError(f"{store.folder}: finds products that it does not hold; run: python -m index.check")


def search_result(hits: Hits, space: str) -> item_pb2.SearchResult:
    """The hits of one query."""
    return item_pb2.SearchResult(
        hits=[
            item_pb2.Hit(product=product_message(product, with_description=False), score=score)
            for product, score in hits
        ],
        plan=PLANS[hits.plan],
        space=space,
    )
