"""Adapters in the engines: each listing by its own, whatever is beside it; features; spaces; clear errors."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploy.export import main
from item.adapters.adapter import VALUES, linears_of
from item.adapters.bank import Rotations
from item.adapters.files import write_adapter
from item.catalog.listing import Listing, Picture
from item.engine import Engine, load_engine
from item.engine.interface import Outputs
from item.engine.loading import warm_up
from item.engine.model_engine import ModelEngine
from item.engine.onnx_runner import OnnxRunner
from item.engine.torch_runner import TorchRunner
from item.errors import ModelError
from item.export.variants import Exporter
from item.model.config import ItemConfig
from item.model.encoder import GATE_SHUT, ITEm
from item.model.folder import space_of_folder
from item.preprocessing.prepared import Prepared
from item.preprocessing.preprocessor import Preprocessor
from item.preprocessing.spelling import stack_spelling

NAMES = (None, "shirts", "mugs", "chairs", "prints")
METHODS = {"shirts": "road_1", "mugs": "road_1", "chairs": "road_2", "prints": "road_4"}
VARIANTS = ("fp32", "int8", "torch")
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
Array = npt.NDArray[Any]


def write_adapters(folder: Path, names: Sequence[str]) -> None:
    """Adapters far from the identity; "mugs" of the MLPs alone."""
    config = ItemConfig.load(folder)
    space = space_of_folder(folder, config, Preprocessor.from_pretrained(folder))
    for name in names:
        generator = np.random.default_rng(len(name))
        values = {}
        for module, place in linears_of(config).items():
            if name != "mugs" or module.endswith(("up", "down")):
                count = (place.stop - place.start) // 2 * VALUES[METHODS[name]]
                values[module] = generator.normal(1, 0.3, count), generator.normal(0, 0.5, count)
        write_adapter(folder, name, values, method=METHODS[name], config=config, model_space=space)


def make_folder(folder: Path, catalog: Path, *, fitted: bool) -> Path:
    """A model whose vectors read all there is, or words and pictures side by side as a fitted one, with variants and
    adapters."""
    torch.manual_seed(2)
    model = ITEm.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.vector.weights.copy_(torch.tensor([[0.5, 0.4, 0.7, 0.3, 0.0], [0.6, 0.3, 0.5, 0.4, 0.0]]))
        if fitted:
            model.vector.global_projection.zero_()
            model.gates.fill_(GATE_SHUT)
    model.save_pretrained(folder)
    Exporter(folder).export("fp32")
    assert main(["--model", str(folder), "--variant", "int8", "--catalog", str(catalog)]) == 0
    write_adapters(folder, list(METHODS))
    return folder


@pytest.fixture(scope="module", params=["whole", "fitted"])
def folder(
    request: pytest.FixtureRequest, model_folder: Path, catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    copy = shutil.copytree(model_folder, tmp_path_factory.mktemp("adapted") / "model")
    return make_folder(copy, catalog_folder, fitted=request.param == "fitted")


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[str, Engine]:
    return {variant: load_engine(folder, "cpu", num_threads=1, variant=variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def alone(engines: dict[str, Engine], listings: list[Listing]) -> dict[str, dict[str | None, Outputs]]:
    """By engine and adapter, vectors and features of each listing encoded by itself."""
    made: dict[str, dict[str | None, Outputs]] = {}
    for variant, engine in engines.items():
        made[variant] = {}
        for name in NAMES:
            vectors = [engine.encode([one], name).vectors for one in listings[:12]]
            features = [engine.features_of([engine.preprocessor(one)], [name]) for one in listings[:12]]
            made[variant][name] = Outputs(np.concatenate(vectors), np.concatenate(features))
    return made


@EACH_VARIANT
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.tuples(st.integers(0, 11), st.sampled_from(NAMES)), min_size=1, max_size=24),
    budget=st.sampled_from([1, 60, 2048]),
)
def test_a_mixed_batch_is_its_listings_alone(
    engines: dict[str, Engine],
    alone: dict[str, dict[str | None, Outputs]],
    listings: list[Listing],
    variant: str,
    asked: list[tuple[int, str | None]],
    budget: int,
) -> None:
    engine = engines[variant]
    assert isinstance(engine, ModelEngine)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine.runner, "token_budget", budget)
        some, names = [listings[row] for row, _ in asked], [name for _, name in asked]
        vectors = engine.encode(some, names).vectors
        features = engine.features_of([engine.preprocessor(one) for one in some], names)
    single = alone[variant]
    np.testing.assert_allclose(vectors, [single[name].vectors[row] for row, name in asked], atol=1e-6)
    np.testing.assert_allclose(features, [single[name].features[row] for row, name in asked], atol=1e-6)


def test_adapters_change_words_and_onnx_equals_torch(
    alone: dict[str, dict[str | None, Outputs]], listings: list[Listing]
) -> None:
    has_words = np.array([bool(one.title) for one in listings[:12]])
    assert 0 < has_words.sum() < 12
    for name in NAMES:
        onnx, reference = alone["fp32"][name], alone["torch"][name]
        np.testing.assert_allclose(onnx.vectors, reference.vectors, atol=1e-5)
        np.testing.assert_allclose(onnx.features, reference.features, atol=1e-5)
        assert (alone["int8"][name].vectors * reference.vectors).sum(1).min() > 0.99
        for other in NAMES[: NAMES.index(name)]:
            difference = np.abs(reference.vectors - alone["torch"][other].vectors).max(axis=1)
            assert difference[has_words].min() > 0.05


@EACH_VARIANT
def test_no_adapter_is_the_model_alone(engines: dict[str, Engine], listings: list[Listing], variant: str) -> None:
    engine = engines[variant]
    prepared = [engine.preprocessor(one) for one in listings[:12]]
    plain, names = engine.encode_prepared(prepared), [None, "shirts"] * 6
    np.testing.assert_array_equal(engine.encode_prepared(prepared, [None] * 12), plain)
    np.testing.assert_allclose(engine.encode_prepared(prepared, names)[::2], plain[::2], atol=1e-6)
    for_all = engine.encode(listings[:12], "mugs").vectors
    np.testing.assert_array_equal(for_all, engine.encode(listings[:12], ["mugs"] * 12).vectors)


@EACH_VARIANT
def test_features_are_what_the_head_reads(
    engines: dict[str, Engine], folder: Path, listings: list[Listing], variant: str
) -> None:
    engine, model = engines[variant], ITEm.from_pretrained(folder)
    width = 2 * model.config.width
    prepared = [engine.preprocessor(one) for one in listings[:12]]
    features = engine.features_of(prepared, ["shirts"] * 12)
    assert features.shape == (12, engine.features_width) == (12, width + model.stem.pooled_width)
    has_words = np.array([one.word_ids is not None for one in prepared], np.float32)
    has_picture = np.array([one.pixels is not None for one in prepared], np.float32)
    assert 0 < has_words.sum() < 12
    assert 0 < has_picture.sum() < 12
    np.testing.assert_allclose(np.linalg.norm(features[:, :width], axis=1), has_words, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features[:, width:], axis=1), has_picture, atol=1e-5)
    if not model.vector.global_projection.any():  # then they and the spelling decide the vector
        spelling = stack_spelling([one.spelling for one in prepared])
        parts = (*np.split(features, [width], axis=1), spelling)
        expected = vectors_of_features(model, *map(torch.from_numpy, parts))
        np.testing.assert_allclose(engine.encode_prepared(prepared, ["shirts"] * 12), expected, atol=1e-5)


@torch.inference_mode()
def vectors_of_features(model: ITEm, words: Tensor, picture: Tensor, spelling: Tensor) -> Array:
    """The vectors where the head reads no state and has no categories."""
    head, e, meeting = model.vector, torch.zeros(()), torch.zeros(())
    has_both = words.any(dim=1) & picture.any(dim=1)
    weights = head.weights[has_both.long()]
    for part, x, weight in ((head.words, words, weights[:, :1]), (head.picture, picture, weights[:, 2:3])):
        there = x.any(dim=1, keepdim=True)
        e = e + weight * there * F.normalize(x @ part.projection.T, dim=-1)
        meeting = meeting + there * F.normalize(part.tower(x), dim=-1)
    e = e + weights[:, 1:2] * F.normalize(spelling @ head.spelling_projection.T, dim=-1)
    return np.asarray(F.normalize(e + weights[:, 3:4] * F.normalize(meeting, dim=-1), dim=-1).numpy())


@EACH_VARIANT
def test_refused_listings_have_no_vector(engines: dict[str, Engine], listings: list[Listing], variant: str) -> None:
    engine = engines[variant]
    broken = Listing(title="mug", images=(Picture(data=b"no picture"),))
    some = [listings[0], broken, listings[1]]
    encoded = engine.encode(some, ["shirts", "mugs", "chairs"])
    assert list(encoded.refused) == [1]
    assert np.isnan(encoded.vectors[1]).all()
    assert np.isfinite(encoded.vectors[[0, 2]]).all()
    expected = engine.encode(listings[:2], ["shirts", "chairs"]).vectors
    np.testing.assert_allclose(encoded.vectors[[0, 2]], expected, atol=2e-6)


def test_more_listings_than_a_window_keep_their_adapters(engines: dict[str, Engine], listings: list[Listing]) -> None:
    engine = engines["fp32"]
    many, names = [listings[row % 11] for row in range(300)], [NAMES[row % 5] for row in range(300)]
    vectors = engine.encode(many, names).vectors
    np.testing.assert_allclose(vectors[55:110], vectors[:55], atol=2e-6)
    np.testing.assert_allclose(vectors[220:275], vectors[:55], atol=2e-6)


@EACH_VARIANT
def test_each_adapter_has_a_space(engines: dict[str, Engine], variant: str) -> None:
    engine = engines[variant]
    spaces = {engine.space, *(engine.adapters.get(name).space(engine.space) for name in METHODS)}
    assert len(spaces) == len(NAMES)
    assert engine.model_space == engines["torch"].space


@EACH_VARIANT
def test_unknown_adapters_are_named(engines: dict[str, Engine], listings: list[Listing], variant: str) -> None:
    engine = engines[variant]
    message = r"there is no adapter 'shoes' \(loaded: chairs, mugs, prints, shirts\)"
    prepared = [engine.preprocessor(listings[0])]
    for ask in (
        lambda: engine.encode(listings[:2], "shoes"),
        lambda: engine.encode(listings[:2], [None, "shoes"]),
        lambda: engine.encode_prepared(prepared, ["shoes"]),
        lambda: engine.features_of(prepared, ["shoes"]),
        lambda: engine.adapters.get("shoes"),
    ):
        with pytest.raises(ModelError, match=message):
            ask()
    assert engine.encode([], "shoes").vectors.shape == (0, engine.vector_width)


def test_adapters_come_and_go(folder: Path, listings: list[Listing]) -> None:
    engine = load_engine(folder, "cpu")
    assert isinstance(engine, ModelEngine)
    assert isinstance(engine.runner, OnnxRunner)
    assert "adapted_layers" not in engine.runner.__dict__
    warm_up(engine)
    assert "adapted_layers" not in engine.runner.__dict__, "a server without adapters pays for none"
    before = engine.encode(listings[:2], "shirts").vectors
    warm_up(engine)
    engine.adapters.unload("shirts")
    with pytest.raises(ModelError, match="no adapter 'shirts'"):
        engine.encode(listings[:2], ["shirts", None])
    engine.adapters.load("shirts")
    np.testing.assert_array_equal(engine.encode(listings[:2], "shirts").vectors, before)


def test_warming_up_loads_what_adapters_need(folder: Path) -> None:
    engine = load_engine(folder, "cpu")
    assert isinstance(engine, ModelEngine)
    engine.adapters.load("mugs")
    warm_up(engine)
    assert "adapted_layers" in engine.runner.__dict__


def test_layers_compiled_before_the_first_adapter_run_with_it(folder: Path, listings: list[Listing]) -> None:
    """On a GPU the layers are compiled, and warming up runs them without adapters."""
    torch._dynamo.reset()
    engine = load_engine(folder, "cpu", num_threads=1, variant="torch")
    assert isinstance(engine, ModelEngine)
    assert isinstance(engine.runner, TorchRunner)
    some = [listing for listing in listings if listing.title][:3]
    alone, expected = (engine.encode(some, name).vectors for name in (None, "chairs"))
    model = engine.runner.model
    model.run_layers = torch.compile(model.run_layers, backend="eager", dynamic=True)  # type: ignore[method-assign]
    np.testing.assert_allclose(engine.encode(some).vectors, alone, atol=1e-5)
    np.testing.assert_allclose(engine.encode(some, "chairs").vectors, expected, atol=1e-5)
    assert np.abs(expected - alone).max() > 1e-2
    torch._dynamo.reset()


@EACH_VARIANT
def test_adapting_features_makes_again_what_adapters_change(
    engines: dict[str, Engine], listings: list[Listing], variant: str
) -> None:
    """Pictures are not read again where words read no cells."""
    engine = engines[variant]
    assert isinstance(engine, ModelEngine)
    prepared = [one for one in engine.prepare_all(listings[:12]) if isinstance(one, Prepared)]
    assert {(one.word_ids is None, one.pixels is None) for one in prepared} == {
        *((True, False), (False, True), (False, False))
    }
    names = [NAMES[1 + row % 4] for row in range(12)]
    features, expected = engine.features_of(prepared), engine.features_of(prepared, names)
    ran: list[Prepared] = []
    run = engine.runner.run

    def remember(some: Sequence[Prepared], rotations: Rotations | None = None) -> Outputs:
        ran.extend(some)
        return run(some, rotations)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine.runner, "run", remember)
        adapted = engine.adapt_features(prepared, features, names)
    np.testing.assert_allclose(adapted, expected, atol=2e-6)
    assert np.abs(adapted - features).max() > 0.01
    assert all(one.word_ids is not None for one in ran)
    assert any(one.pixels is not None for one in ran) == engine.runner.text_reads_cells
