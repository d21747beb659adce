"""Writing over a real channel: what is acknowledged is there, what is refused names its field, merges are exact."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf, nan
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from deploy.errors import Deadline, Status
from deploy.handlers import Handlers, Limits
from deploy.server import Server
from index.store import Store
from item.catalog.listing import Listing, Picture
from item.engine.interface import Encoded, Engine
from item.v1 import item_pb2, item_pb2_grpc
from tests.deploy.serving import Hosting, RecordingEngine, png

Product = item_pb2.Product
CUP = Product(
    product_id="cup",
    title="a blue cup",
    description="holds tea",
    category=["Home", "Kitchen", "Cups"],
    group_id="group-cup",
    language="en-GB",
    attributes={
        "price": item_pb2.AttributeValue(number_value=3.5),
        "new": item_pb2.AttributeValue(bool_value=True),
        "maker": item_pb2.AttributeValue(string_value="Acme"),
        "sizes": item_pb2.AttributeValue(string_list=item_pb2.StringList(values=["S", "L"])),
    },
    images=[item_pb2.Picture(data=png("blue"), reference="images/cup.png")],
)


class Shop:
    """A server over an index of its own, and short ways to call it."""

    def __init__(self, server: Server, engine: RecordingEngine, index: Path) -> None:
        self.server, self.engine, self.index = server, engine, index
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)])
        self.stub = item_pb2_grpc.ItemServiceStub(self.channel)

    def upsert(self, *products: Product, mask: Sequence[str] | None = None, timeout: float = 20) -> list[Any]:
        update_mask = None if mask is None else FieldMask(paths=mask)
        request = item_pb2.UpsertProductsRequest(products=products, update_mask=update_mask)
        return list(self.stub.UpsertProducts(request, timeout=timeout).results)

    def delete(self, *product_ids: str) -> list[item_pb2.DeleteResult]:
        request = item_pb2.DeleteProductsRequest(product_ids=product_ids)
        return list(self.stub.DeleteProducts(request, timeout=20).results)

    def get(self, product_id: str) -> item_pb2.GetProductResponse:
        request = item_pb2.GetProductRequest(product_id=product_id, include_vector=True)
        return self.stub.GetProduct(request, timeout=20)

    def vector(self, product_id: str) -> npt.NDArray[np.float32]:
        return np.frombuffer(self.get(product_id).vector.values, "<f4")

    def is_there(self, product_id: str) -> bool:
        try:
            self.get(product_id)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.NOT_FOUND
        return True

    def closest(self, text: str) -> str:
        query = item_pb2.Query(parts=[item_pb2.QueryPart(input=item_pb2.Input(text=text))])
        found = self.stub.Search(item_pb2.SearchRequest(queries=[query], k=1), timeout=20).results[0]
        return found.hits[0].product.product_id


@pytest.fixture
def shop(hosting: Hosting, served_engine: Engine, own_index: Path) -> Iterator[Shop]:
    """The 30 products of `tests.deploy.serving.shop`, to be written to."""
    engine = RecordingEngine(served_engine)
    shop = Shop(hosting.serve(engine, own_index), engine, own_index)
    with shop.channel:
        yield shop
        hosting.run(shop.server.stop())


def encoded(engine: Engine, **listing: Any) -> npt.NDArray[np.float32]:
    return engine.encode([Listing(**listing)]).vectors[0]


class TestWholeProducts:
    def test_new_ones_are_added_and_known_ones_replaced(self, shop: Shop, served_engine: Engine) -> None:
        mug = Product(product_id="red-mug", title="a zebra")
        first, second = shop.upsert(CUP, mug)
        assert (first.product_id, first.created, first.HasField("error")) == ("cup", True, False)
        assert (second.product_id, second.created, second.HasField("error")) == ("red-mug", False, False)
        stored = shop.get("cup").product
        expected = Product.FromString(CUP.SerializeToString())
        expected.images[0].ClearField("data")
        assert stored == expected
        replaced = shop.get("red-mug").product
        assert replaced == mug
        picture = (Picture(data=png("blue")),)
        vector = encoded(served_engine, title="a blue cup", description="holds tea", images=picture)
        np.testing.assert_allclose(shop.vector("cup"), vector, atol=1e-5)
        assert np.abs(vector - encoded(served_engine, title="a blue cup", description="holds tea")).max() > 0.01
        assert shop.closest("a zebra") == "red-mug"
        assert shop.stub.GetInfo(item_pb2.GetInfoRequest(), timeout=5).collections[0].num_products == 31

    def test_one_call_is_encoded_at_once(self, shop: Shop) -> None:
        shop.upsert(*[Product(product_id=str(number), title=f"cup {number}") for number in range(20)])
        assert shop.engine.calls == [[f"cup {number}" for number in range(20)]]

    def test_what_was_acknowledged_is_there_after_the_server(self, shop: Shop, hosting: Hosting) -> None:
        shop.upsert(CUP)
        shop.delete("red-mug")
        hosting.run(shop.server.stop())
        with Store.open(shop.index / "default", writable=True) as store:
            product = store.product("cup")
            assert product is not None
            assert (product.title, product.attributes["sizes"], product.image) == (
                "a blue cup",
                ["S", "L"],
                "images/cup.png",
            )
            assert store.product("red-mug") is None

    def test_of_two_with_one_id_the_later_stays(self, shop: Shop) -> None:
        first, broken, last = shop.upsert(
            Product(product_id="cup", title="first"),
            Product(product_id="cup", images=[item_pb2.Picture(data=b"none")]),
            Product(product_id="cup", title="last"),
        )
        assert broken.error.field == "products[1].images[0].data"
        assert not first.HasField("error")
        assert not last.HasField("error")
        assert shop.get("cup").product.title == "last"
        shop.upsert(Product(product_id="cup", title="kept"), Product(product_id="cup"))
        assert shop.get("cup").product.title == "kept"

    def test_bad_products_leave_their_neighbours_alone(self, shop: Shop) -> None:
        def attribute(**kind: Any) -> dict[str, item_pb2.AttributeValue]:
            return {"price": item_pb2.AttributeValue(**kind)}

        flags = {str(number): item_pb2.AttributeValue(bool_value=True) for number in range(257)}
        cases: list[tuple[str, dict[str, Any]]] = [
            ("", {"title": ""}),
            ("", {"title": " \n"}),
            (".title", {"title": "\u200b"}),
            (".product_id", {"product_id": ""}),
            (".product_id", {"product_id": "ä" * 257}),
            (".title", {"title": "a" * (64 * 2**10 + 1)}),
            (".description", {"description": "a" * (2**20 + 1)}),
            (".category[1]", {"category": ["Home", " "]}),
            (".group_id", {"group_id": ""}),
            (".language", {"language": "de_DE"}),
            (".language", {"language": ""}),
            (".attributes", {"attributes": flags}),
            (".attributes", {"attributes": {"": item_pb2.AttributeValue(bool_value=True)}}),
            (".attributes.price", {"attributes": attribute()}),
            (".attributes.price", {"attributes": attribute(number_value=nan)}),
            (".attributes.price", {"attributes": attribute(number_value=inf)}),
            (".images[0].data", {"images": [item_pb2.Picture(reference="cup.png")]}),
            (".images[0].data", {"images": [item_pb2.Picture(data=b"no picture")]}),
            (".images[0].data", {"images": [item_pb2.Picture(data=b"")]}),
        ]
        bad = [
            Product(**{"product_id": f"bad-{row}", "title": "a cup", **fields}) for row, (_, fields) in enumerate(cases)
        ]
        first, *results, last = shop.upsert(CUP, *bad, Product(product_id="last", title="another cup"))
        for row, ((field, _), result) in enumerate(zip(cases, results, strict=True), start=1):
            assert (result.error.field, result.error.code) == (f"products[{row}]{field}", Status.INVALID_ARGUMENT)
            assert result.error.message
            assert not result.created
        assert first.created
        assert last.created
        assert shop.is_there("last")
        assert not any(shop.is_there(one.product_id) for one in bad if 0 < len(one.product_id) < 100)

    def test_the_limits_themselves_are_allowed(self, shop: Shop) -> None:
        attributes = {str(number): item_pb2.AttributeValue(string_list=item_pb2.StringList()) for number in range(256)}
        (result,) = shop.upsert(
            Product(
                product_id="ä" * 256,
                title="a" * 64 * 2**10,
                description="b" * 2**20,
                language="de",
                attributes=attributes,
            )
        )
        assert not result.HasField("error")
        assert len(shop.get("ä" * 256).product.attributes) == 256

    def test_all_refused(self, shop: Shop) -> None:
        (result,) = shop.upsert(Product(product_id="cup"))
        assert result.error.field == "products[0]"
        assert shop.engine.calls == []


class TestSomeFields:
    def test_what_no_vector_is_made_of_is_written_without_encoding(self, shop: Shop) -> None:
        before = shop.get("red-mug")
        change = Product(
            product_id="red-mug",
            title="not in the mask",
            category=["Sale"],
            attributes={"price": item_pb2.AttributeValue(number_value=1)},
        )
        mask = ["category", "attributes.price", "attributes.colour", "language"]
        unknown, known = shop.upsert(Product(product_id="unknown"), change, mask=mask)
        assert (unknown.error.code, unknown.error.field) == (Status.NOT_FOUND, "products[0].product_id")
        assert (known.created, known.HasField("error")) == (False, False)
        after = shop.get("red-mug")
        assert (after.product.title, list(after.product.category)) == ("red mug", ["Sale"])
        assert after.product.attributes["price"].number_value == 1
        assert "colour" not in after.product.attributes
        assert after.product.attributes["sizes"] == before.product.attributes["sizes"]
        assert after.vector == before.vector
        assert shop.engine.calls == []
        assert not shop.is_there("unknown")

    def test_all_attributes(self, shop: Shop) -> None:
        shop.upsert(Product(product_id="red-mug"), mask=["attributes"])
        assert not shop.get("red-mug").product.attributes

    def test_a_new_title_makes_a_new_vector(self, shop: Shop, served_engine: Engine) -> None:
        shop.upsert(Product(product_id="cup", title="a cup", description="holds tea"))
        shop.upsert(Product(product_id="cup", title="a zebra", description="ignored"), mask=["title"])
        assert shop.get("cup").product.description == "holds tea"
        expected = encoded(served_engine, title="a zebra", description="holds tea")
        np.testing.assert_allclose(shop.vector("cup"), expected, atol=1e-5)

    def test_a_new_title_needs_the_picture_again(self, shop: Shop, served_engine: Engine) -> None:
        before = shop.get("red-mug")
        without = Product(product_id="red-mug", title="a red cup")
        (refused,) = shop.upsert(without, mask=["title"])
        assert (refused.error.code, refused.error.field) == (
            Status.FAILED_PRECONDITION,
            "products[0].images[0].data",
        )
        assert "send 'images/red-mug.png' along, or write the whole product" in refused.error.message
        assert shop.get("red-mug") == before
        picture = png("#c00")
        along = Product(product_id="red-mug", title="a red cup", images=[item_pb2.Picture(data=picture, reference="x")])
        (accepted,) = shop.upsert(along, mask=["title"])
        assert not accepted.HasField("error")
        stored = shop.get("red-mug").product
        assert (stored.title, stored.images[0].reference) == ("a red cup", "images/red-mug.png")
        expected = encoded(
            served_engine,
            title="a red cup",
            description="a mug in red for every day",
            images=(Picture(data=picture),),
        )
        np.testing.assert_allclose(shop.vector("red-mug"), expected, atol=1e-5)

    def test_pictures_are_replaced_and_removed(self, shop: Shop, served_engine: Engine) -> None:
        words = {"title": "red mug", "description": "a mug in red for every day"}
        new = item_pb2.Picture(data=png("white"), reference="new.png")
        (first,) = shop.upsert(Product(product_id="red-mug", images=[new]), mask=["images"])
        assert not first.HasField("error")
        assert shop.get("red-mug").product.images[0].reference == "new.png"
        expected = encoded(served_engine, **words, images=(Picture(data=png("white")),))
        np.testing.assert_allclose(shop.vector("red-mug"), expected, atol=1e-5)
        shop.upsert(Product(product_id="red-mug"), mask=["images"])
        assert not shop.get("red-mug").product.images
        np.testing.assert_allclose(shop.vector("red-mug"), encoded(served_engine, **words), atol=1e-5)
        shop.upsert(Product(product_id="red-mug", description=""), mask=["description"])
        (nothing,) = shop.upsert(Product(product_id="red-mug"), mask=["title"])
        assert (nothing.error.field, nothing.error.code) == ("products[0]", Status.INVALID_ARGUMENT)
        assert shop.get("red-mug").product.title == "red mug"

    @pytest.mark.parametrize(
        ("paths", "details"),
        [(["titel"], "update_mask.paths[0]: 'titel' cannot be written"), ([], "update_mask: names no field")],
    )
    def test_a_mask_that_is_none_fails_the_call(self, shop: Shop, paths: list[str], details: str) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            shop.upsert(CUP, mask=paths)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details in (caught.value.details() or "")
        assert not shop.is_there("cup")


class TestDeleting:
    def test_deleted_products_are_gone(self, shop: Shop) -> None:
        closest = shop.closest("red mug")
        first, unknown, again, empty = shop.delete(closest, "unknown", closest, "")
        assert (first.product_id, first.HasField("error")) == (closest, False)
        assert not again.HasField("error")
        assert (unknown.error.code, unknown.error.field) == (Status.NOT_FOUND, "product_ids[1]")
        assert (empty.error.code, empty.error.field) == (Status.NOT_FOUND, "product_ids[3]")
        assert not shop.is_there(closest)
        assert shop.closest("red mug") != closest
        assert shop.upsert(Product(product_id=closest, title="red mug"))[0].created
        assert shop.closest("red mug") == closest


@pytest.mark.parametrize(
    ("rpc", "message", "details"),
    [
        ("UpsertProducts", item_pb2.UpsertProductsRequest(), "products: 0 of them; give 1 to 256"),
        ("UpsertProducts", item_pb2.UpsertProductsRequest(products=[CUP] * 257), "products: 257 of them"),
        ("DeleteProducts", item_pb2.DeleteProductsRequest(), "product_ids: 0 of them; give 1 to 256"),
        ("DeleteProducts", item_pb2.DeleteProductsRequest(product_ids=["a"] * 257), "product_ids: 257 of them"),
    ],
)
def test_the_number_of_a_call(shop: Shop, rpc: str, message: object, details: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(shop.stub, rpc)(message, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details in (caught.value.details() or "")


def test_updates_of_one_product_at_once_are_all_kept(served_engine: Engine, own_index: Path) -> None:
    with Store.open(own_index / "default", writable=True) as store, ThreadPoolExecutor(8) as threads:
        handlers = Handlers(served_engine, {"default": store}, Limits())

        def update(number: int) -> None:
            value = item_pb2.AttributeValue(number_value=number)
            request = item_pb2.UpsertProductsRequest(
                products=[Product(product_id="red-mug", attributes={f"n{number}": value})],
                update_mask=FieldMask(paths=[f"attributes.n{number}"]),
            )
            handlers.upsert_products(request, "me", Deadline())

        list(threads.map(update, range(64)))
        product = store.product("red-mug")
        assert product is not None
        assert {f"n{number}" for number in range(64)} <= product.attributes.keys()


def test_nothing_is_written_after_the_deadline(served_engine: Engine, own_index: Path) -> None:
    class Slow(RecordingEngine):
        def encode(self, listings: Sequence[Listing], *args: Any, **options: Any) -> Encoded:
            time.sleep(0.3)
            return super().encode(listings, *args, **options)

    hosting = Hosting()
    shop = Shop(hosting.serve(Slow(served_engine), own_index), RecordingEngine(served_engine), own_index)
    with shop.channel:
        with pytest.raises(grpc.RpcError) as caught:
            shop.upsert(CUP, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = shop.stub.UpsertProducts.future(item_pb2.UpsertProductsRequest(products=[CUP]), timeout=20)
        behind = shop.stub.DeleteProducts.future(item_pb2.DeleteProductsRequest(product_ids=["red-mug"]), timeout=20)
        behind.cancel()  # type: ignore[no-untyped-call]
        assert call.result(10).results[0].created  # so the first call, which ended late, had not written it
        assert shop.is_there("red-mug")
    hosting.close()
