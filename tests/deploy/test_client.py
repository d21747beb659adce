"""The client against a real server, and against ones that are busy, broken or not there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import item
from deploy.handlers import Limits
from deploy.server import Server
from index.store import Store
from item import Client, Input, Part, Query
from item.catalog.listing import Listing, Picture
from item.engine.interface import Engine
from item.errors import ConfigError, ServiceError
from item.filters import condition_message
from item.v1 import item_pb2, item_pb2_grpc
from tests.deploy.serving import Hosting, png, shop


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_s=20) as client:
        yield client


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class TestEmbed:
    def test_vectors_are_the_engines_and_errors_have_their_positions(
        self, client: Client, served_engine: Engine
    ) -> None:
        listing = shop()[3]
        picture = listing.images[0].data
        given = Input(text=listing.title, description=listing.description, image=picture)
        result = client.embed(["a red mug", Input(), given, Input(text="x", image=b"broken")])
        expected = served_engine.encode([Listing(title="a red mug"), listing]).vectors
        np.testing.assert_allclose(result.vectors[[0, 2]], expected, atol=1e-5)
        assert result.vectors.dtype == np.float32
        assert np.isnan(result.vectors[[1, 3]]).all()
        assert {position: error.code for position, error in result.errors.items()} == {
            1: "INVALID_ARGUMENT",
            3: "INVALID_ARGUMENT",
        }
        assert "inputs[3].image" in str(result.errors[3])
        assert result.space == served_engine.space
        assert result.times.encode_s > 0

    def test_fewer_dimensions(self, client: Client) -> None:
        assert client.embed(["a red mug"], dimensions=8).vectors.shape == (1, 8)
        with pytest.raises(ServiceError, match="INVALID_ARGUMENT: dimensions: 0 is not within 1 to 32"):
            client.embed(["a red mug"], dimensions=0)

    def test_all_refused(self, client: Client) -> None:
        result = client.embed(["", " "])
        assert (result.vectors.shape, result.space, sorted(result.errors)) == ((2, 0), "", [0, 1])

    def test_pictures_by_path(self, client: Client, tmp_path: Path) -> None:
        file = tmp_path / "red.png"
        file.write_bytes(png("red"))
        by_path, by_bytes = client.embed([Input(image=file), Input(image=file.read_bytes())]).vectors
        np.testing.assert_array_equal(by_path, by_bytes)
        with pytest.raises(ConfigError, match=r"inputs\[1\].image: .*none.png cannot be read"):
            client.embed(["a", Input(image=tmp_path / "none.png")])

    def test_arguments_that_cannot_be_sent(self, client: Client) -> None:
        with pytest.raises(ConfigError, match="is one string; give a list"):
            client.embed("a red mug")
        with pytest.raises(ConfigError, match=r"^inputs\[0\]: "):
            client.embed(["lone \ud800 surrogate"])
        with pytest.raises(ConfigError, match="timeout_s: 0 is not above 0"):
            Client(timeout_s=0)

    def test_stream(self, client: Client) -> None:
        texts = [listing.title for listing in shop()] * 3 + [""]
        streamed = list(client.embed_stream(iter(texts)))
        vectors = [one for one in streamed if isinstance(one, np.ndarray)]
        np.testing.assert_allclose(vectors, client.embed(texts[:-1]).vectors, atol=1e-5)
        assert isinstance(streamed[-1], ServiceError)

    def test_a_stream_whose_source_breaks(self, client: Client) -> None:
        def source() -> Iterator[str]:
            yield "a mug"
            raise FileNotFoundError("catalogue")

        with pytest.raises(FileNotFoundError, match="catalogue"):
            list(client.embed_stream(source()))


class TestSearch:
    def test_by_words_by_picture_and_by_both(self, client: Client, served_engine: Engine, served_store: Store) -> None:
        picture = png("#0a0")
        queries: list[dict[str, Any]] = [
            {"text": "green mug"},
            {"image": picture},
            {"text": "green mug", "image": picture},
        ]
        for query in queries:
            (result,) = client.search(**query, k=4)
            given = client.embed([Input(**query)]).vectors
            (expected,) = served_store.search(given, 4)
            assert [hit.product_id for hit in result.hits] == expected.product_ids
            assert (result.plan, result.space, result.error) == ("exact", served_engine.space, None)

    def test_a_hit_has_its_details(self, client: Client) -> None:
        (result,) = client.search(product_id="green-mug", k=29)
        hit = next(hit for hit in result.hits if hit.product_id == "red-mug")
        assert (hit.title, hit.category) == ("red mug", ("Home", "Kitchen", "Mugs"))
        assert (hit.group_id, hit.image) == ("group-mug", "images/red-mug.png")
        assert hit.attributes == {"price": 9.5, "in_stock": False, "colour": "red", "sizes": ["S", "M"]}
        assert -1 <= hit.score <= 1
        assert next(hit for hit in result.hits if hit.product_id == "red-lamp").category == ()

    def test_by_vector_and_leaving_out(self, client: Client) -> None:
        embedded = client.embed(["white chair"])
        (result,) = client.search(vector=embedded.vectors[0], space=embedded.space, k=5)
        best = result.hits[0].product_id
        (without,) = client.search(text="white chair", k=4, leave_out=[best])
        assert [hit.product_id for hit in without.hits] == [hit.product_id for hit in result.hits[1:]]

    def test_several_queries_with_one_refused(self, client: Client) -> None:
        two = Query(parts=[Part(text="red mug", weight=2), Part(product_id="red-shoe")], leave_out=["red-mug"])
        first, unknown, combined = client.search(["blue lamp", Part(product_id="unknown"), two], k=3)
        assert [hit.product_id for hit in first.hits] == [
            hit.product_id for hit in client.search(text="blue lamp", k=3)[0].hits
        ]
        assert unknown.error is not None
        assert (unknown.error.code, unknown.hits) == ("NOT_FOUND", [])
        assert not {"red-mug", "red-shoe"} & {hit.product_id for hit in combined.hits}

    def test_one_refused_query_is_raised(self, client: Client) -> None:
        with pytest.raises(ServiceError, match=r"NOT_FOUND: .*'unknown' is not in the collection"):
            client.search(product_id="unknown")
        with pytest.raises(ServiceError, match="FAILED_PRECONDITION"):
            client.search(vector=np.ones(32, np.float32), space="0" * 64)

    def test_arguments_that_make_no_query(self, client: Client) -> None:
        with pytest.raises(ConfigError, match=r"queries\[0\].parts\[0\]: give words"):
            client.search()
        with pytest.raises(ConfigError, match="give words"):
            client.search(text="a", product_id="red-mug")
        with pytest.raises(ConfigError, match="a vector comes with its space"):
            client.search(vector=np.ones(32, np.float32))
        with pytest.raises(ConfigError, match="not both"):
            client.search(["a"], text="b")


class TestFilters:
    @pytest.mark.parametrize(
        ("conditions", "passes"),
        [
            (["colour=red"], lambda one: one.attributes["colour"] == "red"),
            (["in_stock=True", "under:Home"], lambda one: one.attributes["in_stock"] and one.category[:1] == ("Home",)),
            (["sizes = M", "under:/Clothing/Shoes/"], lambda one: one.category == ("Clothing", "Shoes")),
            (["price<=9.5", "price>=9.5", "colour=blue"], lambda one: one.attributes["colour"] == "blue"),
            (["price=9.50", "price>9", "price < 10", "under:Home/Chairs"], lambda one: one.category[1:] == ("Chairs",)),
            (["price<9.5"], lambda one: False),
            (["price>9.5"], lambda one: False),
        ],
    )
    def test_conditions(self, client: Client, conditions: list[str], passes: Callable[[Listing], bool]) -> None:
        (result,) = client.search(text="red mug", k=30, filter=conditions)
        assert {hit.product_id for hit in result.hits} == {one.product_id for one in shop() if passes(one)}
        assert len(result.hits) < 30

    @pytest.mark.parametrize(
        "text",
        [
            "price",
            "price<=",
            "=red",
            "price=<20",
            "a==b",
            "price<=cheap",
            "price>nan",
            "under:",
            "under:/",
            "under:a=b/",
        ],
    )
    def test_what_is_no_condition(self, text: str) -> None:
        if text == "under:a=b/":
            assert condition_message(text, "filter").under.category == ["a=b"]
            return
        with pytest.raises(ConfigError, match=re.escape(f"filter: {text!r}")):
            condition_message(text, "filter")

    def test_a_tree_and_a_bare_string(self, client: Client) -> None:
        red = condition_message("colour=red", "filter")
        tree = item_pb2.Filter(**{"not": red})  # type: ignore[arg-type]
        queries = [Query(parts=[Part(text="mug")], filter=tree), Query(parts=[Part(text="mug")], filter=red)]
        others, reds = client.search(queries, k=30)
        assert (len(others.hits), len(reds.hits)) == (25, 5)
        with pytest.raises(ConfigError, match=r"queries\[0\].filter: 'price<1' is one string; give a list"):
            client.search(text="mug", filter="price<1")

    def test_examples(self, client: Client) -> None:
        liked = Part(product_id="green-chair")
        alone = Query(positive_examples=[liked], negative_examples=[Part(text="a shoe")])
        (result,) = client.search([alone], k=29)
        (plain,) = client.search(product_id="green-chair", k=29)
        assert "green-chair" not in {hit.product_id for hit in result.hits}
        assert [hit.product_id for hit in result.hits] != [hit.product_id for hit in plain.hits]


class TestWriting:
    @pytest.fixture
    def own(self, own_server: Server) -> Iterator[Client]:
        with Client(f"127.0.0.1:{own_server.port}", timeout_s=20) as client:
            yield client

    def test_products_are_written_read_and_deleted(self, own: Client, tmp_path: Path) -> None:
        file = tmp_path / "cup.png"
        file.write_bytes(png("blue"))
        cup = Listing(
            product_id="cup",
            title="a blue cup",
            description="holds tea",
            category=("Home", "Cups"),
            group_id="cups",
            language="en",
            attributes={"price": 3, "new": True, "sizes": ["S"], "maker": "Acme"},
            images=(Picture(path=file, reference="images/cup.png"),),
        )
        new, known, refused = own.upsert([cup, Listing(product_id="red-mug", title="mug"), Listing(product_id="empty")])
        assert (new.product_id, new.created, new.error) == ("cup", True, None)
        assert (known.product_id, known.created, known.error) == ("red-mug", False, None)
        assert refused.error is not None
        assert refused.error.code == "INVALID_ARGUMENT"
        stored = own.product("cup")
        assert (stored.title, stored.description, stored.language) == ("a blue cup", "holds tea", "en")
        assert (stored.category, stored.group_id, stored.image) == (("Home", "Cups"), "cups", "images/cup.png")
        assert stored.attributes == {"price": 3.0, "new": True, "sizes": ["S"], "maker": "Acme"}
        (result,) = own.search(image=file, text="a blue cup", k=1)
        assert (result.hits[0].product_id, result.hits[0].description) == ("cup", "")
        own.upsert([Listing(product_id="cup", attributes={"price": 2.5})], update=["attributes.price"])
        assert own.product("cup").attributes == stored.attributes | {"price": 2.5}
        gone, unknown = own.delete(["cup", "unknown"])
        assert (gone.product_id, gone.error) == ("cup", None)
        assert unknown.error is not None
        assert unknown.error.code == "NOT_FOUND"

    def test_pictures_are_sent_where_a_vector_is_made(self, own: Client, tmp_path: Path) -> None:
        missing = (Picture(path=tmp_path / "none.png"),)
        mug = Listing(product_id="red-mug", title="mug", category=("Sale",), images=missing)
        for update in (None, ["title"], ["images", "category"]):
            with pytest.raises(ConfigError, match=r"products\[0\].image: .*none.png cannot be read: No such file"):
                own.upsert([mug], update=update)
        (written,) = own.upsert([mug], update=["category"])
        assert written.error is None
        assert own.product("red-mug").category == ("Sale",)

    def test_arguments_that_cannot_be_sent(self, own: Client) -> None:
        with pytest.raises(ConfigError, match="update: 'title' is one string; give a list"):
            own.upsert([Listing(product_id="a", title="a")], update="title")
        with pytest.raises(ConfigError, match="product_ids: 'red-mug' is one string"):
            own.delete("red-mug")
        with pytest.raises(ConfigError, match=r"^products\[1\]: "):
            own.upsert([Listing(product_id="a", title="a"), Listing(product_id="b", title="lone \ud800 surrogate")])
        with pytest.raises(ServiceError, match=r"INVALID_ARGUMENT: update_mask.paths\[0\]: 'titel'"):
            own.upsert([Listing(product_id="a")], update=["titel"])


def test_predict(client: Client) -> None:
    fine, empty = client.predict(["red mug", ""], top_k=2)
    assert 1 <= len(fine.paths) <= 2
    path = fine.paths[0]
    assert len(path.category) == len(path.probabilities)
    assert list(path.probabilities) == sorted(path.probabilities, reverse=True)
    assert (fine.method, fine.abstained, fine.error) == ("neighbour_vote", False, None)
    assert empty.error is not None
    (under,) = client.predict(["red mug"], start_category=["Clothing"])
    assert {one.category[0] for one in under.paths} == {"Clothing"}


def test_product_and_info(client: Client, served_engine: Engine) -> None:
    assert client.product("red-mug").title == "red mug"
    with pytest.raises(ServiceError, match="NOT_FOUND"):
        client.product("unknown")
    info = client.info()
    assert info == client.wait_until_ready(5)
    assert (info.space, info.vector_width, info.adapters) == (served_engine.space, 32, [])
    assert [one.num_products for one in info.collections] == [30]
    assert info.limits.max_inputs == 256


def test_threads_share_a_client(client: Client) -> None:
    texts = [listing.title for listing in shop()]
    with ThreadPoolExecutor(8) as threads:
        vectors = list(threads.map(lambda text: client.embed([text]).vectors[0], texts))
    np.testing.assert_allclose(vectors, client.embed(texts).vectors, atol=1e-5)


def test_a_request_that_is_too_large_is_not_repeated(hosting: Hosting, served_engine: Engine) -> None:
    server = hosting.serve(served_engine, limits=Limits(max_message_bytes=2**16))
    start = time.monotonic()
    with Client(f"127.0.0.1:{server.port}") as client, pytest.raises(ServiceError, match="larger than max"):
        client.embed(["a" * 2**17])
    assert time.monotonic() - start < 2


class Scripted(item_pb2_grpc.ItemServiceServicer):
    """A server that answers GetInfo as told: a status and a delay for each call, then well."""

    def __init__(self, *script: tuple[grpc.StatusCode, int | None]) -> None:
        self.script = list(script)
        self.calls: list[float] = []

    def GetInfo(self, request: item_pb2.GetInfoRequest, context: grpc.ServicerContext) -> item_pb2.GetInfoResponse:  # noqa: N802
        self.calls.append(time.monotonic())
        if self.script:
            code, delay_ms = self.script.pop(0)
            if delay_ms is not None:
                context.set_trailing_metadata([("grpc-retry-pushback-ms", str(delay_ms))])  # type: ignore[arg-type]
            context.abort(code, "as told")
        return item_pb2.GetInfoResponse()


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[Scripted, str]]]:
    servers = []

    def start(*script: tuple[grpc.StatusCode, int | None]) -> tuple[Scripted, str]:
        service, server = Scripted(*script), grpc.server(futures.ThreadPoolExecutor(4))
        item_pb2_grpc.add_ItemServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return service, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


class TestRepetition:
    FULL, GONE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE

    def test_a_busy_server_is_called_again_after_the_delay(self, scripted: Callable[..., tuple[Scripted, str]]) -> None:
        service, address = scripted(*[(self.FULL, 50)] * 6, (self.GONE, 50))
        with Client(address) as client:
            client.info()
        gaps = np.diff(service.calls)
        assert len(gaps) == 7
        assert gaps.min() >= 0.05

    def test_not_beyond_the_deadline(self, scripted: Callable[..., tuple[Scripted, str]]) -> None:
        service, address = scripted((self.FULL, 100), (self.FULL, 60_000))
        start = time.monotonic()
        with Client(address, timeout_s=5) as client, pytest.raises(ServiceError, match="RESOURCE_EXHAUSTED: as told"):
            client.info()
        assert time.monotonic() - start < 3
        assert len(service.calls) == 2

    def test_a_lost_server_is_tried_a_few_times(self, scripted: Callable[..., tuple[Scripted, str]]) -> None:
        service, address = scripted((self.GONE, None), (self.GONE, None))
        with Client(address) as client:
            client.info()
        assert len(service.calls) == 3

    @pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, FULL, grpc.StatusCode.INTERNAL])
    def test_what_cannot_help_is_not_repeated(
        self, scripted: Callable[..., tuple[Scripted, str]], code: grpc.StatusCode
    ) -> None:
        service, address = scripted((code, None))
        with Client(address) as client, pytest.raises(ServiceError, match=code.name):
            client.info()
        assert len(service.calls) == 1

    def test_no_server_says_which_address_and_how_to_start_one(self) -> None:
        port = free_port()
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(ServiceError) as caught:
            client.info()
        assert caught.value.code == "UNAVAILABLE"
        assert f"no server at 127.0.0.1:{port}; start one with python -m deploy.server" in caught.value.details

    def test_waiting_for_a_server_that_starts_later(self, hosting: Hosting, served_engine: Engine) -> None:
        port = free_port()
        with Client(f"127.0.0.1:{port}") as client:
            timer = threading.Timer(0.7, lambda: hosting.serve(served_engine, port=port))
            timer.start()
            assert client.wait_until_ready(20).vector_width == 32
            timer.join()

    def test_waiting_in_vain(self) -> None:
        start = time.monotonic()
        with Client(f"127.0.0.1:{free_port()}") as client, pytest.raises(ServiceError, match="no answer from 127"):
            client.wait_until_ready(0.5)
        assert 0.4 < time.monotonic() - start < 5


def test_the_client_needs_grpc_protobuf_and_numpy_alone() -> None:
    program = (
        "import sys, item; assert not {'grpc', 'numpy'} & set(sys.modules); item.Client; item.Part;"
        "import item.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"grpc", "numpy", "google"} <= set(loaded)
    heavy = {"torch", "pyarrow", "PIL", "tokenizers", "timm", "ray", "faiss", "pydantic", "tqdm"}
    assert not heavy & set(loaded)


def test_the_version_and_unknown_names() -> None:
    assert item.__version__
    with pytest.raises(AttributeError, match="has no attribute 'Clinet'"):
        item.Clinet  # noqa: B018
