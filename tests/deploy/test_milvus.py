"""The service on collections in Milvus, as clients see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.collections import Collections
from deploy.server import Server, build_parser, main, open_collections
from index.about import About
from index.choosing import Choice
from index.product import Product
from item.catalog.listing import Listing
from item.client import Client
from item.engine.interface import Engine
from item.errors import ConfigError, ServiceError, StoreError, UnavailableError
from tests.deploy.serving import Hosting, shop

CUP = Listing(product_id="cup", title="a cup", category=("Home",), attributes={"price": 3.0})


@pytest.fixture
def filled_uri(milvus_uri: str, served_engine: Engine) -> str:
    """A Milvus with the 30 products of `tests.deploy.serving.shop`."""
    from index.milvus import MilvusStore

    about = About(space=served_engine.space, vector_width=served_engine.vector_width, model="tiny")
    products = [Product.from_listing(listing) for listing in shop()]
    MilvusStore.create(milvus_uri, "default", about, [(products, served_engine.encode(shop()).vectors)]).close()
    return milvus_uri


@pytest.fixture
def server(hosting: Hosting, served_engine: Engine, filled_uri: str) -> Iterator[Server]:
    """A server that writes to it."""
    server = hosting.serve(served_engine, Collections.open_milvus(filled_uri))
    yield server
    hosting.run(server.stop())


def client_of(server: Server) -> Client:
    return Client(f"127.0.0.1:{server.port}", timeout_s=20)


def test_searching_and_reading(server: Server, served_engine: Engine) -> None:
    with client_of(server) as client:
        (collection,) = client.info().collections
        assert (collection.name, collection.num_products) == ("default", 30)
        assert collection.generation == server.collections["default"].generation
        (found,) = client.search(text="red mug", k=30, filter=["price<=9.5", "in_stock=true", "sizes=S"])
        assert len(found.hits) == 25
        assert found.plan == "exact"
        (similar,) = client.search(product_id="red-mug", k=30)
        assert {hit.product_id for hit in similar.hits} == {one.product_id for one in shop()} - {"red-mug"}
        (prediction,) = client.predict(["a red mug"])
        assert prediction.paths
        assert client.product("blue-mug").attributes["sizes"] == ["S", "M"]


def test_what_one_server_writes_the_other_finds(
    hosting: Hosting, served_engine: Engine, server: Server, filled_uri: str
) -> None:
    second = hosting.serve(served_engine, Collections.open_milvus(filled_uri))
    reading = hosting.serve(served_engine, Collections.open_milvus(filled_uri, read_only=True), read_only=True)
    with client_of(server) as one, client_of(second) as other, client_of(reading) as reader:
        assert one.upsert([CUP])[0].created
        assert not other.upsert([CUP])[0].created
        for client in (one, other, reader):
            assert client.search(text="a cup", k=1, filter=["price<4"])[0].hits[0].product_id == "cup"
        assert [result.error is None for result in other.delete(["cup", "none"])] == [True, False]
        with pytest.raises(ServiceError, match="NOT_FOUND: product_id: 'cup'"):
            reader.product("cup")
        with pytest.raises(ServiceError, match="FAILED_PRECONDITION: collection: this server only reads"):
            reader.upsert([CUP])
        large = Listing(product_id="large", title="large", description="x" * 70_000)
        with pytest.raises(ServiceError, match=r"INVALID_ARGUMENT: product: 'large': 70,\d+ bytes; Milvus keeps up to"):
            one.upsert([large])


def test_a_milvus_that_is_gone_is_unavailable(
    server: Server, hosting: Hosting, milvus_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milvus_lite import server_manager_instance

    import index.milvus

    monkeypatch.setattr(index.milvus, "TIMEOUT_S", 0.5)
    server_manager_instance.release_server(milvus_uri)
    with Client(f"127.0.0.1:{server.port}", timeout_s=3) as client, pytest.raises(ServiceError) as caught:
        client.product("red-mug")
    assert caught.value.code == "UNAVAILABLE"


def test_no_collections(tmp_path: Path, milvus_uri: str) -> None:
    with pytest.raises(StoreError, match=r"empty\.db: has no collections; build one with: python -m index\.build"):
        Collections.open_milvus(str(tmp_path / "empty.db"))


def test_what_cannot_be_served_is_one_line(
    served_model: Path, milvus_uri: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", "user:secret")
    with pytest.raises(UnavailableError):
        open_collections(None, "http://127.0.0.1:1", read_only=False)
    with pytest.raises(ConfigError, match="bytes_per_row: Milvus chooses its own index"):
        open_collections(None, "http://127.0.0.1:1", read_only=False, choice=Choice(bytes_per_row=100))
    assert main(["--port", "0", "--model", str(served_model), "--milvus", "http://user:secret@127.0.0.1:1"]) == 2
    captured = capfd.readouterr().err
    (line,) = [line for line in captured.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: http://127.0.0.1:1: ")
    assert "secret" not in captured


def test_without_milvus_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    monkeypatch.delitem(sys.modules, "index.milvus", raising=False)
    with pytest.raises(ConfigError, match=r"milvus: .*pymilvus.*; install the extra: pip install 'item-embedd"):
        Collections.open_milvus("http://127.0.0.1:1")


def test_a_folder_or_milvus(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--model", "M", "--index", "DIR", "--milvus", "URI"])
    assert "not allowed with argument --index" in capsys.readouterr().err
