"""Adapters on disk: bit for bit there and back, PEFT's layout, and each fault with an error of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from item.adapters import files
from item.adapters.adapter import VALUES, Adapter, Array, compose, linears_of, num_rotations, rotations
from item.adapters.files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    TENSORS_FILE,
    import_adapter,
    names_of,
    our_name,
    read_adapter,
    read_values,
    sha256,
    write_adapter,
    write_json,
)
from item.errors import ConfigError, ModelError
from item.model.config import ItemConfig
from item.model.starting import LAYER_NAMES

SPACE = "5" * 64
VARIANTS = sorted(VALUES)
Values = dict[str, tuple[Array, Array]]


def random_values(config: ItemConfig, method: str, seed: int = 0, modules: tuple[str, ...] = ()) -> Values:
    """Of all linear layers, or of some."""
    rng = np.random.default_rng(seed)
    sizes = {name: (place.stop - place.start) // 2 * VALUES[method] for name, place in linears_of(config).items()}
    return {
        name: (rng.normal(1, 0.3, size).astype(np.float32), rng.normal(0, 0.3, size).astype(np.float32))
        for name, size in sizes.items()
        if not modules or name in modules
    }


def write(model: Path, config: ItemConfig, name: str = "shoes", method: str = "road_1", seed: int = 0) -> Path:
    values = random_values(config, method, seed)
    return write_adapter(
        model, name, values, method=method, config=config, model_space=SPACE, category=("shop", "shoes")
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(VARIANTS),
    seed=st.integers(0, 2**32 - 1),
    chosen=st.sets(st.integers(0, 11), max_size=4),
    category=st.lists(st.text(max_size=8), max_size=3),
)
def test_there_and_back_bit_for_bit(
    tmp_path: Path, tiny_config: ItemConfig, method: str, seed: int, chosen: set[int], category: list[str]
) -> None:
    names = [*linears_of(tiny_config)]
    values = random_values(tiny_config, method, seed, tuple(names[index] for index in chosen))
    common: dict[str, Any] = {"config": tiny_config, "model_space": SPACE}
    place = write_adapter(tmp_path, "one", values, method=method, category=tuple(category), **common)
    adapter = read_adapter(tmp_path, "one", tiny_config, SPACE)
    assert (adapter.name, adapter.method, adapter.category) == ("one", method, tuple(category))
    assert adapter.num_parameters == sum(alpha.size + theta.size for alpha, theta in values.values())
    back = read_values(place)
    assert back[0] == method
    assert back[1].keys() == values.keys()
    for name, outputs in linears_of(tiny_config).items():
        if name in values:
            assert all(np.array_equal(a, b) for a, b in zip(values[name], back[1][name], strict=True))
            r1, r2 = rotations(method, *values[name])
        else:
            r1, r2 = np.ones(outputs.stop - outputs.start), np.zeros(outputs.stop - outputs.start)
        assert np.array_equal(adapter.r1[outputs], r1)
        assert np.array_equal(adapter.r2[outputs], r2)
    write_adapter(tmp_path, "again", values, method=method, **common)
    assert read_adapter(tmp_path, "again", tiny_config, SPACE).digest == adapter.digest


def test_the_layout_is_pefts(tmp_path: Path, tiny_config: ItemConfig) -> None:
    """As PEFT 0.21.2 writes it (tuners/road, utils/save_and_load); tests/adapters/test_peft.py loads it in PEFT."""
    for method in VARIANTS:
        place = write(tmp_path, tiny_config, method, method)
        config = json.loads((place / CONFIG_FILE).read_text())
        assert (config["peft_type"], config["variant"], config["group_size"]) == ("ROAD", method, 2)
        assert set(config["target_modules"]) == set(linears_of(tiny_config))
        tensors = load_file(place / TENSORS_FILE)
        expected = {
            f"base_model.model.{name}.road_{part}": ((outputs.stop - outputs.start) // 2 * VALUES[method],)
            for name, outputs in linears_of(tiny_config).items()
            for part in ("alpha", "theta")
        }
        assert {name: tensor.shape for name, tensor in tensors.items()} == expected
        assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


def test_road_4_is_in_pefts_order() -> None:
    alpha = np.array([2.0, 3.0, 5.0, 7.0])  # of one block: a11 a22 a12 a21
    r1, r2 = rotations("road_4", alpha, np.array([0.0, 0.0, np.pi / 2, np.pi / 2]))
    np.testing.assert_allclose(r1, [2, 3])
    np.testing.assert_allclose(r2, [5, 7])


def test_space_is_of_engine_and_adapter(tmp_path: Path, tiny_config: ItemConfig) -> None:
    for seed in (0, 1):
        write(tmp_path, tiny_config, f"a{seed}", seed=seed)
    a, b = (read_adapter(tmp_path, name, tiny_config, SPACE) for name in ("a0", "a1"))
    spaces = {adapter.space(engine) for adapter in (a, b) for engine in ("fp32", "int8")}
    assert len(spaces) == 4
    assert all(len(space) == 64 for space in spaces)


def test_writing_again_replaces_and_leaves_nothing_beside(tmp_path: Path, tiny_config: ItemConfig) -> None:
    write(tmp_path, tiny_config)
    first = read_adapter(tmp_path, "shoes", tiny_config, SPACE)
    (tmp_path / "adapters" / ".shoes.partial").mkdir()  # of a writer that was killed
    place = write(tmp_path, tiny_config, seed=1)
    assert read_adapter(tmp_path, "shoes", tiny_config, SPACE).digest != first.digest
    assert [path.name for path in place.parent.iterdir()] == ["shoes"]
    assert names_of(tmp_path) == ["shoes"]


def test_further_files_are_covered_by_the_digests(tmp_path: Path, tiny_config: ItemConfig) -> None:
    values = random_values(tiny_config, "road_1")
    common: dict[str, Any] = {"method": "road_1", "config": tiny_config, "model_space": SPACE}

    def write_more(folder: Path) -> None:
        (folder / "more").write_bytes(b"x")

    place = write_adapter(tmp_path, "one", values, write_more=write_more, **common)
    read_adapter(tmp_path, "one", tiny_config, SPACE)
    (place / "more").write_bytes(b"y")
    with pytest.raises(ModelError, match="more: damaged, its digest"):
        read_adapter(tmp_path, "one", tiny_config, SPACE)


def test_a_failed_write_leaves_the_adapter_as_it_was(tmp_path: Path, tiny_config: ItemConfig) -> None:
    def fail(_: Path) -> None:
        raise OSError("disk full")

    write(tmp_path, tiny_config)
    before = read_adapter(tmp_path, "shoes", tiny_config, SPACE).digest
    values = random_values(tiny_config, "road_1", 1)
    with pytest.raises(OSError, match="disk full"):
        write_adapter(
            tmp_path, "shoes", values, method="road_1", config=tiny_config, model_space=SPACE, write_more=fail
        )
    assert read_adapter(tmp_path, "shoes", tiny_config, SPACE).digest == before
    assert names_of(tmp_path) == ["shoes"]


def edit_json(path: Path, **changes: Any) -> None:
    """Changes values of a JSON object (None: takes them away), and its digest in adapter.json."""
    values = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: value for key, value in values.items() if value is not None})
    sign(path.parent)


def edit_tensors(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes tensors, and the digest of their file."""
    tensors = load_file(place / TENSORS_FILE)
    change(tensors)
    save_file(tensors, place / TENSORS_FILE)
    sign(place)


def edit_bytes(place: Path, content: bytes) -> None:
    """Puts other bytes in the tensors' place, and their digest into adapter.json."""
    (place / TENSORS_FILE).write_bytes(content)
    sign(place)


def sign(place: Path) -> None:
    """Writes anew the digests that adapter.json has."""
    path = place / ADAPTER_FILE
    description = json.loads(path.read_text())
    description["files"] = {name: sha256((place / name).read_bytes()) for name in description["files"]}
    write_json(path, description)


QUERY = "base_model.model.layers.0.attention.query.road_alpha"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "newer format": (lambda p: edit_json(p / ADAPTER_FILE, format=2), "format 2 is not the 1 that this version reads"),
    "other model": (
        lambda p: edit_json(p / ADAPTER_FILE, model_space="6" * 64),
        r"made for another model \(space 666666666666, not 555555555555\); train it on this one",
    ),
    "other name": (lambda p: edit_json(p / ADAPTER_FILE, name="hats"), "name 'hats' is not its folder's"),
    "no category": (lambda p: edit_json(p / ADAPTER_FILE, category="shop"), r"damaged \(category\)"),
    "other variants": (lambda p: edit_json(p / ADAPTER_FILE, method="road_2"), "says 'road_2', .* 'road_1'"),
    "no JSON": (lambda p: (p / ADAPTER_FILE).write_text("{"), "adapter.json: damaged"),
    "a list": (lambda p: (p / ADAPTER_FILE).write_text("[]"), r"adapter.json: damaged \(no JSON object\)"),
    "unfinished": (lambda p: (p / ADAPTER_FILE).unlink(), "no such file. An adapter that PEFT wrote does not say"),
    "missing file": (lambda p: (p / TENSORS_FILE).unlink(), "adapter_model.safetensors: cannot be read"),
    "flipped bit": (
        lambda p: (p / TENSORS_FILE).write_bytes((p / TENSORS_FILE).read_bytes()[:-1] + b"?"),
        "adapter_model.safetensors: damaged, its digest is not the one in adapter.json",
    ),
    "no tensors": (lambda p: edit_bytes(p, b"no"), "adapter_model.safetensors: damaged, or not float32"),
    "not listed": (lambda p: edit_json(p / ADAPTER_FILE, files={}), "no adapter_config.json and no adapter_model"),
    "LoRA": (lambda p: edit_json(p / CONFIG_FILE, peft_type="LORA"), "peft_type 'LORA' is not 'ROAD'"),
    "unknown variant": (lambda p: edit_json(p / CONFIG_FILE, variant="road_3"), "variant 'road_3' is none of road_1"),
    "other pairing": (
        lambda p: edit_json(p / CONFIG_FILE, group_size=64),
        r"group_size 64 pairs other elements .* train it again with RoadConfig\(group_size=2\)",
    ),
    "no pairing": (lambda p: edit_json(p / CONFIG_FILE, group_size=None), "group_size None pairs other elements"),
    "no modules": (lambda p: edit_tensors(p, dict.clear), "adapts no module"),
    "half a module": (lambda p: edit_tensors(p, lambda t: t.pop(QUERY)), f"no {QUERY}"),
    "left over": (
        lambda p: edit_tensors(p, lambda t: t.update(classifier=np.zeros(2, np.float32))),
        "classifier is no alpha or theta of RoAd; save the adapter without modules_to_save",
    ),
    "unknown module": (
        lambda p: edit_tensors(p, lambda t: t.update({k.replace("s.0", "s.7"): v for k, v in t.items()})),
        "adapts 'layers.7.attention.key', which is no linear layer of this encoder",
    ),
    "wrong shape": (
        lambda p: edit_tensors(p, lambda t: t.update({QUERY: t[QUERY][1:]})),
        r"layers.0.attention.query.road_alpha has shape \(15,\), not \(16,\) as this model needs",
    ),
    "not finite": (
        lambda p: edit_tensors(p, lambda t: t.update({QUERY: t[QUERY] * np.float32(np.nan)})),
        "layers.0.attention.query.road_alpha has values that are not finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_own_error(tmp_path: Path, tiny_config: ItemConfig, fault: str) -> None:
    place = write(tmp_path, tiny_config)
    read_adapter(tmp_path, "shoes", tiny_config, SPACE)
    damage, said = FAULTS[fault]
    damage(place)
    with pytest.raises(ModelError, match=said):
        read_adapter(tmp_path, "shoes", tiny_config, SPACE)


@pytest.mark.parametrize("name", ["hats", "../shoes", "", ".", "shoes/"])
def test_an_unknown_adapter_is_named_with_those_that_are_there(
    tmp_path: Path, tiny_config: ItemConfig, name: str
) -> None:
    write(tmp_path, tiny_config)
    with pytest.raises(ModelError, match=r"there is no adapter .* has: shoes"):
        read_adapter(tmp_path, name, tiny_config, SPACE)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_names_that_are_no_folders_are_refused(tmp_path: Path, tiny_config: ItemConfig, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of an adapter"):
        write(tmp_path, tiny_config, name)
    assert not (tmp_path / "adapters").exists()


def test_values_that_do_not_fit_are_not_written(tmp_path: Path, tiny_config: ItemConfig) -> None:
    with pytest.raises(ModelError, match="has shape"):
        write_adapter(
            tmp_path,
            "a",
            random_values(tiny_config, "road_2"),
            method="road_1",
            config=tiny_config,
            model_space=SPACE,
        )
    assert names_of(tmp_path) == []


def bert_names(values: Values, prefix: str = "") -> Values:
    """The same values under the names of BERT's modules."""
    translated = {}
    for name, both in values.items():
        _, index, module = name.split(".", 2)
        translated[f"{prefix}encoder.layer.{index}.{LAYER_NAMES[module]}"] = both
    return translated


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_an_adapter_of_the_bert_that_the_layers_came_from_is_brought_in(
    tmp_path: Path, tiny_config: ItemConfig, prefix: str
) -> None:
    values = random_values(tiny_config, "road_2")
    source = tmp_path / "peft"
    source.mkdir()
    files.write_peft(source, bert_names(values, prefix), "road_2")
    import_adapter(source, tmp_path, "brought", config=tiny_config, model_space=SPACE, category=("shop",))
    write(tmp_path, tiny_config, "ours", "road_2")
    brought, ours = (read_adapter(tmp_path, name, tiny_config, SPACE) for name in ("brought", "ours"))
    assert brought.digest == ours.digest
    assert brought.category == ("shop",)
    assert our_name("pooler.dense") == "pooler.dense"


def test_what_is_brought_in_is_checked(tmp_path: Path, tiny_config: ItemConfig) -> None:
    source = tmp_path / "peft"
    with pytest.raises(ModelError, match="not a whole PEFT adapter"):
        import_adapter(source, tmp_path, "one", config=tiny_config, model_space=SPACE)
    source.mkdir()
    files.write_peft(source, {"pooler.dense": (np.ones(16), np.ones(16))}, "road_1")
    with pytest.raises(ModelError, match=r"adapts 'pooler\.dense', which is no linear layer"):
        import_adapter(source, tmp_path, "one", config=tiny_config, model_space=SPACE)
    assert names_of(tmp_path) == []


def half(tmp_path: Path, config: ItemConfig, name: str, seed: int, first: bool, method: str = "road_1") -> Adapter:
    """An adapter of the first or the second half of each layer's blocks."""
    values = random_values(config, method, seed)
    for alpha, theta in values.values():
        there = slice(len(alpha) // 2, None) if first else slice(0, len(alpha) // 2)
        alpha[there], theta[there] = 1, 0
    write_adapter(tmp_path, name, values, method=method, config=config, model_space=SPACE)
    return read_adapter(tmp_path, name, config, SPACE)


def test_adapters_of_disjoint_blocks_compose(tmp_path: Path, tiny_config: ItemConfig) -> None:
    a, b = half(tmp_path, tiny_config, "a", 0, True), half(tmp_path, tiny_config, "b", 1, False, "road_4")
    both = compose(a, b)
    h = np.random.default_rng(0).normal(size=num_rotations(tiny_config))
    np.testing.assert_allclose(rotated(both, h), rotated(b, rotated(a, h)), atol=1e-12)
    np.testing.assert_allclose(rotated(both, h), rotated(a, rotated(b, h)), atol=1e-12)
    assert both.digest == compose(b, a).digest
    assert len({one.digest for one in (a, b, both)}) == 3
    assert (both.name, both.method) == ("a+b", "road_4")
    assert (both.blocks == a.blocks | b.blocks).all()
    with pytest.raises(ModelError, match="'a' and 'a' rotate 112 blocks in common"):
        compose(a, a)


def rotated(adapter: Adapter, h: Array) -> Array:
    """R h."""
    turned = np.stack([-h[1::2], h[::2]], axis=1).reshape(-1)
    return adapter.r1 * h + adapter.r2 * turned


def test_adapters_of_different_models_do_not_compose(tmp_path: Path, tiny_config: ItemConfig) -> None:
    a = half(tmp_path, tiny_config, "a", 0, True)
    values = random_values(tiny_config, "road_1")
    write_adapter(tmp_path, "b", values, method="road_1", config=tiny_config, model_space="6" * 64)
    with pytest.raises(ModelError, match="made for different models"):
        compose(a, read_adapter(tmp_path, "b", tiny_config, "6" * 64))
