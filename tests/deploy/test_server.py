"""The server over a real channel: statuses, health, reflection, deadlines, the queue, streams, the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.collections import Collections
from deploy.handlers import Limits
from deploy.server import Server, ServerConfig, create_server, main
from index.lease import Lease
from item.catalog.listing import Listing
from item.engine.interface import Encoded, Engine
from item.errors import ConfigError, LeaseError, SpaceError
from item.v1 import item_pb2, item_pb2_grpc
from tests.deploy.serving import GatedEngine, Hosting, shop

PUSHBACK = "grpc-retry-pushback-ms"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def channel_to(server: Server) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)])


def stub_of(channel: grpc.Channel) -> item_pb2_grpc.ItemServiceStub:
    return item_pb2_grpc.ItemServiceStub(channel)


def embed_request(*texts: str) -> item_pb2.EmbedRequest:
    return item_pb2.EmbedRequest(inputs=[item_pb2.Input(text=text) for text in texts])


def health_of(channel: grpc.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_refused(server: Server) -> bool:
    """Whether the server takes no new connections."""
    with channel_to(server) as channel:
        try:
            health_of(channel)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


@pytest.fixture(scope="module")
def plain(hosting: Hosting, served_engine: Engine, served_index: Path) -> Server:
    return hosting.serve(served_engine, served_index, read_only=True, limits=Limits(max_message_bytes=2**20))


@pytest.fixture
def gated(hosting: Hosting, served_engine: Engine, own_index: Path) -> Iterator[tuple[Server, GatedEngine]]:
    engine = GatedEngine(served_engine)
    server = hosting.serve(engine, own_index, max_waiting=2, grace_s=5.0)
    yield server, engine
    for _ in range(100):
        engine.gate.release()


@pytest.fixture
def channel(plain: Server) -> Iterator[grpc.Channel]:
    with channel_to(plain) as channel:
        yield channel


class TestAnswers:
    def test_every_rpc_that_is_offered(self, channel: grpc.Channel, served_engine: Engine) -> None:
        stub = stub_of(channel)
        embedded = stub.Embed(embed_request("a mug", ""), timeout=10)
        assert [result.WhichOneof("outcome") for result in embedded.results] == ["vector", "error"]
        assert embedded.times.queue_s > 0
        query = item_pb2.Query(parts=[item_pb2.QueryPart(vector=embedded.results[0].vector)])
        found = stub.Search(item_pb2.SearchRequest(queries=[query], k=3), timeout=10)
        assert len(found.results[0].hits) == 3
        assert found.times.search_s > 0
        inputs = [item_pb2.Input(text="a mug")]
        predicted = stub.PredictCategory(item_pb2.PredictCategoryRequest(inputs=inputs), timeout=10)
        assert predicted.predictions[0].paths
        product = stub.GetProduct(item_pb2.GetProductRequest(product_id="red-mug"), timeout=10).product
        assert product.title == "red mug"
        assert stub.GetInfo(item_pb2.GetInfoRequest(), timeout=10).model.space == served_engine.space

    @pytest.mark.parametrize(
        ("rpc", "request_message", "code", "details"),
        [
            ("Embed", item_pb2.EmbedRequest(), "INVALID_ARGUMENT", "inputs: 0 of them; give 1 to 256"),
            (
                "Search",
                item_pb2.SearchRequest(queries=[item_pb2.Query()], k=0),
                "INVALID_ARGUMENT",
                "k: 0 is not within 1 to 1000",
            ),
            ("GetProduct", item_pb2.GetProductRequest(product_id="x"), "NOT_FOUND", "'x' is not in the collection"),
            ("GetProduct", item_pb2.GetProductRequest(collection="x"), "NOT_FOUND", "collection: 'x' is not there"),
            ("UpsertProducts", item_pb2.UpsertProductsRequest(), "FAILED_PRECONDITION", "this server only reads"),
            ("DeleteProducts", item_pb2.DeleteProductsRequest(), "FAILED_PRECONDITION", "this server only reads"),
            ("Embed", embed_request("a" * 2**21), "RESOURCE_EXHAUSTED", "larger than max"),
        ],
    )
    def test_statuses(self, channel: grpc.Channel, rpc: str, request_message: object, code: str, details: str) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub_of(channel), rpc)(request_message, timeout=10)
        assert caught.value.code().name == code
        assert details in (caught.value.details() or "")

    def test_without_an_index(self, hosting: Hosting, served_engine: Engine) -> None:
        with channel_to(hosting.serve(served_engine)) as channel:
            assert stub_of(channel).Embed(embed_request("a mug"), timeout=10).results[0].HasField("vector")
            with pytest.raises(grpc.RpcError) as caught:
                stub_of(channel).Search(item_pb2.SearchRequest(), timeout=10)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    def test_what_breaks_inside_is_logged_and_not_told(
        self, hosting: Hosting, served_engine: Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)

        class Broken(GatedEngine):
            def encode(self, listings: Sequence[Listing], *args: object, **options: object) -> Encoded:
                raise RuntimeError("secret path")

        with channel_to(hosting.serve(Broken(served_engine))) as channel, pytest.raises(grpc.RpcError) as caught:
            stub_of(channel).Embed(embed_request("a mug"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (caught.value.details() or "")
        (record,) = [record for record in caplog.records if record.name == "deploy.interceptor"]
        assert "method=/item.v1.ItemService/Embed status=INTERNAL peer=ipv4:127.0.0.1" in record.getMessage()
        assert record.exc_info

    def test_reflection_lists_the_services(self, channel: grpc.Channel) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (response,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
        names = {service.name for service in response.list_services_response.service}
        assert names >= {"item.v1.ItemService", "item.v1.AdminService", "grpc.health.v1.Health"}


class TestWaiting:
    def test_health_answers_while_the_model_works(self, gated: tuple[Server, GatedEngine]) -> None:
        server, engine = gated
        with channel_to(server) as channel:
            call = stub_of(channel).Embed.future(embed_request("a mug"), timeout=20)
            engine.begun.get(timeout=10)
            assert health_of(channel) == health_of(channel, "item.v1.ItemService") == SERVING
            assert stub_of(channel).GetInfo(item_pb2.GetInfoRequest(), timeout=5).model.vector_width == 32
            assert not call.done()
            engine.gate.release()
            assert call.result(10).results[0].HasField("vector")

    def test_a_full_queue_says_when_to_come_again(self, gated: tuple[Server, GatedEngine]) -> None:
        server, engine = gated
        with channel_to(server) as channel:
            stub = stub_of(channel)
            calls = [stub.Embed.future(embed_request("first"), timeout=20)]
            engine.begun.get(timeout=10)
            calls += [stub.Embed.future(embed_request(f"waiting {n}"), timeout=20) for n in range(2)]
            wait_for(lambda: server.worker._unfinished == 3)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Embed(embed_request("too many"), timeout=20)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            (delay_ms,) = [int(one.value) for one in caught.value.trailing_metadata() if one.key == PUSHBACK]
            assert 1 <= delay_ms <= 10_000
            for _ in calls:
                engine.gate.release()
            assert all(call.result(10).results[0].HasField("vector") for call in calls)
            assert [engine.begun.get(timeout=5) for _ in range(2)] == [["waiting 0"], ["waiting 1"]]
            assert engine.begun.empty()

    def test_work_that_nobody_waits_for_is_not_begun(self, gated: tuple[Server, GatedEngine]) -> None:
        server, engine = gated
        with channel_to(server) as channel:
            stub = stub_of(channel)
            first = stub.Embed.future(embed_request("first"), timeout=20)
            engine.begun.get(timeout=10)
            late = stub.Embed.future(embed_request("late"), timeout=0.2)
            cancelled = stub.Embed.future(embed_request("cancelled"), timeout=20)
            wait_for(lambda: server.worker._unfinished == 3)
            cancelled.cancel()  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError) as caught:
                late.result(10)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            wait_for(lambda: server.worker._unfinished == 1)
            last = stub.Embed.future(embed_request("last"), timeout=20)
            engine.gate.release()
            engine.gate.release()
            assert first.result(10).results[0].HasField("vector")
            assert last.result(10).results[0].HasField("vector")
            assert engine.begun.get(timeout=5) == ["last"]
            assert engine.begun.empty()


class TestStream:
    def test_answers_come_in_order(self, channel: grpc.Channel) -> None:
        texts = [shop()[number % 30].title if number % 7 else "" for number in range(100)]
        requests = (item_pb2.EmbedStreamRequest(input=item_pb2.Input(text=text)) for text in texts)
        streamed = [response.result for response in stub_of(channel).EmbedStream(requests, timeout=20)]
        at_once = stub_of(channel).Embed(embed_request(*texts), timeout=20).results
        assert [one.WhichOneof("outcome") for one in streamed] == [one.WhichOneof("outcome") for one in at_once]
        for one, other in zip(streamed, at_once, strict=True):
            if one.HasField("vector"):
                first, second = (np.frombuffer(result.vector.values, "<f4") for result in (one, other))
                np.testing.assert_allclose(first, second, atol=1e-5)
        assert len({one.vector.values for one in streamed}) > 10

    def test_an_empty_stream(self, channel: grpc.Channel) -> None:
        assert list(stub_of(channel).EmbedStream(iter(()), timeout=10)) == []

    def test_the_sender_is_held_back(self, gated: tuple[Server, GatedEngine]) -> None:
        server, engine = gated
        sent = 0

        def requests() -> Iterator[item_pb2.EmbedStreamRequest]:
            nonlocal sent
            for number in range(2000):
                sent += 1
                yield item_pb2.EmbedStreamRequest(input=item_pb2.Input(text=f"{number} " + "x" * 20_000))

        with channel_to(server) as channel:
            call = stub_of(channel).EmbedStream(requests(), timeout=30)
            window = engine.begun.get(timeout=10)
            time.sleep(0.5)
            held = sent
            assert held < 1000
            time.sleep(0.2)
            assert sent == held
            engine.gate.release()
            assert next(iter(call)).result.HasField("vector")
            assert len(window) <= len(engine.begun.get(timeout=10)) <= 32
            call.cancel()  # type: ignore[no-untyped-call]

    def test_a_broken_stream_ends_the_work(self, gated: tuple[Server, GatedEngine]) -> None:
        server, engine = gated
        more = threading.Event()

        def requests() -> Iterator[item_pb2.EmbedStreamRequest]:
            yield item_pb2.EmbedStreamRequest(input=item_pb2.Input(text="first"))
            more.wait(10)

        with channel_to(server) as channel:
            call = stub_of(channel).EmbedStream(requests(), timeout=20)
            engine.begun.get(timeout=10)
            call.cancel()  # type: ignore[no-untyped-call]
            more.set()
            engine.gate.release()
            wait_for(lambda: server.worker._unfinished == 0)
            following = stub_of(channel).Embed.future(embed_request("next"), timeout=10)
            assert engine.begun.get(timeout=10) == ["next"]
            engine.gate.release()
            assert following.result(10).results


class TestStartAndEnd:
    def test_not_serving_until_loaded(self, served_engine: Engine, own_index: Path) -> None:
        async def scenario() -> None:
            server = Server(ServerConfig(port=0, grace_s=0))
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                assert (await check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
                stub = item_pb2_grpc.ItemServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetInfo(item_pb2.GetInfoRequest())
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert PUSHBACK in dict(caught.value.trailing_metadata())  # type: ignore[arg-type]
                await server.load(lambda: (served_engine, Collections.open(own_index)))
                assert (await check(health_pb2.HealthCheckRequest())).status == SERVING
                assert (await stub.GetInfo(item_pb2.GetInfoRequest())).model.vector_width == 32
            await server.stop()

        asyncio.run(scenario())

    def test_an_index_of_another_space_never_serves(self, served_engine: Engine, own_index: Path) -> None:
        other = GatedEngine(served_engine)
        other.space = "0" * 64

        async def scenario() -> None:
            with closing(Collections.open(own_index)) as collections, pytest.raises(SpaceError):
                await create_server(ServerConfig(port=0), other, collections)

        asyncio.run(scenario())

    def test_a_call_in_flight_is_answered_while_the_server_stops(
        self, hosting: Hosting, gated: tuple[Server, GatedEngine]
    ) -> None:
        server, engine = gated
        with channel_to(server) as channel, ThreadPoolExecutor(1) as threads:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(watch).status == SERVING
            call = stub_of(channel).Embed.future(embed_request("in flight"), timeout=20)
            engine.begun.get(timeout=10)
            stopping = threads.submit(hosting.run, server.stop())
            assert next(watch).status == NOT_SERVING
            watch.cancel()
            wait_for(lambda: is_refused(server))
            assert not stopping.done()
            engine.gate.release()
            assert call.result(10).results[0].HasField("vector")
            stopping.result(10)

    def test_a_port_that_is_taken(self) -> None:
        async def scenario(port: int) -> None:
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
                Server(ServerConfig(port=port))

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            asyncio.run(scenario(taken.getsockname()[1]))

    @pytest.mark.parametrize("settings", [{"port": -1}, {"port": 65536}, {"max_waiting": -1}, {"grace_s": -0.1}])
    def test_configuration_is_checked(self, settings: dict[str, float]) -> None:
        ((name, value),) = settings.items()
        with pytest.raises(ConfigError, match=f"^{name}: {value} "):
            ServerConfig(**settings)  # type: ignore[arg-type]


class TestProgram:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "{tmp}/nowhere"], "no such folder"),
            (
                ["--model", "{model}", "--index", "{tmp}/nowhere"],
                "nowhere: no such index folder; build one with: python",
            ),
            (["--model", "{model}", "--index", "{tmp}"], "has no collections; build one with: python -m index.build"),
            (["--model", "{model}", "--port", "70000"], "port: 70000"),
            (["--model", "{model}", "--max-k", "0"], "max_k: 0 is below 1"),
            (["--model", "{model}", "--adapters", "0"], "num_adapters: 0 is below 1"),
            (["--model", "{model}", "--device", "abacus"], "'abacus'"),
        ],
    )
    def test_what_cannot_be_served_is_one_line(
        self, arguments: list[str], message: str, served_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        given = [argument.format(tmp=tmp_path, model=served_model) for argument in arguments]
        assert main([*(["--port", "0"] if "--port" not in given else []), *given]) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert message in line

    @pytest.mark.slow
    def test_sigterm_ends_the_process_gracefully(self, served_model: Path, own_index: Path) -> None:
        command = [sys.executable, "-m", "deploy.server", "--model", str(served_model), "--index", str(own_index)]
        process = subprocess.Popen([*command, "--port", "0", "--device", "cpu"], stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "serving address=" in line)
            assert "collections='default' of 30 products" in line
            address = line.split("address=")[1].split()[0]
            with grpc.insecure_channel(address) as channel:
                assert health_of(channel) == SERVING
                assert stub_of(channel).Embed(embed_request("a mug"), timeout=10).results[0].HasField("vector")
                with pytest.raises(LeaseError, match=f"process {process.pid} on "):
                    Lease.acquire(own_index / "default")
                process.terminate()
                assert process.wait(60) == 0
            Lease.acquire(own_index / "default").release()
            rest = process.stderr.read()
            assert "stopped" in rest
            assert "Traceback" not in rest
        finally:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
