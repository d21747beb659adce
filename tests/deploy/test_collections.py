"""Collections of an index folder: opened together, handed over from one process to the next, closed."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from deploy.collections import Collections
from deploy.server import Server
from index.generations import CURRENT
from index.lease import Lease
from index.store import Store
from item.catalog.listing import Listing
from item.client import Client
from item.engine.interface import Engine
from item.errors import LeaseError, ServiceError, StoreError
from item.v1 import item_pb2, item_pb2_grpc
from tests.deploy.serving import GatedEngine, Hosting, RecordingEngine, shop, write_index

CUP = Listing(product_id="cup", title="a cup")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def client_of(server: Server, timeout_s: float = 20) -> Client:
    return Client(f"127.0.0.1:{server.port}", timeout_s=timeout_s)


@pytest.fixture
def hosting() -> Iterator[Hosting]:
    """Servers that end with the test, for they hold leases."""
    hosting = Hosting()
    yield hosting
    hosting.close()


class TestOpening:
    def test_all_collections_are_opened_to_write(self, served_engine: Engine, own_index: Path) -> None:
        write_index(own_index, served_engine, shop()[:3], "winter-2026_b.1")
        (own_index / "unfinished").mkdir()
        (own_index / "notes.txt").write_text("no collection")
        with closing(Collections.open(own_index)) as collections:
            assert {name: len(store) for name, store in collections.items()} == {"default": 30, "winter-2026_b.1": 3}
            assert all(store.writable for store in collections.values())
            assert collections.awaited() == []

    def test_to_read_alone(self, own_index: Path) -> None:
        with (
            closing(Collections.open(own_index, read_only=True)) as collections,
            Store.open(own_index / "default", writable=True),
        ):
            assert not collections["default"].writable
            assert collections.awaited() == []

    def test_closing_gives_the_leases_back(self, own_index: Path) -> None:
        collections = Collections.open(own_index)
        with pytest.raises(LeaseError):
            Lease.acquire(own_index / "default")
        collections.close()
        collections.close()
        assert not collections
        Lease.acquire(own_index / "default").release()

    def test_no_folder_and_no_collections(self, tmp_path: Path) -> None:
        build = "build one with: python -m index.build --model M --catalog C --index"
        with pytest.raises(StoreError, match=f"nowhere: no such index folder; {build} .*nowhere"):
            Collections.open(tmp_path / "nowhere")
        (tmp_path / "unfinished").mkdir()
        with pytest.raises(StoreError, match=f"has no collections; {build} {tmp_path}"):
            Collections.open(tmp_path)

    def test_a_collection_in_place_of_its_index(self, own_index: Path) -> None:
        with pytest.raises(StoreError, match=f"is a collection; give the folder that holds it, {own_index}$"):
            Collections.open(own_index / "default")

    @pytest.mark.parametrize("name", ["my shop", "größe", "a" * 129])
    def test_a_name_that_is_none(self, own_index: Path, name: str) -> None:
        shutil.copytree(own_index / "default", own_index / name)
        with pytest.raises(StoreError, match=f"'{name}' is no collection's name; rename the folder"):
            Collections.open(own_index)

    def test_a_damaged_one_leaves_none_open(self, own_index: Path) -> None:
        shutil.copytree(own_index / "default", own_index / "winter")
        (own_index / "winter" / CURRENT).write_text("{")
        with pytest.raises(StoreError, match="winter"):
            Collections.open(own_index)
        Lease.acquire(own_index / "default").release()


class TestHandingOver:
    def test_what_another_process_writes_to_is_read_until_it_has_ended(
        self, own_index: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            Store.open(own_index / "default", writable=True) as held,
            closing(Collections.open(own_index)) as collections,
        ):
            assert "'default' is open to read until it can be written to" in caplog.text
            assert collections.awaited() == ["default"]
            reading = collections["default"]
            assert collections.take_over("default") is None
            held.delete(["red-mug"])
            held.close()
            assert collections.take_over("default") is reading
            reading.close()
            assert collections.awaited() == []
            assert collections["default"].writable
            assert len(collections["default"]) == 29

    def test_a_rolling_restart(
        self, hosting: Hosting, served_engine: Engine, own_index: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        old = hosting.serve(served_engine, own_index)
        new = hosting.serve(served_engine, own_index)
        failed: list[Exception] = []
        done = threading.Event()

        def keep_reading() -> None:
            with client_of(new) as client:
                while not done.is_set():
                    try:
                        assert client.search(product_id="red-mug", k=30)[0].hits
                        client.product("blue-mug")
                        client.info()
                    except Exception as error:
                        failed.append(error)

        with client_of(old) as to_old, client_of(new) as to_new, client_of(new, timeout_s=0.5) as hasty:
            readers = [threading.Thread(target=keep_reading) for _ in range(3)]
            for reader in readers:
                reader.start()
            assert to_old.upsert([CUP])[0].created
            assert to_new.product("cup").title == "a cup"
            with pytest.raises(ServiceError, match="UNAVAILABLE: collection: 'default' is still written to by another"):
                hasty.delete(["cup"])
            threading.Timer(0.3, lambda: hosting.run(old.stop())).start()
            (deleted,) = to_new.delete(["cup"])  # comes again until the old server has ended
            assert deleted.error is None
            assert new.collections["default"].writable
            wait_for(lambda: new._taking_over is not None and new._taking_over.done())
            assert to_new.upsert([CUP])[0].created
            done.set()
            for reader in readers:
                reader.join()
        assert failed == []
        assert "collection 'default': the other process has ended" in caplog.text

    def test_a_call_that_began_before_keeps_its_store(
        self, hosting: Hosting, served_engine: Engine, own_index: Path
    ) -> None:
        engine = GatedEngine(served_engine)
        with ThreadPoolExecutor(1) as threads, Lease.acquire(own_index / "default") as lease:
            server = hosting.serve(engine, own_index)
            before = server.collections["default"]
            assert isinstance(before, Store)
            with client_of(server) as client:
                call = threads.submit(client.search, text="a mug")
                engine.begun.get(timeout=10)
                lease.release()
                wait_for(lambda: server.collections["default"] is not before)
                time.sleep(0.2)
                assert not before._closed
                engine.gate.release()
                assert call.result(10)[0].hits
            wait_for(lambda: before._closed)

    def test_writes_say_when_to_come_again(self, hosting: Hosting, served_engine: Engine, own_index: Path) -> None:
        with Lease.acquire(own_index / "default"):
            server = hosting.serve(served_engine, own_index)
            with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)]) as channel:
                for rpc, request in (
                    ("UpsertProducts", item_pb2.UpsertProductsRequest()),
                    ("DeleteProducts", item_pb2.DeleteProductsRequest(product_ids=["red-mug"])),
                ):
                    with pytest.raises(grpc.RpcError) as caught:
                        getattr(item_pb2_grpc.ItemServiceStub(channel), rpc)(request, timeout=10)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                    trailing = {one.key: one.value for one in caught.value.trailing_metadata()}
                    assert int(trailing["grpc-retry-pushback-ms"]) == 1000

    def test_a_server_that_waits_can_be_stopped(self, hosting: Hosting, served_engine: Engine, own_index: Path) -> None:
        with Lease.acquire(own_index / "default"):
            server = hosting.serve(served_engine, own_index)
            start = time.monotonic()
            hosting.run(server.stop())
            assert time.monotonic() - start < 5
        Lease.acquire(own_index / "default").release()

    def test_a_collection_that_breaks_meanwhile_is_read_on_and_tried_again(
        self, hosting: Hosting, served_engine: Engine, own_index: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        current = own_index / "default" / CURRENT
        content = current.read_bytes()
        with Lease.acquire(own_index / "default"):
            server = hosting.serve(served_engine, own_index)
            broken = current.with_name("moved")
            current.rename(broken)
        wait_for(lambda: "collection 'default' cannot be written to" in caplog.text)
        current.write_bytes(content)
        wait_for(lambda: server.collections.awaited() == [])


class TestServing:
    def test_several_collections(self, hosting: Hosting, served_engine: Engine, own_index: Path) -> None:
        write_index(own_index, served_engine, shop()[:3], "winter")
        server = hosting.serve(served_engine, own_index)
        with client_of(server) as client:
            info = {one.name: one for one in client.info().collections}
            assert [(name, one.num_products) for name, one in info.items()] == [("default", 30), ("winter", 3)]
            assert info["winter"].generation == server.collections["winter"].generation != info["default"].generation
            client.upsert([CUP], collection="winter")
            assert client.product("cup", collection="winter").title == "a cup"
            assert len(client.search(text="cup", k=30, collection="winter")[0].hits) == 4
            with pytest.raises(ServiceError, match="NOT_FOUND: product_id: 'cup'"):
                client.product("cup")
            with pytest.raises(ServiceError, match=r"collection: 'summer' is not there; .* 'default', 'winter'"):
                client.delete(["cup"], collection="summer")
        hosting.run(server.stop())
        Lease.acquire(own_index / "winter").release()

    def test_a_reading_server_sees_what_another_writes(
        self, hosting: Hosting, served_engine: Engine, own_index: Path
    ) -> None:
        writing = hosting.serve(served_engine, own_index)
        reading = hosting.serve(served_engine, own_index, read_only=True)
        with client_of(writing) as writer, client_of(reading) as reader:
            writer.upsert([CUP])
            assert reader.search(text="a cup", k=1)[0].hits[0].product_id == "cup"
            writer.delete(["cup"])
            assert reader.search(text="a cup", k=1)[0].hits[0].product_id != "cup"
            with pytest.raises(ServiceError, match="FAILED_PRECONDITION: collection: this server only reads"):
                reader.upsert([CUP])

    def test_a_reader_does_not_follow_to_another_models_vectors(
        self, hosting: Hosting, served_engine: Engine, own_index: Path
    ) -> None:
        engine, other = GatedEngine(served_engine), RecordingEngine(served_engine)
        other.space = "0" * 64
        reading = hosting.serve(engine, own_index, read_only=True)
        with client_of(reading) as client, ThreadPoolExecutor(1) as threads:
            call = threads.submit(client.search, text="a mug")
            engine.begun.get(timeout=10)
            write_index(own_index, other, shop())
            engine.gate.release()
            refused = r"FAILED_PRECONDITION: .*'default' is of space 0{12} "
            with pytest.raises(ServiceError, match=refused):
                call.result(10)
            with pytest.raises(ServiceError, match=refused):
                client.search(text="a mug")
