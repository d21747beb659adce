"""Categories by heads: probabilities, adapters in the second pass, abstention, errors, over gRPC."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import Deadline, DeadlineError
from deploy.handlers import Handlers, Limits
from deploy.server import Server, ServerConfig, load_model
from item.adapters.bank import Named
from item.adapters.head import HEADS_FILE, HEADS_FOLDER, RANKS, Head, Heads, Novelty, unit
from item.adapters.predict import LIKELY
from item.catalog.listing import Listing
from item.cli import main
from item.client import Client
from item.engine.interface import Engine, Vectors
from item.engine.loading import load_engine
from item.errors import ModelError, ServiceError
from item.preprocessing.prepared import Prepared
from item.queries import Input
from item.results import Prediction
from item.v1 import item_pb2
from tests.deploy.serving import Hosting, RecordingEngine, png, shop
from tests.deploy.test_adapters import damage, put_adapter

Category = tuple[str, ...]

WORDS_WIDTH = 64  # 2 D of the tiny model

PATHS: dict[Category, tuple[Category, ...]] = {
    ("Clothing",): (("Clothing", "Tops", "Shirts"), ("Clothing", "Tops", "Blouses"), ("Clothing", "Shoes")),
    ("Home",): (("Home", "Kitchen", "Mugs"), ("Home", "Chairs")),
    ("Lamps",): (("Lamps",),),  # a top level without levels below it has no head
    ("Toys",): (("Toys", "Dolls"), ("Toys", "Cars")),
}
ADAPTED: dict[Category, str] = {("Clothing",): "clothes", ("Home",): "home"}
LEAVES = [path for paths in PATHS.values() for path in paths]
SHOP = [Input(text=one.title, description=one.description, image=one.images[0].data) for one in shop()]
GIVEN = [
    *SHOP[::5],
    Input(text="red mug"),
    Input(text="quite another thing"),
    Input(image=png("#0a0")),
    Input(text="blue shoe", image=png("#c00")),
]


def make_head(category: Category, paths: Sequence[Category], features: Vectors, temperature: float = 0.7) -> Head:
    """A head with random weights, whose logits differ among these listings, (N, F)."""
    random = np.random.default_rng([len(paths), *"/".join(category).encode()])
    weight = random.normal(size=(len(paths), features.shape[1]))
    weight /= (features @ weight.T).std(axis=0)[:, None]
    bias = -weight @ features.mean(axis=0)
    return Head(
        category=category,
        paths=tuple(paths),
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=temperature,
    )


def write_heads(model: Path) -> None:
    """Heads on the features of the model alone; the shop's listings are what they learned from."""
    engine = load_engine(model, "cpu")
    features = engine.features_of([engine.preprocessor(one) for one in shop()])
    heads = [make_head((), list(PATHS), features)]
    heads += [make_head(top, paths, features) for top, paths in PATHS.items() if paths != (top,)]
    ranks = np.broadcast_to(np.linspace(1e-4, 1e-2, RANKS, dtype=np.float32), (3, RANKS))
    folder = model / HEADS_FOLDER
    folder.mkdir()
    Heads(
        model_space=engine.model_space,
        words_width=WORDS_WIDTH,
        heads=tuple(heads),
        novelty=Novelty(centres=unit(features), ranks=ranks),
    ).write(folder)


def write_specialist(model: Path, category: Category, seed: int = 0) -> None:
    """An adapter with a head of its own."""
    put_adapter(model, ADAPTED[category], seed)
    engine = load_engine(model, "cpu")
    prepared = [engine.preprocessor(one) for one in shop()]
    features = engine.features_of(prepared, [ADAPTED[category]] * len(prepared))
    head = make_head(category, PATHS[category], features, temperature=1.3)
    heads = Heads(model_space=engine.model_space, words_width=WORDS_WIDTH, heads=(head,))
    put_adapter(model, ADAPTED[category], seed, category=category, write_more=heads.write)


@pytest.fixture(scope="module")
def written(served_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads, two adapters with heads, and one without."""
    model = shutil.copytree(served_model, tmp_path_factory.mktemp("heads") / "model")
    write_heads(model)
    for category in ADAPTED:
        write_specialist(model, category)
    put_adapter(model, "toys", category=("Toys",))
    return model


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "model")


@pytest.fixture
def engine(model: Path) -> Engine:
    return load_engine(model, "cpu")


@pytest.fixture
def server(hosting: Hosting, engine: Engine) -> Iterator[Server]:
    """Without any collection."""
    server = hosting.serve(engine, device="cpu")
    yield server
    hosting.run(server.stop())


def listing(one: Input) -> Listing:
    """An input as the library takes it."""
    message = one.message("")
    images = [replace(shop()[0].images[0], data=message.image)] if message.HasField("image") else []
    return Listing(title=one.text, description=one.description, images=tuple(images))


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max())
    return e / e.sum()


def by_definition(engine: Engine, one: Input) -> tuple[dict[Category, float], dict[Category, str]]:
    """P(path) of every path, and the adapter that each is from: listing by listing, in float64."""
    heads = engine.heads
    assert heads is not None

    def of_head(head: Head, adapter: str | None) -> dict[Category, float]:
        (x,) = engine.features_of([engine.preprocessor(listing(one))], [adapter]).astype(np.float64)
        p = softmax((head.weight.astype(np.float64) @ x + head.bias) / head.temperature)
        return dict(zip(head.paths, p.tolist(), strict=True))

    root = heads.of(())
    assert root is not None
    p_paths, names = {}, {}
    for top, p_top in of_head(root, None).items():
        head, name = heads.of(top), ""
        if top in ADAPTED and p_top >= LIKELY:
            name = ADAPTED[top]
            adapter = engine.adapters.get(name)
            assert adapter.heads is not None
            head = adapter.heads.of(top)
        below = {top: 1.0} if head is None else of_head(head, name or None)
        for path, p in below.items():
            p_paths[path], names[path] = p_top * p, name
    return p_paths, names


def levels(p_paths: dict[Category, float], path: Category) -> list[float]:
    """The probability of each level of a path."""
    return [
        sum(p for other, p in p_paths.items() if other[:depth] == path[:depth]) for depth in range(1, len(path) + 1)
    ]


def same(prediction: Prediction, other: Prediction) -> None:
    """Both say the same."""
    assert prediction.error is None
    assert [path.category for path in prediction.paths] == [path.category for path in other.paths]
    for one, two in zip(prediction.paths, other.paths, strict=True):
        np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)
    assert (prediction.adapter, prediction.abstained) == (other.adapter, other.abstained)


class TestProbabilities:
    def test_they_are_those_of_the_definition(self, client: Client, engine: Engine) -> None:
        used = set()
        for one, prediction in zip(GIVEN, client.predict(GIVEN, top_k=100), strict=True):
            p_paths, names = by_definition(engine, one)
            assert [path.category for path in prediction.paths] == sorted(p_paths, key=lambda path: -p_paths[path])
            for path in prediction.paths:
                np.testing.assert_allclose(path.probabilities, levels(p_paths, path.category), atol=2e-4)
            assert prediction.method == "head"
            assert prediction.adapter == names[prediction.paths[0].category]
            used.add(prediction.adapter)
        assert used == {"", "clothes", "home"}

    def test_every_level_sums_to_what_is_above_it(self, client: Client) -> None:
        for prediction in client.predict(GIVEN, top_k=100):
            assert {path.category for path in prediction.paths} == set(LEAVES)
            assert sum(path.probabilities[-1] for path in prediction.paths) == pytest.approx(1, abs=1e-5)
            of_prefix = {
                path.category[:depth]: p for path in prediction.paths for depth, p in enumerate(path.probabilities, 1)
            }
            for prefix, p in of_prefix.items():
                below = [q for other, q in of_prefix.items() if other[:-1] == prefix]
                assert p == pytest.approx(sum(below), abs=1e-5) or not below
            assert sum(p for prefix, p in of_prefix.items() if len(prefix) == 1) == pytest.approx(1, abs=1e-5)

    def test_top_k_is_the_beginning(self, client: Client) -> None:
        whole, few = client.predict(GIVEN, top_k=100), client.predict(GIVEN, top_k=2)
        for one, two in zip(few, whole, strict=True):
            same(one, replace(two, paths=two.paths[:2]))

    @pytest.mark.parametrize("start", [("Clothing",), ("Clothing", "Tops"), ("Home", "Chairs"), ("Lamps",), ("Toys",)])
    def test_below_a_start(self, client: Client, start: Category) -> None:
        """Given that the start is right, however unlikely it is."""
        p_whole = [prediction.paths for prediction in client.predict(GIVEN, top_k=100)]
        for paths, prediction in zip(p_whole, client.predict(GIVEN, top_k=100, start_category=start), strict=True):
            assert {path.category for path in prediction.paths} == {one for one in LEAVES if one[: len(start)] == start}
            assert sum(path.probabilities[-1] for path in prediction.paths) == pytest.approx(1, abs=1e-5)
            for path in prediction.paths:
                assert path.probabilities[: len(start)] == (1.0,) * len(start)
            assert prediction.adapter == ADAPTED.get(start[:1], "")
            likely = next(path.probabilities[0] for path in paths if path.category[0] == start[0]) >= LIKELY
            if likely or start[:1] not in ADAPTED:  # the same head told the paths apart
                below = {
                    path.category: path.probabilities[-1] for path in paths if path.category[: len(start)] == start
                }
                for path in prediction.paths:
                    share = below[path.category] / sum(below.values())
                    assert path.probabilities[-1] == pytest.approx(share, abs=1e-3)

    def test_below_what_is_no_category(self, client: Client) -> None:
        for start in (("Cars",), ("Clothing", "Hats"), ("Lamps", "Desk")):
            (prediction,) = client.predict(["red mug"], start_category=start)
            assert (prediction.paths, prediction.abstained, prediction.method) == ([], True, "head")

    def test_in_one_call_as_alone(self, client: Client) -> None:
        for one, prediction in zip(GIVEN, client.predict(GIVEN), strict=True):
            same(prediction, client.predict([one])[0])


def test_what_resembles_nothing_is_unknown(client: Client) -> None:
    known, other = client.predict([SHOP[0], Input(text="mug lamp chair shirt shoe")])
    assert (known.unknown, known.abstained) == (0.0, False)
    assert (other.unknown, other.abstained) == (1.0, True)
    assert other.paths  # the most probable ones all the same


class Counting(RecordingEngine):
    """Remembers what is encoded of features, batch by batch."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.batches: list[list[str]] = []

    def features_of(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        self.batches.append([""] * len(prepared))
        return super().features_of(prepared, adapters)

    def adapt_features(self, prepared: Sequence[Prepared], features: Vectors, adapters: Sequence[Named]) -> Vectors:
        self.batches.append([getattr(one, "name", "") for one in adapters])
        return super().adapt_features(prepared, features, adapters)


def test_two_batches_one_of_them_mixed(hosting: Hosting, engine: Engine) -> None:
    counting = Counting(engine)
    server = hosting.serve(counting)
    with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
        client.predict(GIVEN)
    first, second = counting.batches
    assert first == [""] * len(GIVEN)
    assert set(second) == set(ADAPTED.values())
    assert not counting.calls


class Gated(Counting):
    """Begins the second batch only when the test lets it."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def features_of(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        self.begun.set()
        assert self.go_on.wait(20)
        return super().features_of(prepared, adapters)


def test_a_prediction_ends_with_what_it_began_with(
    hosting: Hosting, engine: Engine, model: Path, written: Path
) -> None:
    gated = Gated(engine)
    server = hosting.serve(gated, device="cpu")
    with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client, ThreadPoolExecutor(2) as threads:
        call = threads.submit(client.predict, GIVEN, top_k=100)
        assert gated.begun.wait(10)
        unloading = threads.submit(client.unload_adapter, "home")
        while "home" in engine.adapters.names():
            time.sleep(0.01)
        write_specialist(model, ("Clothing",), seed=1)
        client.load_adapter("clothes")
        gated.go_on.set()
        during = call.result(10)
        unloading.result(10)
        assert {one.adapter for one in during} == {"", "clothes", "home"}
        after = client.predict(GIVEN, top_k=100)
    assert {one.adapter for one in after} == {"", "clothes"}
    untouched = hosting.serve(load_engine(written, "cpu"))
    with Client(f"127.0.0.1:{untouched.port}", timeout_s=30) as client:
        for one, prediction in zip(client.predict(GIVEN, top_k=100), during, strict=True):
            same(prediction, one)
    of_clothes = [row for row, one in enumerate(during) if one.adapter == after[row].adapter == "clothes"]
    assert any(during[row].paths != after[row].paths for row in of_clothes)


def test_bad_inputs_leave_their_neighbours_alone(client: Client) -> None:
    bad = [
        Input(),
        Input(text="fine", image=b"no picture"),
        Input(text="a", adapter="boots"),
        Input(text="a", adapter="home"),
    ]
    first, *refused, last = client.predict([GIVEN[0], *bad, GIVEN[1]])
    assert [str(one.error).split(": ")[:2] for one in refused] == [
        ["INVALID_ARGUMENT", "inputs[1]"],
        ["INVALID_ARGUMENT", "inputs[2].image"],
        ["NOT_FOUND", "inputs[3].adapter"],
        ["INVALID_ARGUMENT", "inputs[4].adapter"],
    ]
    for one, prediction in ((GIVEN[0], first), (GIVEN[1], last)):
        same(prediction, client.predict([one])[0])
    assert all(one.error is not None for one in client.predict(bad))


class TestChanges:
    """What is loaded, unloaded and reloaded shows in the next prediction."""

    def adapters(self, client: Client) -> set[str]:
        return {prediction.adapter for prediction in client.predict(GIVEN, top_k=100)}

    def test_an_adapter_that_comes_and_goes(self, client: Client) -> None:
        before = client.predict(GIVEN, top_k=100)
        client.unload_adapter("home")
        assert self.adapters(client) == {"", "clothes"}
        (alone,) = client.predict([Input(text="red mug")], start_category=("Home",))
        client.load_adapter("home")
        (adapted,) = client.predict([Input(text="red mug")], start_category=("Home",))
        assert (alone.adapter, adapted.adapter) == ("", "home")
        assert abs(alone.paths[0].probabilities[-1] - adapted.paths[0].probabilities[-1]) > 1e-3
        for one, prediction in zip(before, client.predict(GIVEN, top_k=100), strict=True):
            same(prediction, one)

    def test_an_adapter_that_is_damaged_does_not_help(
        self, hosting: Hosting, model: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        damage(model, "home")
        server = hosting.serve(load_engine(model, "cpu"), device="cpu")
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            for _ in range(2):
                assert self.adapters(client) == {"", "clothes"}
            assert caplog.text.count("adapter 'home' does not help to predict categories: ") == 1
            write_specialist(model, ("Home",))
            client.load_adapter("home")
            assert self.adapters(client) == {"", "clothes", "home"}

    def test_heads_that_are_damaged_are_never_served(self, client: Client, model: Path) -> None:
        before = client.predict(GIVEN)
        kept = (model / HEADS_FOLDER / HEADS_FILE).read_text()
        described = json.loads(kept)
        for text in (
            kept[:-20],
            json.dumps({**described, "sha256": "0" * 64}),
            json.dumps({**described, "model_space": "0" * 64}),
            json.dumps({**described, "heads": described["heads"][1:]}),
        ):
            (model / HEADS_FOLDER / HEADS_FILE).write_text(text)
            with pytest.raises(ModelError, match=r"heads\.(json|safetensors)"):
                load_model(ServerConfig(device="cpu"), model, None)
            with pytest.raises(ServiceError, match="FAILED_PRECONDITION: model: "):
                client.reload()
        for one, prediction in zip(before, client.predict(GIVEN), strict=True):
            same(prediction, one)
        (model / HEADS_FOLDER / HEADS_FILE).write_text(kept)
        client.reload()

    def test_heads_that_come_with_a_reload(self, hosting: Hosting, model: Path, own_index: Path) -> None:
        shutil.move(model / HEADS_FOLDER, model / "aside")
        server = hosting.serve(load_engine(model, "cpu"), own_index, device="cpu")
        with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
            assert {one.method for one in client.predict(["red mug"])} == {"neighbour_vote"}
            shutil.move(model / "aside", model / HEADS_FOLDER)
            client.reload()
            assert {one.method for one in client.predict(["red mug"])} == {"head"}
            assert {one.method for one in client.predict(["red mug"], collection="default")} == {"head"}
            with pytest.raises(ServiceError, match="NOT_FOUND: collection: 'winter'"):
                client.predict(["red mug"], collection="winter")


def test_nothing_is_predicted_after_the_deadline(engine: Engine) -> None:
    late = Deadline.after(-1)
    request = item_pb2.PredictCategoryRequest(inputs=[item_pb2.Input(text="a")])
    with pytest.raises(DeadlineError):
        Handlers(engine, {}, Limits()).predict_category(request, "me", late)


def test_the_command(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    def predict(*arguments: str) -> tuple[int, str]:
        status = main(["predict", "--text", "red mug", *arguments, "--server", f"127.0.0.1:{server.port}"])
        return status, capsys.readouterr().out

    status, out = predict("--under", "Home", "--top-k", "1")
    header, row, caution, summary = out.splitlines()
    assert (status, header.split()) == (0, ["probability", "category", "levels"])
    assert row.split()[1].startswith("Home/")
    assert row.split()[2] == "1.000"
    assert caution == "not to be relied upon: it resembles little that the heads learned from"
    assert summary.startswith("head, adapter home, unknown 1.000, ")
    status, out = predict("--under", "Cars")
    assert (status, out.splitlines()[0]) == (0, "no prediction: the heads know no category there")
    found = json.loads(predict("--json")[1])
    assert (found["method"], found["abstained"], found["unknown"]) == ("head", True, 1.0)
