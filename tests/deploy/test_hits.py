"""Hits whose products go away between the search and the reading of their details, and how plans are told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import Deadline, DeadlineError
from deploy.hits import PLANS, Hits, find, search_result
from deploy.queries import Sought
from index.planner import Plan
from index.product import Product
from index.store import Store
from item.errors import StoreError
from item.v1 import item_pb2

FOREVER = Deadline()


class Hasty(Store):
    """A store in which others write while details are read; counts the queries of each search."""

    def prepare(self, *writes: list[str]) -> None:
        self.writes, self.searched = list(writes), list[int]()

    def search(self, queries, *args, **kwargs):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN002, ANN003, ANN201
        self.searched.append(len(queries))
        return super().search(queries, *args, **kwargs)

    def products(self, keys: Sequence[int]) -> dict[int, Product]:
        if self.writes:
            self.delete(self.writes.pop(0))
        return super().products(keys)


@pytest.fixture
def store(own_index: Path) -> Store:
    return Hasty.open(own_index / "default", writable=True)


def sought_near(store: Store, *names: str) -> list[Sought]:
    return [Sought(vector=np.asarray(store.vector(name)), leave_out=frozenset({name})) for name in names]


def names(hits: Hits) -> list[str]:
    return [product.product_id for product in hits.products]


def test_a_query_whose_hit_went_away_is_searched_again(store: Hasty) -> None:
    sought = sought_near(store, "red-mug", "blue-chair")
    store.prepare()
    mug, chair = find(store, sought, 5, FOREVER)
    gone = [next(name for name in names(mug) if name not in names(chair))]
    store.prepare(gone)
    again, same = find(store, sought, 5, FOREVER)
    assert store.searched == [2, 1]
    assert len(again.products) == 5
    assert names(again)[:4] == [name for name in names(mug) if name not in gone]
    assert names(same) == names(chair)
    assert again.scores == sorted(again.scores, reverse=True)
    store.close()


def test_as_many_as_are_left(store: Hasty) -> None:
    sought = sought_near(store, "red-mug")
    everything = [product.product_id for product, _ in find_all(store, sought)]
    store.prepare(everything[:10], everything[10:20])
    (hits,) = find(store, sought, 30, FOREVER)
    assert names(hits) == everything[20:]
    assert store.searched == [1, 1, 1]
    store.close()


def find_all(store: Hasty, sought: list[Sought]) -> Hits:
    store.prepare()
    return find(store, sought, 30, FOREVER)[0]


def test_details_that_are_never_there_are_an_error(store: Hasty, monkeypatch: pytest.MonkeyPatch) -> None:
    sought = sought_near(store, "red-mug")
    store.prepare()
    monkeypatch.setattr(store, "products", lambda keys: {})
    with pytest.raises(StoreError, match="finds products that it does not hold; run: python"):
        find(store, sought, 5, FOREVER)
    with pytest.raises(DeadlineError):
        find(store, sought, 5, Deadline.after(-1))
    store.close()


def test_nothing_sought() -> None:
    assert find(None, [], 5, FOREVER) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", Plan)
def test_plans(plan: Plan) -> None:
    product = Product(product_id="cup", title="a cup", description="not told", image="cup.png")
    hits = Hits(products=[product], scores=[0.5], group_sizes=[3], plan=plan, facets=[], next_page=None)
    result = search_result(hits, "space")
    assert item_pb2.SearchPlan.Name(result.plan) == f"SEARCH_PLAN_{plan.name}"
    (hit,) = result.hits
    assert (hit.product.title, hit.product.description, hit.score, result.space) == ("a cup", "", 0.5, "space")
    assert (hit.group_size, result.next_page_token) == (3, "")
    assert len(set(PLANS.values())) == len(item_pb2.SearchPlan.values()) - 1
