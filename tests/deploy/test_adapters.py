"""Adapters in the service: named by inputs, loaded, unloaded and read anew, with the model reloaded, over gRPC."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.errors import PreconditionError
from deploy.server import Server, ServerConfig, load_model
from item.adapters.adapter import VALUES, linears_of
from item.adapters.files import ADAPTER_FILE, ADAPTERS_FOLDER, TENSORS_FILE, write_adapter
from item.catalog.listing import Listing
from item.cli import main
from item.client import Client
from item.engine.interface import Engine
from item.engine.loading import load_engine
from item.errors import ConfigError, ServiceError
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.model.folder import space_of_folder
from item.preprocessing.preprocessor import Preprocessor
from item.queries import Input, Part, Query
from tests.deploy.serving import GatedEngine, Hosting, RecordingEngine, space_of

METHODS = {"mugs": "road_1", "shoes": "road_1", "tops": "road_4"}
CATEGORIES = {"mugs": ("Home",), "shoes": ("Clothing", "Shoes"), "tops": ()}
TEXTS = ("red mug", "blue shoe", "green shirt", "a chair", "white lamp")


def put_adapter(
    model: Path,
    name: str,
    seed: int = 0,
    method: str = "road_1",
    space: str = "",
    category: tuple[str, ...] = (),
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """An adapter far from the identity, on all linear layers."""
    config = ItemConfig.load(model)
    generator = np.random.default_rng([seed, *name.encode()])
    values = {}
    for module, place in linears_of(config).items():
        count = (place.stop - place.start) // 2 * VALUES[method]
        values[module] = generator.normal(1, 0.3, count), generator.normal(0, 0.5, count)
    write_adapter(
        model,
        name,
        values,
        method=method,
        config=config,
        model_space=space or space_of_folder(model, config, Preprocessor.from_pretrained(model)),
        category=category or CATEGORIES.get(name, ()),
        write_more=write_more,
    )


def damage(model: Path, name: str) -> None:
    """One byte of its tensors is another one."""
    file = model / ADAPTERS_FOLDER / name / TENSORS_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_weights(model: Path) -> None:
    """Another model in the same folder."""
    changed = ITEm.from_pretrained(model)
    with torch.no_grad():
        for parameter in changed.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    changed.save_pretrained(model)


@pytest.fixture
def model(served_model: Path, tmp_path: Path) -> Path:
    """A model folder of one's own with three adapters."""
    folder = shutil.copytree(served_model, tmp_path / "model")
    for name, method in METHODS.items():
        put_adapter(folder, name, method=method)
    return folder


@pytest.fixture
def engine(model: Path) -> Engine:
    return load_engine(model, "cpu")


@pytest.fixture
def server(hosting: Hosting, engine: Engine, own_index: Path) -> Iterator[Server]:
    server = hosting.serve(engine, own_index, device="cpu")
    yield server
    hosting.run(server.stop())


@pytest.fixture
def command(server: Server, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `item` with arguments; its exit status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, "--server", f"127.0.0.1:{server.port}"])
        return (status, *capsys.readouterr())

    return run


def inputs(names: Sequence[str]) -> list[Input]:
    """The texts in turn, each with an adapter; "": the model alone."""
    return [Input(text=TEXTS[row % len(TEXTS)], adapter=name) for row, name in enumerate(names)]


MIXED = ("mugs", "", "shoes", "tops", "mugs", "", "tops")


class TestEmbed:
    def test_mixed_adapters_are_one_batch_and_equal_single_calls(self, hosting: Hosting, engine: Engine) -> None:
        recording = RecordingEngine(engine)
        server = hosting.serve(recording)
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            mixed = client.embed(inputs(MIXED))
            assert len(recording.calls) == 1
            single = [client.embed([one]) for one in inputs(MIXED)]
            streamed = list(client.embed_stream(inputs(MIXED)))
        np.testing.assert_allclose(mixed.vectors, np.concatenate([one.vectors for one in single]), atol=2e-6)
        np.testing.assert_allclose(np.stack(streamed), mixed.vectors, atol=2e-6)  # type: ignore[arg-type]
        expected = engine.encode([Listing(title=one.text) for one in inputs(MIXED)], [one or None for one in MIXED])
        np.testing.assert_allclose(mixed.vectors, expected.vectors, atol=2e-6)
        assert mixed.spaces == [space_of(engine, name or None) for name in MIXED]
        assert len(set(mixed.spaces)) == 4
        assert mixed.space == ""
        alone = client_free_vectors(engine, MIXED)
        different = [row for row, name in enumerate(MIXED) if name]
        assert np.abs(mixed.vectors - alone)[different].max(axis=1).min() > 0.01

    def test_one_adapter_is_one_space(self, client: Client, engine: Engine) -> None:
        result = client.embed([*inputs(["mugs", "mugs"]), Input()])
        assert result.space == space_of(engine, "mugs")
        assert result.spaces == [result.space, result.space, ""]

    def test_an_unknown_adapter_is_its_inputs_own_error(self, client: Client, engine: Engine) -> None:
        names = ["", "boots", "mugs", "../mugs"]
        result = client.embed(inputs(names))
        assert {row: error.code for row, error in result.errors.items()} == {1: "NOT_FOUND", 3: "NOT_FOUND"}
        assert result.errors[1].details == (
            "inputs[1].adapter: 'boots' is not loaded; this server has 'mugs', 'shoes', 'tops'"
        )
        np.testing.assert_allclose(result.vectors[[0, 2]], client.embed(inputs(names)).vectors[[0, 2]], atol=2e-6)
        first, refused, third, _ = client.embed_stream(inputs(names))
        assert isinstance(refused, ServiceError)
        assert (refused.code, refused.details[:21]) == ("NOT_FOUND", "input.adapter: 'boots")
        np.testing.assert_allclose(np.stack([first, third]), result.vectors[[0, 2]], atol=2e-6)  # type: ignore

    def test_an_adapter_that_cannot_be_used_says_why(self, client: Client, model: Path) -> None:
        damage(model, "shoes")
        put_adapter(model, "tops", space="0" * 64)
        names = ["shoes", "", "tops", "mugs", "shoes"]
        result = client.embed(inputs(names))
        assert {row: error.code for row, error in result.errors.items()} == dict.fromkeys(
            [0, 2, 4], "FAILED_PRECONDITION"
        )
        assert "inputs[0].adapter: " in str(result.errors[0])
        assert "damaged" in str(result.errors[0])
        assert "was made for another model (space 000000000000" in str(result.errors[2])
        assert np.isfinite(result.vectors[[1, 3]]).all()


def client_free_vectors(engine: Engine, names: Sequence[str]) -> Any:
    """(N, D) of the model alone."""
    return engine.encode([Listing(title=one.text) for one in inputs(names)]).vectors


class TestSearch:
    def test_a_query_in_an_adapters_space_is_refused(self, client: Client, engine: Engine) -> None:
        queries = [Query(parts=[Part(text="red mug", adapter=name)]) for name in ("mugs", "", "boots")]
        adapted, plain, unknown = client.search(queries, k=3)
        assert adapted.error is not None
        assert adapted.error.code == "FAILED_PRECONDITION"
        for said in ("queries[0].parts[0].input.adapter", space_of(engine, "mugs")[:12], engine.space[:12]):
            assert said in str(adapted.error)
        assert len(plain.hits) == 3
        assert unknown.error is not None
        assert unknown.error.code == "NOT_FOUND"

    def test_so_is_its_vector(self, client: Client) -> None:
        made = client.embed(inputs(["mugs"]))
        with pytest.raises(ServiceError, match=r"FAILED_PRECONDITION: queries\[0\].parts\[0\].vector.space"):
            client.search(vector=made.vectors[0], space=made.space)


class TestLoading:
    def test_what_there_is(self, client: Client, engine: Engine, model: Path) -> None:
        put_adapter(model, "new")
        put_adapter(model, "old", space="0" * 64)
        listed = {one.name: one for one in client.adapters()}
        assert list(listed) == ["mugs", "new", "old", "shoes", "tops"]
        assert [name for name, one in listed.items() if one.loaded] == list(METHODS)
        for name, method in METHODS.items():
            assert (listed[name].method, listed[name].category) == (method, CATEGORIES[name])
            assert listed[name].space == space_of(engine, name)
            assert listed[name].num_parameters == engine.adapters.get(name).num_parameters > 0
        assert "another model" in listed["old"].fault
        assert not listed["new"].fault
        assert client.info().adapters == list(METHODS)

    def test_unloaded_and_loaded_again(self, client: Client) -> None:
        before = client.embed(inputs(["mugs"])).vectors
        assert not client.unload_adapter("mugs").loaded
        assert client.info().adapters == ["shoes", "tops"]
        assert client.embed(inputs(["mugs", "shoes"])).errors[0].code == "NOT_FOUND"
        with pytest.raises(
            ServiceError, match="NOT_FOUND: name: 'mugs' is not loaded; this server has 'shoes', 'tops'"
        ):
            client.unload_adapter("mugs")
        assert client.load_adapter("mugs").loaded
        np.testing.assert_array_equal(client.embed(inputs(["mugs"])).vectors, before)

    def test_a_new_one_and_a_new_version(self, client: Client, engine: Engine, model: Path) -> None:
        put_adapter(model, "new")
        assert client.embed(inputs(["new"])).errors[0].code == "NOT_FOUND"
        first = client.load_adapter("new")
        before = client.embed(inputs(["new"]))
        assert before.space == first.space
        put_adapter(model, "new", seed=1)
        np.testing.assert_array_equal(client.embed(inputs(["new"])).vectors, before.vectors)  # until it is loaded
        second = client.load_adapter("new")
        after = client.embed(inputs(["new"]))
        assert (after.space, second.space != first.space) == (second.space, True)
        assert np.abs(after.vectors - before.vectors).max() > 0.01
        assert space_of(engine, "new") == second.space

    def test_what_cannot_be_loaded_leaves_all_as_it_was(self, client: Client, model: Path) -> None:
        before = client.embed(inputs(["mugs"]))
        damage(model, "mugs")
        put_adapter(model, "new")
        (model / ADAPTERS_FOLDER / "new" / ADAPTER_FILE).unlink()
        for name, message in (
            ("mugs", "FAILED_PRECONDITION: name: .*damaged, its digest"),
            ("new", "FAILED_PRECONDITION: name: .*adapter.json: no such file"),
            ("boots", "NOT_FOUND: name: 'boots' is not there; the model folder has 'mugs', 'new', 'shoes', 'tops'"),
            ("..", "NOT_FOUND: name: '..' is not there"),
            ("", "INVALID_ARGUMENT: name: is empty"),
        ):
            with pytest.raises(ServiceError, match=message):
                client.load_adapter(name)
        after = client.embed(inputs(["mugs"]))
        np.testing.assert_array_equal(after.vectors, before.vectors)
        assert client.info().adapters == list(METHODS)
        with pytest.raises(ServiceError, match="INVALID_ARGUMENT: name: is empty"):
            client.unload_adapter("")

    def test_few_in_memory(self, hosting: Hosting, model: Path) -> None:
        """All may be named, each is read again when its turn comes, and a call may name more than there is room for."""
        config = ServerConfig(device="cpu", num_adapters=1)
        engine = load_model(config, model, None)
        assert engine.adapters.loaded() == ["mugs"]
        server = hosting.serve(engine)
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            mixed = client.embed(inputs(MIXED))
            assert len(engine.adapters.loaded()) == 1
            assert client.info().adapters == list(METHODS)
            assert not mixed.errors
            np.testing.assert_allclose(
                mixed.vectors, np.concatenate([client.embed([one]).vectors for one in inputs(MIXED)]), atol=2e-6
            )
        with pytest.raises(ConfigError, match="num_adapters: 0 is below 1"):
            ServerConfig(num_adapters=0)

    def test_the_server_starts_without_those_that_are_damaged(
        self, model: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        damage(model, "shoes")
        engine = load_model(ServerConfig(device="cpu"), model, None)
        assert engine.adapters.loaded() == ["mugs", "tops"]
        assert "adapter 'shoes' cannot be used: " in caplog.text


class TestInFlight:
    """Calls that have begun end with what they began with."""

    @pytest.fixture
    def gated(self, hosting: Hosting, engine: Engine) -> Iterator[tuple[Server, GatedEngine]]:
        gated = GatedEngine(engine)
        server = hosting.serve(gated, device="cpu")
        yield server, gated
        gated.gate.release(100)
        hosting.run(server.stop())

    def test_unloading_waits_for_the_calls_that_use_it(self, gated: tuple[Server, GatedEngine]) -> None:
        server, engine = gated
        expected = engine.inner.encode([Listing(title=TEXTS[0])], "mugs").vectors
        with ThreadPoolExecutor(2) as threads, Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            call = threads.submit(client.embed, inputs(["mugs"]))
            engine.begun.get(timeout=10)
            unloading = threads.submit(client.unload_adapter, "mugs")
            with pytest.raises(TimeoutError):
                unloading.result(0.5)
            assert client.info().adapters == ["shoes", "tops"]
            engine.gate.release()
            np.testing.assert_allclose(call.result(10).vectors, expected, atol=2e-6)
            assert not unloading.result(10).loaded

    def test_a_new_version_while_a_call_runs(self, gated: tuple[Server, GatedEngine], model: Path) -> None:
        server, engine = gated
        expected, space = engine.inner.encode([Listing(title=TEXTS[0])], "mugs").vectors, space_of(engine, "mugs")
        with ThreadPoolExecutor(2) as threads, Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            call = threads.submit(client.embed, inputs(["mugs"]))
            engine.begun.get(timeout=10)
            put_adapter(model, "mugs", seed=1)
            assert client.load_adapter("mugs").space != space
            engine.gate.release(2)
            before = call.result(10)
            assert before.space == space
            np.testing.assert_allclose(before.vectors, expected, atol=2e-6)
            assert client.embed(inputs(["mugs"])).space != space

    def test_reloading_while_a_call_runs(self, gated: tuple[Server, GatedEngine], model: Path) -> None:
        server, engine = gated
        expected = engine.inner.encode([Listing(title=TEXTS[0])]).vectors
        with ThreadPoolExecutor(2) as threads, Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            call = threads.submit(client.embed, inputs([""]))
            engine.begun.get(timeout=10)
            change_weights(model)
            assert client.reload().space != engine.space
            engine.gate.release()
            before = call.result(10)
            assert before.space == engine.space
            np.testing.assert_allclose(before.vectors, expected, atol=2e-6)
            assert client.embed(inputs([""])).space != engine.space

    def test_a_vector_is_never_of_another_version_than_its_space(self, client: Client, model: Path) -> None:
        """Load, unload and reload come and go under the load of three callers."""
        versions: dict[str, Any] = {}
        for seed in (0, 1):
            put_adapter(model, "new", seed)
            space = client.load_adapter("new").space
            versions[space] = client.embed(inputs(["new"])).vectors[0]
        results, failures, stop = [], [], threading.Event()

        def embed() -> None:
            try:
                while not stop.is_set():
                    results.append(client.embed(inputs(["new", ""])))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=embed) for _ in range(3)]
        for thread in threads:
            thread.start()
        for seed in (0, 1, 0, 1):
            put_adapter(model, "new", seed)
            client.load_adapter("new")
            client.unload_adapter("new")
            client.reload()
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        found = [result for result in results if 0 not in result.errors]
        assert {result.errors[0].code for result in results if result.errors} <= {"NOT_FOUND"}
        assert {result.spaces[0] for result in found} == set(versions)
        for result in found:
            np.testing.assert_allclose(result.vectors[0], versions[result.spaces[0]], atol=2e-6)


class TestReload:
    def test_all_that_is_new_in_the_folder(self, client: Client, engine: Engine, model: Path) -> None:
        client.unload_adapter("mugs")
        put_adapter(model, "new")
        shutil.rmtree(model / ADAPTERS_FOLDER / "tops")
        reloaded = client.reload()
        assert (reloaded.space, reloaded.vector_width) == (engine.space, engine.vector_width)
        assert client.info().adapters == ["mugs", "new", "shoes"]
        assert len(client.search(text="red mug", k=3)[0].hits) == 3
        assert client.embed(inputs(["new"])).space

    def test_a_collection_is_never_left_without_its_engine(
        self, client: Client, server: Server, engine: Engine, model: Path
    ) -> None:
        kept = (model / "model.safetensors").read_bytes()
        change_weights(model)
        with pytest.raises(ServiceError, match="FAILED_PRECONDITION: variant: the collection 'default' is of space"):
            client.reload()
        with pytest.raises(ServiceError, match=r"FAILED_PRECONDITION: model: .*has no variant 'int3'"):
            client.reload("int3")
        (model / "model.safetensors").write_bytes(kept[:-100])
        with pytest.raises(ServiceError, match="FAILED_PRECONDITION: model: "):
            client.reload()
        assert client.info().space == engine.space
        assert len(client.search(text="red mug", k=3)[0].hits) == 3
        (model / "model.safetensors").write_bytes(kept)
        assert client.reload("").space == engine.space
        assert server.service.handlers is not None
        assert server.service.handlers.engine is not engine

    def test_a_server_without_collections_takes_any(self, hosting: Hosting, engine: Engine, model: Path) -> None:
        server = hosting.serve(engine, device="cpu")
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            change_weights(model)
            put_adapter(model, "mugs")
            reloaded = client.reload()
            assert reloaded.space != engine.space
            assert client.embed(["red mug"]).space == reloaded.space
            result = client.embed(inputs(["mugs", "shoes"]))
            assert result.errors[1].code == "FAILED_PRECONDITION"  # it was made for the model before
            assert 0 not in result.errors

    def test_another_variant(self, hosting: Hosting, model: Path, own_index: Path) -> None:
        from item.export.variants import Exporter

        Exporter(model).export("fp32")
        server = hosting.serve(load_engine(model, "cpu", variant="torch"), own_index, device="cpu")
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            before = client.embed(inputs(MIXED))
            assert client.reload("fp32").variant == "fp32"
            after = client.embed(inputs(MIXED))
            assert client.reload().variant == "fp32"  # the present one
        assert after.spaces == before.spaces
        np.testing.assert_allclose(after.vectors, before.vectors, atol=1e-5)

    def test_a_model_that_came_to_serve_meanwhile_stays(self, server: Server, engine: Engine, model: Path) -> None:
        handlers = server.service.handlers
        assert handlers is not None
        again = load_engine(model, "cpu")
        change_weights(model)
        with pytest.raises(PreconditionError, match="the collection 'default' is of space"):
            handlers.replace_engine(engine, load_engine(model, "cpu"))
        handlers.replace_engine(engine, again)
        with pytest.raises(PreconditionError, match="another model has come to serve meanwhile; call again"):
            handlers.replace_engine(engine, again)
        assert handlers.engine is again

    def test_only_one_at_a_time(self, hosting: Hosting, engine: Engine, model: Path) -> None:
        begun, go_on = threading.Event(), threading.Event()
        server = hosting.serve(engine, device="cpu")
        assert server.service.handlers is not None
        load = server.service.handlers.load

        def slow(folder: Path, variant: str | None) -> Engine:
            begun.set()
            assert go_on.wait(20)
            return load(folder, variant)

        server.service.handlers.load = slow
        with ThreadPoolExecutor(1) as threads, Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            first = threads.submit(client.reload)
            assert begun.wait(10)
            with pytest.raises(ServiceError, match=r"FAILED_PRECONDITION: the model .* by another call"):
                client.reload()
            go_on.set()
            assert first.result(20).space == engine.space


def test_the_commands(command: Callable[..., tuple[int, str, str]], engine: Engine, model: Path) -> None:
    status, out, _ = command("adapters")
    assert status == 0
    assert out.splitlines()[0].split() == ["name", "state", "method", "category", "parameters", "space"]
    assert out.splitlines()[2].split()[:4] == ["shoes", "loaded", "road_1", "Clothing/Shoes"]
    status, out, _ = command("unload-adapter", "shoes")
    assert (status, "not loaded" in out) == (0, True)
    assert [one["loaded"] for one in json.loads(command("adapters", "--json")[1])] == [True, False, True]
    status, out, err = command("embed", "--text", "blue shoe", "--adapter", "shoes")
    assert (status, out) == (2, "")
    assert err.startswith("error: NOT_FOUND: inputs[0].adapter: 'shoes' is not loaded")
    assert json.loads(command("load-adapter", "shoes", "--json")[1])["loaded"] is True
    _, out, _ = command("embed", "--text", "blue shoe", "--adapter", "shoes", "--json")
    assert json.loads(out)["space"] == space_of(engine, "shoes")
    status, out, _ = command("reload")
    assert (status, engine.space in out) == (0, True)
    damage(model, "tops")
    status, out, err = command("load-adapter", "tops")
    assert (status, err.count("\n")) == (2, 1)
    assert "FAILED_PRECONDITION: name: " in err
    status, _, err = command("reload", "--variant", "int3")
    assert (status, "has no variant 'int3'" in err) == (2, True)
