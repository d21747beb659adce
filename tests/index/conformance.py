"""What every `VectorStore` has to do, whatever keeps the products: the same rules against a dict for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from index.exact import Vectors
from index.filters import All, Equal, Filter, Not, Range
from index.planner import Plan
from index.product import Product
from index.store import Store
from index.vector_store import VectorStore
from item.errors import StoreError
from tests.index.conftest import check_hits, product, random_vectors, recall, unit

SETTINGS = settings(
    max_examples=20,
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# Few directions, so that ties are common, and longer than what a search looks at first.
DIRECTIONS = np.concatenate(
    [unit(np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [-1, 0, 1, 0]])), random_vectors(8, 4)]
)
IDS = [f"p{row}" for row in range(20)]
COLOURS = ["red", "green"]
QUERIES = np.concatenate([DIRECTIONS[:3], random_vectors(1, 4, seed=9)])
CONDITIONS: list[tuple[Filter | None, Callable[[Product], bool]]] = [
    (None, lambda one: True),
    (Equal("colour", "red"), lambda one: one.attributes.get("colour") == "red"),
    (Range("price", at_least=2.0), lambda one: one.attributes["price"] >= 2.0),  # type: ignore[operator]
    (
        All((Not(Equal("colour", "red")), Range("price", below=3.0))),
        lambda one: one.attributes.get("colour") != "red" and one.attributes["price"] < 3.0,  # type: ignore[operator]
    ),
    (Equal("colour", "blue"), lambda one: False),
]

some_ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=8)
rows_to_write = st.lists(
    st.tuples(
        st.sampled_from(IDS),
        st.integers(0, len(DIRECTIONS) - 1),
        st.sampled_from([None, *COLOURS]),
        st.integers(0, 4).map(float),
    ),
    max_size=12,
)
Row = tuple[str, int, str | None, float]


def made(row: Row) -> tuple[Product, Vectors]:
    product_id, direction, colour, price = row
    attributes = {"price": price} if colour is None else {"price": price, "colour": colour}
    return product(product_id, **attributes), DIRECTIONS[direction]


class Model:
    """What a store should hold: products and vectors in the order in which they were written."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Product, Vectors]] = {}

    def upsert(self, rows: Iterable[tuple[Product, Vectors]]) -> None:
        for one, vector in rows:
            self.rows.pop(one.product_id, None)
            self.rows[one.product_id] = (one, vector)

    def allowed(self, passes: Callable[[Product], bool], left_out: Collection[str]) -> tuple[list[str], Vectors]:
        """The ids and vectors of what may be a hit."""
        ids = [one for one, (what, _) in self.rows.items() if one not in left_out and passes(what)]
        return ids, np.array([self.rows[one][1] for one in ids], np.float32).reshape(len(ids), 4)

    def check(self, store: VectorStore) -> None:
        """Everything that a store can be asked about this model."""
        for one in IDS[:5]:
            expected = self.rows.get(one)
            vector = store.vector(one)
            assert store.product(one) == (None if expected is None else expected[0])
            assert (None if vector is None else vector.tobytes()) == (
                None if expected is None else expected[1].tobytes()
            )
        assert len(store) == len(self.rows)
        for k in (2, 100):
            self.check_search(store, k, [()] * len(CONDITIONS))
        self.check_search(store, 3, [IDS[:7], IDS[4:9] * 2, ["unknown"], IDS, IDS])

    def check_search(self, store: VectorStore, k: int, left_out: Sequence[Collection[str]]) -> None:
        """Each query under each condition."""
        queries = np.repeat(QUERIES, len(CONDITIONS), axis=0)
        conditions, wanted = CONDITIONS * len(QUERIES), [*left_out] * len(QUERIES)
        answers = store.search(queries, k, wanted, [condition for condition, _ in conditions])
        for query, (_, passes), some, found in zip(queries, conditions, wanted, answers, strict=True):
            assert recall(found.hits, *self.allowed(passes, some), query, k) == 1
            if isinstance(store, Store):  # promises more than the interface
                check_hits(found.hits, *self.allowed(passes, some), query, k)
            assert found.plan is Plan.EXACT
        expected = {hit.key: self.rows[hit.product_id][0] for found in answers for hit in found.hits}
        assert store.products(list(expected)) == expected


class VectorStoreMachine(RuleBasedStateMachine):
    """An open collection, others of it that are read beside it, and a model."""

    store: VectorStore
    readers: list[VectorStore]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    @rule(rows=rows_to_write)
    def upsert(self, rows: list[Row]) -> None:
        written = [made(row) for row in rows]
        there = [one.product_id in self.model.rows for one, _ in written]
        vectors = np.array([vector for _, vector in written], np.float32).reshape(len(written), 4)
        created = self.store.upsert([one for one, _ in written], vectors)
        assert created == [not one for one in there]
        self.model.upsert(written)

    @rule(rows=rows_to_write, place=st.integers(0, 12))
    def upsert_what_is_refused(self, rows: list[Row], place: int) -> None:
        written = [made(row) for row in rows]
        written.insert(place, (product("p0"), np.zeros(4, np.float32)))
        with pytest.raises(StoreError, match=f"row {min(place, len(rows))}: a vector of length 0"):
            self.store.upsert([one for one, _ in written], np.stack([vector for _, vector in written]))

    @rule(rows=rows_to_write)
    def update(self, rows: list[Row]) -> None:
        products = [made(row)[0] for row in rows if row[0] in self.model.rows]
        self.store.update(products)
        for one in products:
            self.model.rows[one.product_id] = (one, self.model.rows[one.product_id][1])

    @rule(rows=rows_to_write)
    def update_what_is_not_there(self, rows: list[Row]) -> None:
        with pytest.raises(StoreError, match="'none' is not there to be updated"):
            self.store.update([*(made(row)[0] for row in rows if row[0] in self.model.rows), product("none")])

    @rule(ids=some_ids)
    def delete(self, ids: list[str]) -> None:
        assert self.store.delete([*ids, "none"]) == [*(one in self.model.rows for one in ids), False]
        for one in ids:
            self.model.rows.pop(one, None)

    @precondition(lambda self: len(self.model.rows) > 10)
    @rule(kept=st.integers(0, 3))
    def delete_nearly_all(self, kept: int) -> None:
        self.delete(list(self.model.rows)[kept:])

    @invariant()
    def all_answer_as_the_model_does(self) -> None:
        for store in (self.store, *self.readers):
            self.model.check(store)
