"""The ONNX graphs of stem, layers and vector head against torch, on listings of all kinds packed into one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from item.adapters.adapter import num_rotations
from item.adapters.bank import Rotations
from item.catalog.listing import Listing
from item.engine.packing import Packed, complex_tables, pack
from item.export.encoder import LayersGraph, vector_graph
from item.export.stem import stem_graph
from item.model.batch import collate
from item.model.config import AttentionKind, ItemConfig, StemPart
from item.model.encoder import GATE_SHUT, ITEm, Layer
from item.preprocessing.prepared import Prepared
from item.preprocessing.preprocessor import Preprocessor
from item.preprocessing.spelling import stack_spelling

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def prepared(listings: list[Listing], preprocessor: Preprocessor) -> list[Prepared]:
    """Words alone, pictures alone and both, mixed."""
    made = [preprocessor(listing) for listing in listings[:14]]
    kinds = {(one.word_ids is None, one.pixels is None) for one in made}
    assert kinds == {(False, False), (False, True), (True, False)}
    return made


def random_model(config: ItemConfig) -> ITEm:
    """A model in which every tensor counts: no weight at its start, no gate open, no part of the head unfitted."""
    torch.manual_seed(0)
    model = ITEm(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.gates.copy_(torch.linspace(-2, 1, config.num_layers))
        model.vector.weights.copy_(torch.tensor([[0.5, 0.4, 0.7, 0.3, 0.6], [0.6, 0.3, 0.5, 0.4, 0.7]]))
        model.vector.title_weight.fill_(0.3)
        for part in (model.vector.words, model.vector.picture):
            part.mean.add_(0.05 * torch.randn_like(part.mean))
    return model


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def packed_of(model: ITEm, prepared: Sequence[Prepared]) -> Packed:
    return pack(prepared, model.stem.num_cells, model.config.cls_id, model.config.sep_id)


@torch.inference_mode()
def stem_of(model: ITEm, prepared: Sequence[Prepared]) -> tuple[Array, Array]:
    """Cells (P, m, C) and pooled features (P, F), from torch."""
    pixels = [one.pixels for one in prepared if one.pixels is not None]
    if not pixels:
        widths = (model.stem.cell_width, model.stem.pooled_width)
        return np.zeros((0, model.stem.num_cells, widths[0]), np.float32), np.zeros((0, widths[1]), np.float32)
    features = model.stem(torch.from_numpy(np.stack(pixels)))
    return model.stem.cells(features).numpy(), model.stem.pooled(features).numpy()


@torch.inference_mode()
def states_of(model: ITEm, prepared: Sequence[Prepared]) -> tuple[Array, Array, Array]:
    """g, means (0 without words) and vectors, from torch."""
    batch = collate(prepared)
    encoded = model(batch)
    words = model.pool_words(encoded, batch)
    means = torch.zeros(len(prepared), 2, model.config.width).index_copy(0, words.rows, words.means)
    return encoded.g.numpy(), means.numpy(), model.embed(batch).numpy()


def run_head(model: ITEm, prepared: Sequence[Prepared], g: Array, means: Array, pooled: Array) -> Array:
    has_words = np.array([[one.word_ids is not None] for one in prepared])
    has_picture = np.array([[one.pixels is not None] for one in prepared])
    of_pictures = np.zeros((len(prepared), pooled.shape[1]), np.float32)
    of_pictures[has_picture[:, 0]] = pooled
    there = {"has_words": has_words.astype(np.float32), "has_picture": has_picture.astype(np.float32)}
    spelling = stack_spelling([one.spelling for one in prepared])
    inputs = {"g": g, "means": means, "spelling": spelling, "pooled": of_pictures, **there}
    return np.asarray(session_of(vector_graph(model, {})).run(["vectors"], inputs)[0])


@pytest.mark.parametrize("attention", get_args(AttentionKind))
@pytest.mark.parametrize(("num_layers", "levels"), [(2, ()), (2, (4,)), (1, ()), (3, (5, 3, 1))])
def test_graphs_equal_torch(
    tiny_config: ItemConfig,
    prepared: list[Prepared],
    attention: AttentionKind,
    num_layers: int,
    levels: tuple[int, ...],
) -> None:
    model = random_model(replace(tiny_config, attention=attention, num_layers=num_layers, category_levels=levels))
    cells, pooled = stem_of(model, prepared)
    inputs = {**packed_of(model, prepared).inputs(), "cells": cells}
    g, means = session_of(LayersGraph(model).build({})).run(["g", "means"], inputs)
    expected_g, expected_means, expected = states_of(model, prepared)
    np.testing.assert_allclose(g, expected_g, atol=1e-5)
    np.testing.assert_allclose(means, expected_means, atol=1e-5)
    np.testing.assert_allclose(run_head(model, prepared, g, means, pooled), expected, atol=1e-5)


@pytest.mark.parametrize("attention", get_args(AttentionKind))
@pytest.mark.parametrize("kind", ["words", "picture"])
def test_graphs_equal_torch_where_one_modality_is_absent(
    tiny_config: ItemConfig, prepared: list[Prepared], attention: AttentionKind, kind: str
) -> None:
    model = random_model(replace(tiny_config, attention=attention, category_levels=(3,)))
    some = [kept for one in prepared if (kept := one.only(kind)) is not None]  # type: ignore[arg-type]
    for chosen in (some, some[:1]):
        cells, pooled = stem_of(model, chosen)
        inputs = {**packed_of(model, chosen).inputs(), "cells": cells}
        g, means = session_of(LayersGraph(model).build({})).run(["g", "means"], inputs)
        expected_g, expected_means, expected = states_of(model, chosen)
        np.testing.assert_allclose(g, expected_g, atol=1e-5)
        np.testing.assert_allclose(means, expected_means, atol=1e-5)
        np.testing.assert_allclose(run_head(model, chosen, g, means, pooled), expected, atol=1e-5)


@pytest.mark.parametrize("reads", [True, False])
def test_the_head_says_whether_it_reads_the_state(tiny_config: ItemConfig, reads: bool) -> None:
    model = random_model(tiny_config)
    with torch.no_grad():
        model.vector.global_projection.mul_(float(reads))
    properties = {one.key: one.value for one in vector_graph(model, {"space": "s"}).metadata_props}
    assert properties == {"reads_state": str(reads).lower(), "space": "s"}


def test_an_unfitted_head_gives_the_state(tiny_config: ItemConfig, prepared: list[Prepared]) -> None:
    torch.manual_seed(0)
    model = ITEm(tiny_config).eval()
    g, means, expected = states_of(model, prepared)
    vectors = run_head(model, prepared, g, means, stem_of(model, prepared)[1])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(vectors, g / np.linalg.norm(g, axis=1, keepdims=True), atol=1e-5)


def linears_in_order(model: ITEm) -> list[nn.Linear]:
    """In the order of their columns in a bank of rotations."""
    found: list[nn.Linear] = []
    for layer in cast(list[Layer], model.layers):
        attention = layer.attention
        found += [attention.query, attention.key, attention.value, attention.output, layer.up, layer.down]
    return found


@contextmanager
def adapted(model: ITEm, rotation: Array) -> Iterator[None]:
    """The model with one adapter, (2, S): z = R1 h + R2 rot(h) after each linear layer."""
    handles, start = [], 0
    for linear in linears_in_order(model):
        r1, r2 = torch.from_numpy(rotation[:, start : start + linear.out_features])
        start += linear.out_features

        def turn(_: nn.Module, __: Any, h: Tensor, r1: Tensor = r1, r2: Tensor = r2) -> Tensor:
            turned = torch.empty_like(h)
            turned[..., 0::2], turned[..., 1::2] = -h[..., 1::2], h[..., 0::2]
            return r1 * h + r2 * turned

        handles.append(linear.register_forward_hook(turn))
    assert start == rotation.shape[1]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_rotations(config: ItemConfig, count: int, *, paired: bool) -> Rotations:
    """Far from the identity, but for row 0."""
    generator = np.random.default_rng(0)
    r1, r2 = generator.normal(0, 0.5, (2, count, num_rotations(config))).astype(np.float32)
    r1 += 1
    if paired:
        r1, r2 = (r[:, ::2].repeat(2, axis=1) for r in (r1, r2))
    r1[0], r2[0] = 1, 0
    return Rotations(r1=r1, r2=r2, rows=np.zeros(0, np.int64), paired=paired)


def run_adapted(
    model: ITEm, prepared: Sequence[Prepared], rotations: Rotations, adapters: Sequence[int]
) -> list[Array]:
    packed = packed_of(model, prepared)
    inputs = {
        **packed.inputs(),
        "cells": stem_of(model, prepared)[0],
        **complex_tables(rotations),
        "adapter": np.array(adapters, np.int64)[packed.listing],
    }
    return list(session_of(LayersGraph(model, adapters=True).build({})).run(["g", "means"], inputs))


@pytest.mark.parametrize("paired", [True, False])
def test_the_first_row_is_the_model_alone(tiny_config: ItemConfig, prepared: list[Prepared], paired: bool) -> None:
    model = random_model(tiny_config)
    rotations = random_rotations(tiny_config, 2, paired=paired)
    g, means = run_adapted(model, prepared, rotations, [0] * len(prepared))
    inputs = {**packed_of(model, prepared).inputs(), "cells": stem_of(model, prepared)[0]}
    plain_g, plain_means = session_of(LayersGraph(model).build({})).run(["g", "means"], inputs)
    np.testing.assert_allclose(g, plain_g, atol=1e-6)
    np.testing.assert_allclose(means, plain_means, atol=1e-6)


@pytest.mark.parametrize("attention", get_args(AttentionKind))
@pytest.mark.parametrize(
    ("num_layers", "mlp_width", "gates"), [(1, 64, "open"), (2, 64, "open"), (2, 48, "open"), (2, 64, "shut")]
)
@pytest.mark.parametrize("paired", [True, False])
def test_each_listing_has_its_own_adapter(
    tiny_config: ItemConfig,
    prepared: list[Prepared],
    attention: AttentionKind,
    num_layers: int,
    mlp_width: int,
    gates: str,
    paired: bool,
) -> None:
    model = random_model(replace(tiny_config, attention=attention, num_layers=num_layers, mlp_width=mlp_width))
    if gates == "shut":
        with torch.no_grad():
            model.gates.fill_(GATE_SHUT)
    rotations = random_rotations(model.config, 4, paired=paired)
    adapters = [int(a) for a in np.random.default_rng(0).integers(0, 4, len(prepared))]
    assert len(set(adapters)) == 4
    g, means = run_adapted(model, prepared, rotations, adapters)
    for row, (one, adapter) in enumerate(zip(prepared, adapters, strict=True)):
        plain_g, _, _ = states_of(model, [one])
        with adapted(model, np.stack([rotations.r1[adapter], rotations.r2[adapter]])):
            expected_g, expected_means, _ = states_of(model, [one])
        np.testing.assert_allclose(g[row], expected_g[0], atol=1e-5)
        np.testing.assert_allclose(means[row], expected_means[0], atol=1e-5)
        assert adapter == 0 or np.abs(plain_g - expected_g).max() > 0.1


def check_stem(model: ITEm, atol: float) -> None:
    """Pictures one at a time and many, of noise, black and white."""
    size = model.config.picture_size
    pixels = np.random.default_rng(0).integers(0, 256, (17, 3, size, size), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255
    made = stem_graph(model, {"space": "s"})
    assert [one.value for one in made.metadata_props if one.key == "space"] == ["s"]
    session = session_of(made)
    for count in (1, 2, 3, 17):
        cells, pooled = session.run(["cells", "pooled"], {"pixels": pixels[:count]})
        expected = stem_of(model, [Prepared(pixels=one) for one in pixels[:count]])
        scale = [np.abs(one).max() for one in expected]
        np.testing.assert_allclose(cells, expected[0], atol=atol * scale[0])
        np.testing.assert_allclose(pooled, expected[1], atol=atol * scale[1])


def test_the_patch_stem_equals_torch(tiny_config: ItemConfig) -> None:
    check_stem(random_model(replace(tiny_config, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))), 1e-5)


@pytest.mark.parametrize(
    ("stem", "part"),
    [
        pytest.param("tf_efficientnet_lite0", "grid", marks=pytest.mark.slow),
        ("test_vit", "grid"),
        ("test_vit", "patch_embed"),
    ],
)
def test_timm_stems_equal_torch(tiny_config: ItemConfig, stem: str, part: StemPart) -> None:
    torch.manual_seed(0)
    check_stem(ITEm(replace(tiny_config, stem=stem, stem_part=part, picture_size=64)).eval(), 1e-4)
