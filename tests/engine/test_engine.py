"""The engine: the same vector in any company, refused listings alone, and clear errors for folders it cannot load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from item.adapters.bank import Rotations
from item.catalog.listing import Listing, Picture
from item.engine import Engine, load_engine
from item.engine.interface import Outputs
from item.engine.loading import warm_up
from item.engine.model_engine import ModelEngine
from item.errors import ConfigError, ModelError
from item.preprocessing.prepared import Prepared


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Engine:
    return load_engine(model_folder, "cpu")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 47), min_size=1, max_size=30), budget=st.sampled_from([1, 100, 4096]))
def test_a_vector_does_not_depend_on_its_company(
    engine: Engine, listings: list[Listing], rows: list[int], budget: int
) -> None:
    whole = engine.encode(listings).vectors
    with pytest.MonkeyPatch.context() as patched:
        assert isinstance(engine, ModelEngine)
        patched.setattr(engine.runner, "token_budget", budget)
        some = engine.encode([listings[row] for row in rows]).vectors
    np.testing.assert_allclose(some, whole[rows], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)


def test_a_refused_listing_leaves_its_neighbours_alone(engine: Engine, listings: list[Listing]) -> None:
    broken = Listing(title="mug", images=(Picture(data=b"no picture"),))
    empty = Listing(title="  ")
    encoded = engine.encode([listings[0], broken, listings[1], empty])
    assert sorted(encoded.refused) == [1, 3]
    assert "image" in encoded.refused[1].field
    assert np.isnan(encoded.vectors[[1, 3]]).all()
    np.testing.assert_allclose(encoded.vectors[[0, 2]], engine.encode(listings[:2]).vectors, atol=1e-5)


def test_nothing_in_nothing_out(engine: Engine) -> None:
    assert engine.encode([]).vectors.shape == (0, engine.vector_width)


def test_unknown_adapters_and_devices(engine: Engine, model_folder: Path, listings: list[Listing]) -> None:
    with pytest.raises(ModelError, match="no adapter 'shoes'"):
        engine.encode(listings[:1], adapter="shoes")
    for device in ("tpu", "cuda:99", "xla:0:0"):
        with pytest.raises(ConfigError, match=f"device: '{device}'"):
            load_engine(model_folder, device)


def test_the_space_follows_the_model(model_folder: Path, engine: Engine, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    assert load_engine(copy, "cpu").space == engine.space
    settings_file = copy / "preprocessor_config.json"
    settings_file.write_text(settings_file.read_text().replace("255", "254", 1))
    assert load_engine(copy, "cpu").space != engine.space


def change(name: str, **values: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (cut("model.safetensors"), "model.safetensors: damaged"),
        (cut("tokenizer.json"), "damaged"),
        (change("config.json", model_type="bert"), "model_type 'bert' is not an ITEm model"),
        (change("config.json", format=2), "format 2 is not the 6"),
        (change("config.json", colour="red"), "unknown keys colour"),
        (change("config.json", width="wide"), "config.json: "),
        (change("config.json", num_heads=5), "num_heads: 5 must divide"),
        (change("config.json", category_levels=[3, 0]), r"category_levels: \(3, 0\) must hold counts of at least 1"),
        (change("config.json", category_levels=[2, 3]), r"vector.category_bias has shape .* not"),
        (change("config.json", num_layers=3), "missing layers.2"),
        (change("config.json", num_layers=1), "left over layers.1"),
        (change("config.json", mlp_width=65), r"has shape .* not"),
        (change("preprocessor_config.json", picture_size=48), "picture_size: the model has 32, its preprocessing 48"),
    ],
)
def test_damaged_folders_say_what_is_wrong(
    model_folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    load_engine(folder, "cpu")
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load_engine(folder, "cpu")


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_engine(tmp_path / "none", "cpu")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="no such folder"):
        load_engine(str(tmp_path / "file"), "cpu")


def test_warming_up_runs_each_kind_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(engine, ModelEngine)
    kinds: list[tuple[bool, bool]] = []
    run = engine.runner.run

    def recorded(prepared: Sequence[Prepared], rotations: Rotations | None = None) -> Outputs:
        kinds.extend((one.word_ids is not None, one.pixels is not None) for one in prepared)
        return run(prepared, rotations)

    monkeypatch.setattr(engine.runner, "run", recorded)
    warm_up(engine)
    assert sorted(kinds) == [(False, True), (True, False), (True, True)]
