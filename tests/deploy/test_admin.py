"""Changing the model of a served collection, going back, and backups: over gRPC, as operators do it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.admin import AdminHandlers
from deploy.collections import Collections
from deploy.errors import PreconditionError
from deploy.handlers import Handlers, Limits
from deploy.server import Server
from index.generations import read_generations
from index.pictures import remove_kept
from index.store import Store
from item.admin import Reembedding
from item.catalog.listing import Listing, Picture
from item.cli import main
from item.client import Client
from item.engine.interface import Engine
from item.engine.loading import load_engine
from item.errors import ServiceError
from item.model.encoder import ITEm
from item.preprocessing.preprocessor import Preprocessor
from item.v1 import item_pb2
from tests.deploy.serving import Hosting, RecordingEngine, png, shop, write_index


@pytest.fixture(scope="session")
def new_model(served_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights."""
    folder = tmp_path_factory.mktemp("new-model")
    model = ITEm.from_pretrained(served_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.abs().mean() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    Preprocessor.from_pretrained(served_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def new_engine(new_model: Path) -> Engine:
    return load_engine(new_model, "cpu")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """The shop as files."""
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    rows = []
    for one in shop():
        (picture,) = one.images
        assert picture.data is not None
        (folder / picture.reference).write_bytes(picture.data)
        rows.append({"product_id": one.product_id, "title": one.title, "image": picture.reference})
    (folder / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def server(hosting: Hosting, served_model: Path, served_engine: Engine, tmp_path: Path) -> Iterator[Server]:
    """Over a collection whose model folder is known, and with a folder for backups."""
    write_index(tmp_path / "served", served_engine, shop())
    server = hosting.serve(served_engine, tmp_path / "served", backups=tmp_path / "backups", device="cpu")
    yield server
    hosting.run(server.stop())


def reembed(client: Client, new_model: Path, catalog: Path | str, **options: object) -> Reembedding:
    return [*client.reembed(str(new_model), catalog=str(catalog), **options)][-1]  # type: ignore


def vectors_of(server: Server, ids: list[str]) -> np.ndarray:
    store = server.collections["default"]
    return np.stack([store.vector(one) for one in ids])  # type: ignore


def test_another_model_and_back(
    client: Client, server: Server, new_model: Path, new_engine: Engine, served_engine: Engine, catalog: Path
) -> None:
    """What is written before, between and after is there, encoded by the model that serves."""
    steps = list(client.reembed(str(new_model), catalog=str(catalog)))
    last = steps[-1]
    assert (last.done, last.num_encoded, last.num_refused, steps[0].num_encoded) == (True, 30, 0, 0)
    assert last.overlap_at_10 is not None
    assert 0 < last.overlap_at_10 < 1
    assert all(sample.before != sample.after for sample in last.samples[:1])
    assert client.info().space == served_engine.space  # not searched yet
    tea = Listing(product_id="tea", title="green tea", images=(Picture(data=png("#0f0")),))
    client.upsert([tea])
    client.upsert(
        [item_pb2.Product(product_id="red-mug", attributes={"price": item_pb2.AttributeValue(number_value=3)})],
        update=["attributes.price"],
    )
    client.delete(["blue-chair"])
    switched = client.switch_generation()
    assert (switched.generation, switched.num_encoded) == (last.generation, 1)
    info = client.info()
    assert (info.space, info.collections[0].space, info.collections[0].num_products) == (*[new_engine.space] * 2, 30)
    expected = new_engine.encode([tea, *(one for one in shop() if one.product_id == "red-mug")]).vectors
    np.testing.assert_allclose(vectors_of(server, ["tea", "red-mug"]), expected, atol=1e-5)
    assert client.product("red-mug").attributes["price"] == 3
    with pytest.raises(ServiceError, match="NOT_FOUND"):
        client.product("blue-chair")
    (found,) = client.search(text="green tea", k=3)
    assert found.space == new_engine.space
    cake = Listing(product_id="cake", title="white cake", images=(Picture(data=png("#fff")),))
    client.upsert([cake])
    client.delete(["tea"])
    back = client.rollback()
    assert (back.generation, back.previous_generation) == (switched.previous_generation, switched.generation)
    assert client.info().space == served_engine.space
    np.testing.assert_allclose(vectors_of(server, ["cake"]), served_engine.encode([cake]).vectors, atol=1e-5)
    with pytest.raises(ServiceError, match="NOT_FOUND"):
        client.product("tea")
    assert client.product("red-mug").attributes["price"] == 3


def test_searches_go_on_through_a_switch(
    client: Client, server: Server, new_model: Path, new_engine: Engine, served_engine: Engine, catalog: Path
) -> None:
    assert reembed(client, new_model, catalog).done
    spaces, failures, stop = [], [], threading.Event()

    def search() -> None:
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as other:
            while not stop.is_set():
                try:
                    (result,) = other.search(text="red mug", k=5)
                    spaces.append(result.space)
                    assert len(result.hits) == 5
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    client.switch_generation()
    client.rollback()
    client.search(text="red mug")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(spaces) <= {served_engine.space, new_engine.space}
    assert spaces


def test_pictures_that_are_gone_are_never_silently_lost(client: Client, new_model: Path, catalog: Path) -> None:
    (catalog / "images" / "red-mug.png").unlink()
    last = reembed(client, new_model, catalog)
    assert (last.done, last.num_refused, list(last.refused)) == (False, 1, ["red-mug"])
    with pytest.raises(ServiceError, match=r"FAILED_PRECONDITION.*is not finished"):
        client.switch_generation(last.generation)
    last = reembed(client, new_model, catalog, words_alone=True)
    assert (last.done, last.num_words_alone, last.num_encoded) == (True, 1, 30)
    client.switch_generation(last.generation)


def test_it_goes_on_where_it_was(
    served_model: Path, served_engine: Engine, new_engine: Engine, new_model: Path, catalog: Path, tmp_path: Path
) -> None:
    write_index(tmp_path / "index", served_engine, shop())
    recording = RecordingEngine(new_engine)
    request = item_pb2.ReembedRequest(model=str(new_model), catalog=str(catalog), max_rate=10)
    for attempt in range(2):  # the second one in a server of its own, as after a kill
        collections = Collections.open(tmp_path / "index")
        handlers = Handlers(served_engine, collections, Limits(), load=lambda folder, variant: recording)
        admin, stop = AdminHandlers(handlers, None), threading.Event()
        steps = []
        for step in admin.reembed(request, stop):
            steps.append(step)
            if attempt == 0 and step.num_encoded:
                stop.set()
        assert steps[-1].done == (attempt == 1)
        collections.close()
    titles = Counter(title for call in recording.calls for title in call)
    assert titles == Counter(one.title for one in shop())


def test_what_a_refused_switch_names_as_the_way_out(
    client: Client, server: Server, new_model: Path, catalog: Path
) -> None:
    assert reembed(client, new_model, catalog).done
    client.upsert([Listing(product_id="tea", title="green tea", images=(Picture(data=png("#0f0")),))])
    store = server.collections["default"]
    assert isinstance(store, Store)
    remove_kept(store.folder)
    with pytest.raises(
        ServiceError, match=r"FAILED_PRECONDITION: words_alone: 1 products .* 'tea'.* or set words_alone"
    ):
        client.switch_generation()
    assert client.switch_generation(words_alone=True).num_encoded == 1
    assert client.search(text="green tea", k=1)[0].hits


def test_writes_do_not_wait_for_a_merge_that_a_switch_waits_for(
    client: Client, server: Server, new_model: Path, catalog: Path
) -> None:
    assert reembed(client, new_model, catalog).done
    store = server.collections["default"]
    assert isinstance(store, Store)
    with ThreadPoolExecutor(1) as threads:
        with store.resting():  # as a merge or a backup does
            switching = threads.submit(client.switch_generation)
            time.sleep(0.5)
            client.upsert([item_pb2.Product(product_id="tea", title="green tea")])
            assert client.search(text="green tea", k=1)[0].hits
            assert not switching.done()
        assert switching.result(20).num_encoded == 1
    assert client.product("tea").title == "green tea"


def test_after_a_restart_the_model_that_was_switched_to_serves(
    hosting: Hosting, served_engine: Engine, new_engine: Engine, new_model: Path, catalog: Path, tmp_path: Path
) -> None:
    """With the command line of before: --model names the old one."""
    write_index(tmp_path / "index", served_engine, shop())
    for attempt in range(2):
        server = hosting.serve(served_engine, tmp_path / "index", device="cpu")
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            if attempt == 0:
                assert reembed(client, new_model, catalog).done
                client.switch_generation()
            (found,) = client.search(text="red mug", k=3)
            assert (found.space, client.info().space) == (new_engine.space, new_engine.space)
            assert client.embed(["red mug"]).space == new_engine.space
        hosting.run(server.stop())


def test_backups(client: Client, tmp_path: Path) -> None:
    client.delete(["red-mug"])
    backup = client.backup("monday")
    assert (backup.num_products, Path(backup.path)) == (29, tmp_path / "backups" / "monday")
    client.delete(["red-shoe"])
    with Store.open(tmp_path / "backups" / "monday") as copy:
        assert copy.product("red-shoe") is not None
        assert copy.product("red-mug") is None
    with pytest.raises(ServiceError, match="'monday' is there already"):
        client.backup("monday")
    for name in ("", ".", "..", "../x", "a/b", ".hidden", "x" * 200):
        with pytest.raises(ServiceError, match="INVALID_ARGUMENT: name: "):
            client.backup(name)
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["monday"]


def test_what_cannot_be_done(
    client: Client, hosting: Hosting, own_server: Server, address: str, new_model: Path, catalog: Path, tmp_path: Path
) -> None:
    with Client(f"127.0.0.1:{own_server.port}", timeout_s=30) as without, Client(address, timeout_s=30) as reader:
        for call, message in (
            (lambda: client.switch_generation(), "FAILED_PRECONDITION: generation: none is finished; call Reembed"),
            (lambda: client.switch_generation("generation-x"), "NOT_FOUND: generation: 'generation-x' is not there"),
            (lambda: client.rollback(), "FAILED_PRECONDITION: collection: 'default' has no generation before"),
            (lambda: reembed(client, tmp_path / "none", catalog), "FAILED_PRECONDITION: model: .* is no folder"),
            (lambda: reembed(client, tmp_path, catalog), "FAILED_PRECONDITION: model: "),
            (lambda: reembed(client, new_model, tmp_path / "none"), "INVALID_ARGUMENT: catalog: "),
            (lambda: reembed(client, new_model, catalog, max_rate=0.0), "INVALID_ARGUMENT: max_rate: "),
            (lambda: reembed(client, new_model, catalog, collection="x"), "NOT_FOUND: collection: 'x'"),
            (lambda: without.backup("monday"), "FAILED_PRECONDITION: this server has no folder for backups"),
            (lambda: reader.backup("monday"), "FAILED_PRECONDITION: "),
            (lambda: reembed(reader, new_model, catalog), "FAILED_PRECONDITION: collection: this server only reads"),
        ):
            with pytest.raises(ServiceError, match=message):
                call()
    (collection,) = client.info().collections
    assert read_generations(tmp_path / "served" / "default").current == collection.generation


def test_one_at_a_time(
    served_engine: Engine, new_engine: Engine, new_model: Path, catalog: Path, tmp_path: Path
) -> None:
    write_index(tmp_path / "index", served_engine, shop())
    with closing(Collections.open(tmp_path / "index")) as collections:
        handlers = Handlers(served_engine, collections, Limits(), load=lambda *_: new_engine)
        admin = AdminHandlers(handlers, None)
        request = item_pb2.ReembedRequest(model=str(new_model), catalog=str(catalog))
        first = admin.reembed(request, threading.Event())
        next(first)
        with pytest.raises(PreconditionError, match="by another call"):
            next(admin.reembed(request, threading.Event()))
        with pytest.raises(PreconditionError, match="by another call"):
            admin.switch_generation(item_pb2.SwitchGenerationRequest())
        assert list(first)[-1].done


def test_the_commands(
    server: Server, new_model: Path, catalog: Path, capsys: pytest.CaptureFixture[str], new_engine: Engine
) -> None:
    def item(*arguments: str) -> tuple[int, str]:
        status = main([*arguments, "--server", f"127.0.0.1:{server.port}"])
        return status, capsys.readouterr().out

    status, out = item("reembed", "--model", str(new_model), "--catalog", str(catalog))
    assert status == 0
    assert "30 of 30 products encoded; 0." in out
    assert out.splitlines()[0].split() == ["product", "overlap", "nearest", "before", "nearest", "after"]
    status, out = item("switch")
    assert (status, "is searched in place of" in out) == (0, True)
    _, out = item("info", "--json")
    assert json.loads(out)["space"] == new_engine.space
    assert item("rollback")[0] == 0
    status, out = item("backup", "--name", "monday")
    assert (status, "30 products" in out) == (0, True)
    assert item("switch", "generation-x")[0] == 2
