"""Exported variants: the model's vectors, in any company, and clear errors for what cannot be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.errors import Deadline
from deploy.export import main
from deploy.handlers import Handlers, Limits
from index.store import Store
from item.catalog.listing import Listing, Picture
from item.engine import Engine, Vectors, load_engine
from item.engine.model_engine import ModelEngine
from item.engine.onnx_runner import OnnxRunner
from item.engine.torch_runner import TorchRunner
from item.engine.variant import (
    ADAPTED_FILE,
    LAYERS_FILE,
    STEM_FILE,
    VECTOR_FILE,
    WEIGHTS_FILE,
    Variant,
    find_variant,
    names_of,
)
from item.errors import ConfigError, ModelError, SpaceError
from item.export.graph import OPSET
from item.export.variants import Exporter
from item.model.batch import collate
from item.model.config import ItemConfig
from item.model.encoder import GATE_SHUT, ITEm
from item.model.folder import space_of_folder
from item.preprocessing.prepared import MODALITIES, Prepared
from item.preprocessing.preprocessor import Preprocessor
from item.v1 import item_pb2
from tests.conftest import picture_bytes
from tests.deploy.serving import write_index

ROOT = Path(__file__).parents[2]
Engines = dict[tuple[str, str], tuple[Engine, Vectors]]
GRAPHS = [STEM_FILE, LAYERS_FILE, ADAPTED_FILE, VECTOR_FILE]
BOTH_MODELS = pytest.mark.parametrize("model", ["folder", "stateless_folder"])
BOTH_VARIANTS = pytest.mark.parametrize("name", ["fp32", "int8"])


def export_both(folder: Path, catalog: Path, *, reads_state: bool) -> None:
    """Gives the folder weights that set listings far apart, and both variants of ONNX Runtime."""
    torch.manual_seed(2)
    model = ITEm.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.vector.weights.copy_(torch.tensor([[0.5, 0.4, 0.7, 0.3, 0.0], [0.6, 0.3, 0.5, 0.4, 0.0]]))
        model.vector.title_weight.fill_(0.3)
        model.vector.global_projection.mul_(float(reads_state))
    model.save_pretrained(folder)
    Exporter(folder).export("fp32")
    assert main(["--model", str(folder), "--variant", "int8", "--catalog", str(catalog)]) == 0


@pytest.fixture(scope="module")
def folder(model_folder: Path, catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vectors read all there is, with its variants fp32 and int8. Tests that change it copy it."""
    copy = shutil.copytree(model_folder, tmp_path_factory.mktemp("exported") / "model")
    export_both(copy, catalog_folder, reads_state=True)
    return copy


@pytest.fixture(scope="module")
def stateless_folder(model_folder: Path, catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vectors read nothing of [CLS], as a fitted head: pictures alone stay out of the layers."""
    copy = shutil.copytree(model_folder, tmp_path_factory.mktemp("exported") / "model")
    export_both(copy, catalog_folder, reads_state=False)
    return copy


@pytest.fixture(scope="module")
def apart_folder(stateless_folder: Path, catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose gates are shut besides, as after alignment: words and picture meet in the vector head alone."""
    copy = shutil.copytree(stateless_folder, tmp_path_factory.mktemp("exported") / "model")
    shutil.rmtree(copy / "variants")
    model = ITEm.from_pretrained(copy)
    with torch.no_grad():
        model.gates.fill_(GATE_SHUT)
    model.save_pretrained(copy)
    Exporter(copy).export("fp32")
    assert main(["--model", str(copy), "--variant", "int8", "--catalog", str(catalog_folder)]) == 0
    return copy


@pytest.fixture(scope="module")
def engines(folder: Path, stateless_folder: Path, listings: list[Listing]) -> Engines:
    """By model and variant, an engine and its vectors of all listings together."""
    made = {}
    for model, path in (("folder", folder), ("stateless_folder", stateless_folder)):
        for name in ("fp32", "int8"):
            engine = load_engine(path, "cpu", num_threads=1, variant=name)
            made[model, name] = engine, engine.encode(listings).vectors
    return made


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The exported model, to be changed."""
    return shutil.copytree(folder, tmp_path / "model")


def model_space(folder: Path) -> str:
    return space_of_folder(folder, ItemConfig.load(folder), Preprocessor.from_pretrained(folder))


@BOTH_MODELS
def test_full_precision_is_taken_by_itself_on_a_cpu(
    model: str, listings: list[Listing], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    engine, reference = load_engine(folder, "cpu"), load_engine(folder, "cpu", variant="torch")
    assert engine.name.startswith("onnxruntime cpu")
    assert (engine.variant, reference.variant) == ("fp32", "")
    assert engine.space == reference.space == model_space(folder)
    expected = reference.encode(listings).vectors
    np.testing.assert_allclose(engine.encode(listings).vectors, expected, atol=1e-5)
    similar = expected @ expected.T
    assert similar.min() < 0.9, "the vectors of the test lie too near to each other"


@pytest.mark.parametrize("name", ["torch", "fp32", "int8"])
@pytest.mark.parametrize("model", ["folder", "stateless_folder", "apart_folder"])
def test_modalities_together_are_each_by_itself(
    model: str, name: str, listings: list[Listing], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros where a listing has nothing of one; and the stem sees a picture once, where nothing forbids it."""
    engine = load_engine(request.getfixturevalue(model), "cpu", variant=name)
    assert isinstance(engine, ModelEngine)
    prepared = [one for one in engine.prepare_all(listings) if isinstance(one, Prepared)]
    expected = {
        modality: [
            None if (left := one.only(modality)) is None else engine.encode_prepared([left])[0] for one in prepared
        ]
        for modality in MODALITIES
    }
    num_seen = count_pictures(engine, monkeypatch)
    vectors = engine.encode_modalities(prepared)
    assert list(vectors) == list(MODALITIES)
    for modality, rows in expected.items():
        assert 0 < sum(row is None for row in rows) < len(rows) or modality == "both"
        for row, vector in zip(rows, vectors[modality], strict=True):
            np.testing.assert_allclose(vector, np.zeros_like(vector) if row is None else row, atol=1e-5)
    assert engine.runner.modalities_are_apart is (model == "apart_folder")
    num_pictures = sum(one.pixels is not None for one in prepared)
    assert num_seen() == num_pictures * (1 if model == "apart_folder" else 2)
    np.testing.assert_allclose(engine.encode_modalities(prepared, ("both",))["both"], vectors["both"], atol=1e-5)
    assert num_seen() == num_pictures * (2 if model == "apart_folder" else 3)


def count_pictures(engine: ModelEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pictures the stem will have seen from here on."""
    seen: list[int] = []
    runner = engine.runner
    assert isinstance(runner, OnnxRunner | TorchRunner)
    owner, name = (runner, "run_stem") if isinstance(runner, OnnxRunner) else (runner.model.stem, "forward")
    run = getattr(owner, name)

    def counted(pictures: Sequence[object]) -> object:
        seen.append(len(pictures))
        return run(pictures)

    monkeypatch.setattr(owner, name, counted)
    return lambda: sum(seen)


@BOTH_MODELS
def test_8_bits_lose_little_and_have_a_space_of_their_own(
    model: str, listings: list[Listing], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    engine, reference = load_engine(folder, "cpu", variant="int8"), load_engine(folder, "cpu", variant="torch")
    assert (engine.variant, engine.name) == ("int8", "onnxruntime cpu int8")
    assert engine.space != model_space(folder), "48 listings are too few to say that results are the same"
    vectors, expected = engine.encode(listings).vectors, reference.encode(listings).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors * expected).sum(1).min() > 0.999
    assert np.abs(vectors - expected).max() > 1e-5, "is it in 8 bits at all?"


@BOTH_MODELS
@BOTH_VARIANTS
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 47), min_size=1, max_size=30), budget=st.sampled_from([1, 100, 2048]))
def test_a_vector_does_not_depend_on_its_company(
    engines: Engines, model: str, name: str, listings: list[Listing], rows: list[int], budget: int
) -> None:
    engine, whole = engines[model, name]
    with pytest.MonkeyPatch.context() as patched:
        assert isinstance(engine, ModelEngine)
        patched.setattr(engine.runner, "token_budget", budget)
        some = engine.encode([listings[row] for row in rows]).vectors
    np.testing.assert_allclose(some, whole[rows], atol=1e-5)


@BOTH_VARIANTS
def test_an_extreme_neighbour_changes_nothing(engines: Engines, name: str, listings: list[Listing]) -> None:
    engine, _ = engines["folder", name]
    extreme = [
        Listing(title="mug " * 40),
        Listing(title="\u2603" * 40, images=(Picture(data=picture_bytes(0, (0, 0, 0), (70, 60))),)),
        Listing(images=(Picture(data=picture_bytes(1, (255, 0, 255), (400, 60))),)),
    ]
    alone = engine.encode(listings[:9]).vectors
    together = engine.encode([*extreme, *listings[:9]]).vectors[len(extreme) :]
    assert (alone * together).sum(1).min() >= 0.9999


@BOTH_VARIANTS
def test_a_refused_listing_leaves_its_neighbours_alone(engines: Engines, name: str, listings: list[Listing]) -> None:
    engine, whole = engines["folder", name]
    broken, empty = Listing(title="mug", images=(Picture(data=b"no picture"),)), Listing(title="  ")
    encoded = engine.encode([listings[0], broken, listings[1], empty])
    assert sorted(encoded.refused) == [1, 3]
    assert np.isnan(encoded.vectors[[1, 3]]).all()
    np.testing.assert_allclose(encoded.vectors[[0, 2]], whole[:2], atol=1e-5)
    assert engine.encode([]).vectors.shape == (0, engine.vector_width)
    with pytest.raises(ModelError, match="no adapter 'shoes'"):
        engine.encode(listings[:1], adapter="shoes")


@BOTH_VARIANTS
def test_graphs_say_which_model_they_are_of(folder: Path, name: str) -> None:
    place, variant = find_variant(folder, name)
    assert sorted(variant.files) == sorted([*GRAPHS, WEIGHTS_FILE])
    assert variant.opset == OPSET
    for file in GRAPHS:
        graph = onnx.load(place / file, load_external_data=False)
        assert {one.key: one.value for one in graph.metadata_props}["space"] == model_space(folder)
        assert {one.domain: one.version for one in graph.opset_import}[""] == OPSET


def test_half_precision_has_no_files_of_its_own(copy: Path, catalog_folder: Path, listings: list[Listing]) -> None:
    assert main(["--model", str(copy), "--variant", "bf16", "--catalog", str(catalog_folder)]) == 0
    made = find_variant(copy, "bf16")[1]
    assert (made.files, made.measured["beside"]) == ({}, "onnxruntime cpu float32")
    engine = load_engine(copy, "cpu", variant="bf16")
    assert (engine.name, engine.variant) == ("torch cpu bf16", "bf16")
    expected = load_engine(copy, "cpu").encode(listings).vectors
    assert (engine.encode(listings).vectors * expected).sum(1).min() > 0.99


@pytest.mark.parametrize("name", ["fp16", "fp32 ", "../int8", "int8/../fp32", "", ".", "..", ".int8.partial"])
def test_an_unknown_variant_is_said_with_those_there_are(copy: Path, name: str) -> None:
    (copy / "variants" / ".int8.partial").mkdir()
    message = r"variant: .* has no variant .* \(it has: fp32, int8\); make it with python -m deploy.export --model"
    with pytest.raises(ModelError, match=message):
        load_engine(copy, "cpu", variant=name)


def test_a_model_without_variants_says_so(model_folder: Path) -> None:
    assert names_of(model_folder) == []
    with pytest.raises(ModelError, match=r"has no variant 'int8' \(it has: none\)"):
        load_engine(model_folder, "cpu", variant="int8")
    assert load_engine(model_folder, "cpu").variant == ""


def test_the_rest_of_an_interrupted_export_is_no_variant(copy: Path) -> None:
    shutil.move(copy / "variants" / "fp32", copy / "variants" / ".fp32.partial")
    assert names_of(copy) == ["int8"]
    assert load_engine(copy, "cpu").name.startswith("torch")


def write(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "variant.json").write_text(text)


def change(**values: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "variant.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def without(key: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "variant.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))

    return edit


def remove(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def cut(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100])


def flip(file: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / file).write_bytes(data)

    return edit


DAMAGES = [
    (remove("variant.json"), r"variant.json: no such file, the export was not finished"),
    (write("{"), r"variant.json: damaged"),
    (write("[]"), r"variant.json: damaged"),
    (write("null"), r"variant.json: damaged"),
    (write("\x00"), r"variant.json: damaged"),
    (change(format=1), r"format 1 is not the 2 that this version reads"),
    (without("format"), r"format None is not the 2"),
    (without("space"), r"variant.json: damaged .*space"),
    (change(colour="red"), r"variant.json: damaged .*colour"),
    (change(model_space="0" * 64), r"was made of another model \(space 000000000000, not"),
    *((remove(file), rf"{file}: no such file") for file in (*GRAPHS, WEIGHTS_FILE)),
    *((cut(file), rf"{file}: damaged") for file in (*GRAPHS, WEIGHTS_FILE)),
    *((flip(file), rf"{file}: damaged") for file in (*GRAPHS, WEIGHTS_FILE)),
]


@BOTH_VARIANTS
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_variants_say_what_is_wrong(
    copy: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy / "variants" / name)
    with pytest.raises(ModelError, match=rf"{message}.*; run python -m deploy.export --variant {name} again"):
        load_engine(copy, "cpu", variant=name)
    other = {"fp32": "int8", "int8": "fp32"}[name]
    assert load_engine(copy, "cpu", variant=other).variant == other


def test_a_variant_of_another_model_is_refused(copy: Path, model_folder: Path) -> None:
    shutil.copy(model_folder / "model.safetensors", copy)
    for name in ("fp32", "int8", None):
        with pytest.raises(ModelError, match=r"was made of another model .* run python -m deploy.export --variant"):
            load_engine(copy, "cpu", variant=name)
    assert load_engine(copy, "cpu", variant="torch").space == model_space(model_folder)


def test_full_precision_runs_without_torch(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(picture_bytes(0, (200, 30, 30)))
    code = """
import sys
from pathlib import Path
from item.catalog.listing import Listing, Picture
from item.engine import load_engine
engine = load_engine(sys.argv[1], "cpu")
assert engine.name.startswith("onnxruntime"), engine.name
listings = [Listing(title="red mug"), Listing(images=(Picture(data=Path(sys.argv[2]).read_bytes()),))]
encoded = engine.encode(listings)
assert not encoded.refused, encoded.refused
print(*sorted({"torch", "torchvision", "timm", "transformers", "onnx"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code, str(folder), str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize("name", ["int8", "bf16", "fp16"])
def test_a_variant_that_is_measured_needs_a_catalogue(
    model_folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(model_folder), "--variant", name]) == 2
    assert "give --catalog" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="give --catalog"):
        Exporter(model_folder).export(name)
    assert names_of(model_folder) == []


def test_bad_arguments_of_an_export(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--model", str(model_folder), "--variant", "int4"])
    assert stopped.value.code == 2
    assert "int4" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "none"), "--variant", "fp32"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["--model", str(model_folder), "--variant", "int8", "--catalog", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="variant: 'int4' is none of fp32, int8, bf16, fp16"):
        Exporter(model_folder).export("int4")


@pytest.mark.parametrize("step", ["fit_layers", "measure_loss"])
def test_an_interrupted_export_leaves_the_older_variant(
    copy: Path, catalog_folder: Path, listings: list[Listing], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_engine(copy, "cpu", variant="int8")
    command = ["--model", str(copy), "--variant", "int8", "--catalog", str(catalog_folder)]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"item.export.variants.{step}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    after = load_engine(copy, "cpu", variant="int8")
    assert after.space == before.space
    np.testing.assert_array_equal(after.encode(listings[:5]).vectors, before.encode(listings[:5]).vectors)
    assert names_of(copy) == ["fp32", "int8"]


def test_an_export_takes_the_place_of_the_one_before(copy: Path, catalog_folder: Path) -> None:
    """As a whole, with nothing of an interrupted one between them; and the same model and listings give the same."""
    place, before = find_variant(copy, "int8")
    (place / "old.bin").touch()
    left = place.with_name(".int8.partial")
    left.mkdir()
    (left / "left.bin").touch()
    assert main(["--model", str(copy), "--variant", "int8", "--catalog", str(catalog_folder)]) == 0
    assert not left.exists()
    assert sorted(path.name for path in place.iterdir()) == sorted(["variant.json", *GRAPHS, WEIGHTS_FILE])
    after = Variant.load(place)
    assert (after.files, after.space) == (before.files, before.space)
    assert main(["--model", str(copy), "--variant", "int8", "--catalog", str(catalog_folder), "--listings", "20"]) == 0
    assert Variant.load(place).measured["words"]["listings"] <= 20 < before.measured["words"]["listings"]


def test_what_was_made_is_said(
    folder: Path, catalog_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A speed beside the engine that serves the model without the variant."""
    copy = shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(copy / "variants")
    command = ["--model", str(copy), "--catalog", str(catalog_folder), "--listings", "20"]
    assert main([*command, "--variant", "int8"]) == 0
    assert "of the speed of torch cpu float32 here" in capsys.readouterr().out
    assert main(["--model", str(copy), "--variant", "fp32"]) == 0
    said = capsys.readouterr().out
    assert f"variant   {copy / 'variants' / 'fp32'}" in said
    assert "no element of a vector differs from torch's by more than" in said
    assert "the model's own: it serves the model's indexes" in said


def test_a_server_says_which_variant_it_serves(folder: Path, listings: list[Listing], tmp_path: Path) -> None:
    """And refuses an index of another space."""
    engine = load_engine(folder, "cpu", variant="int8")
    info = Handlers(engine, {}, Limits()).get_info(item_pb2.GetInfoRequest(), "me", Deadline()).model
    assert (info.variant, info.engine, info.space) == ("int8", "onnxruntime cpu int8", engine.space)
    write_index(tmp_path / "index", load_engine(folder, "cpu"), listings[:10])
    with Store.open(tmp_path / "index" / "default") as store, pytest.raises(SpaceError):
        Handlers(engine, {"default": store}, Limits())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"files": None}, "files: None are not stem.onnx"),
        ({"files": {}}, "files: {} are not stem.onnx"),
        ({"runtime": "tensorrt"}, "runtime: 'tensorrt' is none of onnxruntime, torch"),
        ({"space": None}, "space: None is no text"),
        ({"name": "other"}, "name: 'other' is not its folder's"),
        ({"runtime": "torch", "precision": "float64"}, "precision 'float64' is none of"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_values_are_named(copy: Path, values: dict[str, object], message: str) -> None:
    path = copy / "variants" / "fp32" / "variant.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ModelError, match=message):
        load_engine(copy, "cpu", variant="fp32")


def test_a_catalogue_without_train_rows_is_fitted_to_all(
    model_folder: Path, catalog_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    lines = (catalog_folder / "catalog.jsonl").read_text().splitlines()
    rows = [row for line in lines if (row := json.loads(line))["split"] != "train" and "image" not in row]
    catalog = tmp_path / "catalog.jsonl"
    catalog.write_text(
        "".join(json.dumps(row | {"product_id": f"{i}-{row['product_id']}"}) + "\n" for i in range(6) for row in rows)
    )
    assert main(["--model", str(folder), "--variant", "int8", "--catalog", str(catalog)]) == 0
    assert main(["--model", str(folder), "--variant", "int8", "--catalog", str(catalog), "--listings", "3"]) == 2


def test_cells_that_no_text_reads_stay_out_of_the_layers(
    model_folder: Path, listings: list[Listing], tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    model = ITEm.from_pretrained(folder)
    with torch.no_grad():
        model.gates.fill_(GATE_SHUT)
    model.save_pretrained(folder)
    Exporter(folder).export("fp32")
    engine, reference = load_engine(folder, "cpu"), load_engine(folder, "cpu", variant="torch")
    prepared = [engine.preprocessor(listing) for listing in listings]
    with torch.inference_mode():  # cells in the sequence, and no weight on them
        batches = [collate([one]) for one in prepared]
        expected = torch.cat([model.vectors(model(batch), batch) for batch in batches]).numpy()
    np.testing.assert_allclose(engine.encode_prepared(prepared), expected, atol=1e-5)
    np.testing.assert_allclose(reference.encode_prepared(prepared), expected, atol=1e-5)
