"""What Milvus adds to the interface: generations, limits, what cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from index.about import About
from index.exact import Vectors
from index.filters import Range
from index.planner import Plan
from index.product import Product
from item.errors import ConfigError, ListingError, StoreError, UnavailableError
from tests.index.conftest import about, product, random_vectors, recall

if TYPE_CHECKING:
    from index.milvus import MilvusStore

WHOLE = tuple[list[Product], Vectors]


@pytest.fixture
def blocks() -> list[WHOLE]:
    """20 products p0 to p19."""
    return [([product(f"p{row}", price=float(row)) for row in range(20)], random_vectors(20))]


@pytest.fixture
def store(milvus_uri: str, blocks: list[WHOLE]) -> Iterator[MilvusStore]:
    """The same, open to write."""
    from index.milvus import MilvusStore

    with MilvusStore.create(milvus_uri, "a.b-c", about(), blocks) as store:
        yield store


def test_who_has_a_generation_open_goes_on_with_it_until_the_one_after_the_next(
    milvus_uri: str, store: MilvusStore
) -> None:
    from index.milvus import MilvusStore, collection_names

    for _ in range(2):
        assert len(store) == 20
        MilvusStore.create(milvus_uri, "a.b-c", about()).close()
    with pytest.raises(StoreError, match=rf"milvus\.db: .*{store.generation}"):
        len(store)
    assert "a.b-c" in collection_names(milvus_uri)


def test_a_generation_that_is_not_finished_leaves_nothing(milvus_uri: str, store: MilvusStore) -> None:
    from index.milvus import MilvusStore

    before = store._server.client.list_collections()
    with pytest.raises(StoreError, match="length 0"):
        MilvusStore.create(milvus_uri, "a.b-c", about(), [([product("a")], np.zeros((1, 8), np.float32))])
    assert store._server.client.list_collections() == before
    with MilvusStore.open(milvus_uri, "a.b-c") as opened:
        assert opened.generation == store.generation


def test_names(milvus_uri: str, store: MilvusStore) -> None:
    from index.milvus import MilvusStore

    with pytest.raises(StoreError, match=r"no collection 'd', of those that ITEm has made: 'a\.b-c'"):
        MilvusStore.open(milvus_uri, "d")
    with pytest.raises(ConfigError, match="collection: 'my shop'; a name is"):
        MilvusStore.create(milvus_uri, "my shop", about())


def test_many_products_are_searched_by_an_index(
    monkeypatch: pytest.MonkeyPatch, milvus_uri: str, blocks: list[WHOLE]
) -> None:
    import index.milvus
    from index.milvus import MilvusStore

    monkeypatch.setattr(index.milvus, "FLAT_ROWS", 19)
    with MilvusStore.create(milvus_uri, "many", about(), blocks) as store:
        queries = random_vectors(2, seed=2)
        wide, narrow = store.search(queries, 5, filters=[None, Range("price", at_least=10.0)])
        assert (wide.plan, narrow.plan) == (Plan.APPROXIMATE, Plan.MASKED)
        ids, vectors = [f"p{row}" for row in range(20)], random_vectors(20)
        assert recall(wide.hits, ids, vectors, queries[0], 5) > 0.5
        assert recall(narrow.hits, ids[10:], vectors[10:], queries[1], 5) > 0.5


class TestLimits:
    def test_of_a_product(self, store: MilvusStore) -> None:
        for refused, reason in (
            (Product(product_id="a", description="é" * 40_000), "product: 'a': 80,1.. bytes; .* 65,535; shorten it"),
            (Product(product_id="b" * 70_000), "product_id: 'b{50}': 70,000 bytes"),
            (product("c", sizes=[str(size) for size in range(5000)]), "attributes: 'c': 5,00. values; .* 4,096"),
        ):
            with pytest.raises(ListingError, match=reason):
                store.upsert([product("fine"), refused], random_vectors(2))
        with pytest.raises(ListingError, match="product: 'p0'"):
            store.update([Product(product_id="p0", title="x" * 70_000)])
        assert store.product("fine") is None
        assert store.product("p0") == product("p0", price=0.0)

    def test_of_hits(self, store: MilvusStore) -> None:
        assert len(store.search(random_vectors(1), 16_384)[0].hits) == 20
        with pytest.raises(ConfigError, match="k: 16380 beside 5 products left out is above 16,384"):
            store.search(random_vectors(1), 16_380, [["a", "b", "c", "d", "e"]])


class TestConnections:
    def test_nobody_there(self, milvus_uri: str) -> None:
        from index.milvus import MilvusStore

        with pytest.raises(UnavailableError, match=r"^http://127.0.0.1:1: ") as caught:
            MilvusStore.open("http://user:secret@127.0.0.1:1", "default", token="secret")
        assert "secret" not in str(caught.value)

    def test_what_milvus_refuses_is_no_matter_of_time(self, store: MilvusStore) -> None:
        store._server.drop(store.generation)
        with pytest.raises(StoreError, match=r"milvus\.db: ") as caught:
            store.product("p0")
        assert not isinstance(caught.value, UnavailableError)

    def test_after_a_restart_everything_is_there(self, milvus_uri: str, store: MilvusStore) -> None:
        from milvus_lite import server_manager_instance

        from index.milvus import MilvusStore

        store.upsert([product("new")], random_vectors(1, seed=7))
        store.delete(["p3"])
        server_manager_instance.release_server(milvus_uri)
        with MilvusStore.open(milvus_uri, "a.b-c", writable=True) as opened:
            assert len(opened) == 20
            assert opened.search(random_vectors(1, seed=7), 1)[0].product_ids == ["new"]
            assert opened.delete(["new", "p3"]) == [True, False]


def test_keys_ascend_and_are_never_given_twice() -> None:
    pytest.importorskip("pymilvus")
    from index.milvus import _Keys

    new_key = _Keys()
    keys = [new_key() for _ in range(5000)]
    assert keys == sorted(set(keys))
    assert keys[-1] < 2**63
    assert _Keys()() > keys[0]


def test_about_keeps_every_field(milvus_uri: str) -> None:
    from index.milvus import MilvusStore

    described = About(
        space="s" * 64, vector_width=3, model='größe "x"', splits=("a", "b"), created="2026-11-26T00:00:00"
    )
    MilvusStore.create(milvus_uri, "described", described).close()
    with MilvusStore.open(milvus_uri, "described") as store:
        assert store.about == described
