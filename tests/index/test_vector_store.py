"""The local store and Milvus behind one interface: the same tests for both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from index.about import About
from index.exact import Vectors
from index.filters import Equal, Filter, In, Not, Range, Under
from index.product import Product
from index.store import Store
from index.vector_store import VectorStore
from item.errors import ConfigError, ReadOnlyError, SpaceError, StoreError
from tests.index.conditions import passes, products, trees
from tests.index.conformance import SETTINGS, VectorStoreMachine
from tests.index.conftest import BY_HAND, WIDTH, about, product, random_vectors, recall

INJECTED = ['") or key >= 0 or ("', "\\", 'a"b', "'", "\n", "{x}", "%s", "$meta", "\ud7ff", "😀", "null", "]"]


class Kind:
    """How stores of one kind are made and opened."""

    def __init__(self, place: str | Path) -> None:
        self.place = place

    def create(self, about: About, blocks: Sequence[tuple[Sequence[Product], Vectors]] = ()) -> VectorStore:
        """A new generation, open to write."""
        if isinstance(self.place, Path):
            return Store.create(self.place, about, blocks, upkeep=BY_HAND)
        from index.milvus import MilvusStore

        return MilvusStore.create(self.place, "default", about, blocks)

    def open(self, *, writable: bool = False) -> VectorStore:
        """Opens what was created."""
        if isinstance(self.place, Path):
            return Store.open(self.place, writable=writable, upkeep=BY_HAND)
        from index.milvus import MilvusStore

        return MilvusStore.open(self.place, "default", writable=writable)


@pytest.fixture(params=["local", "milvus"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Each kind of store."""
    return Kind(tmp_path / "index" if request.param == "local" else request.getfixturevalue("milvus_uri"))


@pytest.fixture
def store(kind: Kind) -> Iterator[VectorStore]:
    """20 products p0 to p19, open to write."""
    products = [product(f"p{row}", price=float(row)) for row in range(20)]
    store = kind.create(about(), [(products, random_vectors(20))])
    yield store
    store.close()


def test_whatever_is_done_in_whatever_order(milvus_uri: str) -> None:
    """The same for the local store is in test_store_machine.py."""

    class Machine(VectorStoreMachine):
        def __init__(self) -> None:
            super().__init__()
            kind = Kind(milvus_uri)
            self.store = kind.create(about(4))
            self.readers = [kind.open()]

        def teardown(self) -> None:
            for store in (self.store, *self.readers):
                store.close()

    run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=5, stateful_step_count=12))


class TestFilters:
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=st.lists(products, min_size=1, max_size=8), conditions=st.lists(trees, min_size=1, max_size=6))
    def test_any_filter_over_any_products(
        self, store: VectorStore, rows: list[Product], conditions: list[Filter]
    ) -> None:
        self.check(store, rows, conditions)

    def test_text_is_never_syntax(self, store: VectorStore) -> None:
        for text in INJECTED:
            rows = [
                Product(product_id=text, attributes={text: text}, category=(text,)),
                Product(product_id=f"{text} ", attributes={text: "other", "list": [text]}),
            ]
            same, among = Equal(text, text), In("list", (text, "x"))
            self.check(store, rows, [same, Not(same), among, Not(among), Range(text, above=0), Under((text,))])
            assert store.product(text) == rows[0]
            assert store.delete([text, f"{text}  "]) == [True, False]
            assert store.product(text) is None

    def test_infinite_bounds(self, store: VectorStore) -> None:
        rows = [Product(product_id="a", attributes={"x": 1.7976931348623157e308}), Product(product_id="b")]
        for bound in ("at_least", "above", "at_most", "below"):
            for infinity in (float("inf"), float("-inf")):
                condition = Range("x", **{bound: infinity})
                self.check(store, rows, [condition, Not(condition)])

    @staticmethod
    def check(store: VectorStore, rows: list[Product], conditions: list[Filter]) -> None:
        """What passes is what passes by the contract's words."""
        store.delete([f"p{row}" for row in range(20)])
        rows = [rows[0], *(replace(one, product_id=f"r{row}") for row, one in enumerate(rows[1:]))]
        store.upsert(rows, random_vectors(len(rows)))
        answers = store.search(random_vectors(len(conditions), seed=1), 100, filters=conditions)
        for condition, found in zip(conditions, answers, strict=True):
            assert set(found.product_ids) == {one.product_id for one in rows if passes(condition, one)}
        store.delete([one.product_id for one in rows[1:]])


class TestAnswers:
    def test_what_was_written_comes_back_to_the_last_bit(self, store: VectorStore) -> None:
        one = Product(
            product_id="größe 😀",
            title='a "b"\n',
            description="c" * 40_000,
            category=("A", "B/C"),
            group_id="g",
            language="de",
            attributes={"a": 1.5, "b": True, "c": ["x", "y"], "d": "1.5", "e": 5e-324},
            image="i.jpg",
            has_picture=True,
        )
        (vector,) = random_vectors(1, seed=3)
        assert store.upsert([one, one], np.stack([random_vectors(1)[0], vector])) == [True, True]
        assert store.product(one.product_id) == one
        read = store.vector(one.product_id)
        assert read is not None
        assert read.dtype == np.float32
        assert read.tobytes() == vector.tobytes()
        assert len(store) == 21

    def test_a_key_is_of_one_vector_for_ever(self, store: VectorStore) -> None:
        vectors = random_vectors(20)
        (before,) = store.search(vectors[3:4], 1)
        store.update([product("p3", price=1.0)])
        assert store.search(vectors[3:4], 1)[0].keys == before.keys
        assert store.products(before.keys) == {before.keys[0]: product("p3", price=1.0)}
        store.upsert([product("p3")], vectors[3:4])
        assert store.products(before.keys) == {}
        assert store.search(vectors[3:4], 1)[0].keys > before.keys

    def test_more_queries_filters_and_hits_than_fit_one_call(self, store: VectorStore) -> None:
        queries = random_vectors(300, seed=5)
        filters = [Range("price", at_least=float(row % 3)) for row in range(300)]
        answers = store.search(queries, 15_000, [["p19"]] * 300, filters)
        ids, vectors = [f"p{row}" for row in range(20)], random_vectors(20)
        for row, found in enumerate(answers):
            rows = range(row % 3, 19)
            assert recall(found.hits, [ids[one] for one in rows], vectors[list(rows)], queries[row], 15_000) == 1

    def test_a_new_generation_takes_the_place_of_the_one_before(self, store: VectorStore, kind: Kind) -> None:
        before = store.generation
        store.close()
        with pytest.raises(StoreError, match="'a' comes twice"):
            kind.create(about(), [([product("a")], random_vectors(1)), ([product("a")], random_vectors(1))])
        described = about(3, space="6" * 64)
        kind.create(described, [([product("a")], random_vectors(1, 3))]).close()
        opened = kind.open()
        assert opened.generation != before
        assert (len(opened), opened.about) == (1, described)
        assert opened.vector("p0") is None
        opened.close()


class TestErrors:
    def test_what_is_refused(self, store: VectorStore) -> None:
        with pytest.raises(SpaceError, match="width 8"):
            store.search(random_vectors(1, 3), 1)
        with pytest.raises(SpaceError, match="no direction"):
            store.search(np.zeros((1, WIDTH), np.float32), 1)
        with pytest.raises(ConfigError, match="k: 0 is below 1"):
            store.search(random_vectors(1), 0)
        with pytest.raises(ConfigError, match="filters: 1 entries for 2 queries"):
            store.search(random_vectors(2), 1, filters=[None])
        with pytest.raises(StoreError, match="vectors of shape"):
            store.upsert([product("p0")], random_vectors(1, 3))
        assert len(store) == 20

    def test_reading_alone(self, store: VectorStore, kind: Kind) -> None:
        reader = kind.open()
        assert store.writable
        assert not reader.writable
        for write in (
            lambda: reader.upsert([product("a")], random_vectors(1)),
            lambda: reader.update([product("p0")]),
            lambda: reader.delete(["p0"]),
        ):
            with pytest.raises(ReadOnlyError, match="open it to write"):
                write()
        assert store.delete(["p0"]) == [True]
        assert reader.product("p0") is None
        assert len(reader) == 19
        reader.close()
        reader.close()
