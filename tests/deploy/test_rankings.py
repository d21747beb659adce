"""Rankings and pages over the handlers: what the contract promises, whatever is written between two pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import Deadline
from deploy.handlers import Handlers, Limits
from index.product import Product
from index.store import Store
from item.engine.interface import Engine
from item.errors import ConfigError
from item.v1 import item_pb2
from tests.deploy.serving import shop

MUG = [item_pb2.QueryPart(input=item_pb2.Input(text="red mug"))]
K = 4


@pytest.fixture
def store(own_index: Path) -> Iterator[Store]:
    with Store.open(own_index / "default", writable=True) as store:
        yield store


@pytest.fixture
def handlers(served_engine: Engine, store: Store) -> Handlers:
    return Handlers(served_engine, {"default": store}, Limits(max_k=26, max_window=26))


def search(handlers: Handlers, k: int = K, **query: Any) -> item_pb2.SearchResult:
    request = item_pb2.SearchRequest(queries=[item_pb2.Query(parts=MUG, **query)], k=k)
    (result,) = handlers.search(request, "test", Deadline()).results
    return result


def ids(result: item_pb2.SearchResult) -> list[str]:
    assert not result.HasField("error"), result.error
    return [hit.product.product_id for hit in result.hits]


def pages(handlers: Handlers, **query: Any) -> Iterator[list[str]]:
    token = ""
    while True:
        result = search(handlers, page_token=token, **query)
        yield ids(result)
        token = result.next_page_token
        if not token:
            return


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"min_score": -0.5},
        {"collapse_groups": True},
        {"diversity": 0.3, "window": 26},
        {"sort": item_pb2.Sort(attribute="colour"), "window": 26},
        {"lexical_weight": 0.5},
    ],
)
def test_pages_together_are_the_hits_at_once(handlers: Handlers, query: dict[str, Any]) -> None:
    whole = ids(search(handlers, k=26, **query))
    parts = list(pages(handlers, **query))
    assert len(whole) > 2 * K
    assert [one for page in parts for one in page] == whole
    assert all(len(page) == K for page in parts[:-1])


def test_pages_end_with_the_window(handlers: Handlers) -> None:
    by_colour = item_pb2.Sort(attribute="colour")
    assert [len(page) for page in pages(handlers, sort=by_colour, window=10)] == [4, 4, 2]
    assert sum(len(page) for page in pages(handlers)) == 26


def test_writes_between_pages_neither_repeat_nor_lose_hits(handlers: Handlers, store: Store) -> None:
    whole = ids(search(handlers, k=26))
    first = search(handlers)
    vector = store.vector(whole[0])
    assert vector is not None
    store.upsert([Product(product_id=f"new{row}", title="new") for row in range(6)], np.stack([vector] * 6))
    second = search(handlers, page_token=first.next_page_token)
    assert ids(first) + ids(second) == whole[: 2 * K]
    store.delete([f"new{row}" for row in range(6)] + whole[:2])
    third = search(handlers, page_token=second.next_page_token)
    assert ids(third) == whole[2 * K : 3 * K]
    store.delete([ids(third)[-1]])  # the page begins where it would have
    assert ids(search(handlers, page_token=third.next_page_token))


def test_a_token_is_good_for_its_query_alone(handlers: Handlers) -> None:
    token = search(handlers).next_page_token
    for other in ({"k": 5}, {"min_score": 0.0}, {"leave_out_ids": ["x"]}):
        assert search(handlers, page_token=token, **other).error.field == "queries[0].page_token"


def test_one_hit_a_group_with_its_size(handlers: Handlers) -> None:
    result = search(handlers, k=26, collapse_groups=True)
    sizes = {hit.product.product_id: hit.group_size for hit in result.hits}
    mugs = {one.product_id for one in shop() if one.group_id}
    assert len(sizes) == 30 - len(mugs) + 1
    assert {name: size for name, size in sizes.items() if size > 1} == {(mugs & set(sizes)).pop(): len(mugs)}


def test_facets_and_order_by_an_attribute(handlers: Handlers) -> None:
    facets = [item_pb2.FacetRequest(attribute="in_stock"), item_pb2.FacetRequest(category_level=1, limit=1)]
    result = search(handlers, facets=facets, window=26, sort=item_pb2.Sort(attribute="colour", descending=True), k=26)
    colours = [hit.product.attributes["colour"].string_value for hit in result.hits]
    assert colours == sorted(colours, reverse=True)
    stock, level = result.facets
    in_stock = sum(colour != "red" for colour in colours)
    assert [(one.value.bool_value, one.count) for one in stock.values] == [(True, in_stock), (False, 26 - in_stock)]
    (top,) = level.values
    tops = [hit.product.category[0] for hit in result.hits if hit.product.category]
    assert top.count == tops.count(top.category[0]) == max(map(tops.count, tops))


def test_letters_find_what_vectors_do_not(handlers: Handlers, store: Store) -> None:
    plain = ids(search(handlers, k=26))
    far = plain[-1]
    product = store.product(far)
    vector = store.vector(far)
    assert product is not None
    assert vector is not None
    store.upsert([Product(product_id=far, title="lamp by Zyx, model WH-1000XM4")], vector[None])
    parts = [item_pb2.QueryPart(input=item_pb2.Input(text="wh-1000xm4"))]
    request = item_pb2.SearchRequest(queries=[item_pb2.Query(parts=parts, lexical_weight=0.6)])
    (result,) = handlers.search(request, "test", Deadline()).results
    assert ids(result)[0] == far


def test_a_window_holds_a_page() -> None:
    with pytest.raises(ConfigError, match="max_window: 3 is below max_k, 5"):
        Limits(max_k=5, max_window=3)
