"""MEFT: its equations, exact inversion, gradients of plain backpropagation, and what it keeps in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.adapter_memory import kept_for_backward
from item.adapters.meft import TOGETHER, Bottleneck, Meft, MeftConfig, Network, Variant, fraction_bits
from item.errors import ConfigError
from item.model.batch import Batch
from item.model.config import ItemConfig
from item.model.encoder import ITEm, Layer
from tests.adapters.conftest import make_model

VARIANTS = get_args(Variant)


def make(model: ITEm, variant: Variant = "meft1", num_adapters: int = 1) -> Meft:
    """With adapters that change the states: at their start they hardly do."""
    torch.manual_seed(1)
    method = Meft(model, MeftConfig(variant=variant, rank=4), num_adapters)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return method


def oracle(model: ITEm, method: Meft, x: Tensor, mask: Tensor, is_text: Tensor) -> Tensor:
    """The paper's equations in float64, after its figure: a layer is a function of (x, its adapter)."""
    lam, beta = {"meft1": (0.125, 1), "meft2": (1, 0.125), "meft3": (0.125, 0.125)}[method.config.variant]
    adapters = cast(list[Bottleneck], list(cast(nn.ModuleList, method.adapters[0])))

    def zero(x: Tensor) -> Tensor:
        return 0 * x

    def attention(layer: Layer, x: Tensor, bias: Tensor, adapter: Callable[[Tensor], Tensor]) -> Tensor:
        return layer.attention_norm(x + layer.attention(x, bias) + adapter(x))

    def feed_forward(layer: Layer, x: Tensor, adapter: Callable[[Tensor], Tensor]) -> Tensor:
        return layer.mlp_norm(x + layer.down(nn.functional.gelu(layer.up(x))) + adapter(x))

    x1 = x2 = x
    layers = cast(list[Layer], list(model.layers))
    for index, (layer, bias) in enumerate(zip(layers, model.attention_biases(mask, is_text), strict=True)):
        first = adapters[2 * index]
        second = adapters[2 * index + 1] if 2 * index + 1 < len(adapters) else zero
        if method.config.variant == "meft1":
            y1 = lam * x1 + feed_forward(layer, attention(layer, x2, bias, zero), first)
            y2 = beta * x2 + second(y1)
            x1, x2, last = y2, y1, y1
        elif method.config.variant == "meft2":
            y1 = lam * x1 + first(x2)
            y2 = beta * x2 + feed_forward(layer, attention(layer, y1, bias, zero), second)
            x1, x2, last = y2, y1, y2
        else:
            y1 = lam * x1 + attention(layer, x2, bias, first)
            y2 = beta * x2 + feed_forward(layer, y1, second)
            x1, x2, last = y1, y2, y2
    return last


def states(model: ITEm, batch: Batch) -> Tensor:
    return cast(Tensor, model(batch).states)


def layers_input(model: ITEm, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    x = model.embed_tokens(batch, model.stem_features(batch), None)
    return x, model.present(batch), (torch.arange(x.shape[1]) < 1 + batch.word_ids.shape[1])[None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_equal_the_oracle(model: ITEm, batch: Batch, variant: Variant) -> None:
    model.double()
    method, before = make(model, variant), model(batch).states
    with torch.no_grad(), method.applied():
        states = model(batch).states
    expected = oracle(model, method, *layers_input(model, batch))
    np.testing.assert_allclose(states.numpy(), expected.detach().numpy(), atol=1e-5 if variant == "meft3" else 1e-8)
    assert (states - before).abs().max() > 0.1
    assert torch.equal(model(batch).states, before)
    assert "run_layers" not in model.__dict__


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_layers=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    variant=st.sampled_from(VARIANTS),
    tail=st.sampled_from([1.0, 1e-3, 1e-9]),
    seed=st.integers(0, 99),
)
def test_inputs_are_rebuilt_to_the_bit(
    tiny_config: ItemConfig, num_layers: int, lengths: list[int], variant: Variant, tail: float, seed: int
) -> None:
    """At every depth and length, also where what is added is far smaller than what it is added to."""
    scale = 0.125 if variant != "meft3" or num_layers < 8 else 0.5
    model = make_model(replace(tiny_config, num_layers=num_layers))
    for layer in cast(list[Layer], list(model.layers)):
        for parameter in (*layer.attention_norm.parameters(), *layer.mlp_norm.parameters()):
            parameter[::2] *= tail
    torch.manual_seed(seed)
    method = Meft(model, MeftConfig(variant=variant, rank=3, scale=scale))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), max(lengths), 32)
    network = method.network(0, x.device)
    biases = list(model.attention_biases(mask, torch.ones(1, max(lengths)) > 0))
    streams = list(network.streams(x, biases))
    y1, y2 = streams[-1]
    for index in reversed(range(num_layers)):
        y1, y2 = network.inverse_layer(index, y1, y2, biases[index])
        assert torch.equal(y1, streams[index][0])
        assert torch.equal(y2, streams[index][1])
    assert torch.equal(y1, network.round(x))
    assert not torch.equal(streams[0][0], streams[-1][0])


def plain(network: Network, h: Tensor, biases: list[Tensor]) -> Tensor:
    """The same network by torch's own backpropagation, every state kept."""

    def run(index: int, which: int, x: Tensor, bias: Tensor) -> Tensor:
        half = network.halves[index][which]
        if half is None:
            return torch.zeros_like(x)
        made = []
        for start in range(0, len(x), TOGETHER):
            part = slice(start, start + TOGETHER)
            with torch.random.fork_rng():
                if network.seed is not None:
                    torch.manual_seed(network.seed + 2 * (index + len(network.halves) * start) + which)
                made.append(half.run(x[part].to(network.dtype), bias[part]).double())
        return torch.cat(made)

    x1 = x2 = h.double()
    for index, bias in enumerate(biases):
        if network.swapped and index:
            x1, x2 = x2, x1
        y1 = network.scales[0] * x1 + run(index, 0, x2, bias)
        x1, x2 = y1, network.scales[1] * x2 + run(index, 1, y1, bias)
    return (x1, x2)[network.last].to(h.dtype)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_plain_backpropagation(
    tiny_config: ItemConfig, batch: Batch, variant: Variant, dropout: float
) -> None:
    """Of the adapters, and of all that else is not frozen: layers, gates, embeddings; in float64, to 1e-6."""
    model = make_model(replace(tiny_config, num_layers=2, dropout=dropout)).double().requires_grad_(True)
    model.train(dropout > 0)
    method = make(model, variant)
    named = [*method.named_parameters(prefix="adapter"), *model.named_parameters(prefix="model")]
    weights = torch.linspace(-1, 1, model.config.width, dtype=torch.float64)
    found: list[dict[str, Tensor]] = []
    for backpropagate in (False, True):

        def run(row: int, x: Tensor, mask: Tensor, is_text: Tensor) -> Tensor:
            return plain(method.network(row, x.device), x, list(model.attention_biases(mask, is_text)))

        torch.manual_seed(3)
        with method.applied():
            if backpropagate:
                model.__dict__["run_layers"] = lambda *inputs: run(0, *inputs)
            ((model(batch).states @ weights).sin() * model.present(batch)).sum().backward()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        for _, parameter in named:
            parameter.grad = None
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    assert {name for name, _ in method.named_parameters(prefix="adapter")} < ours.keys()
    assert {"model.gates", "model.embeddings.words.weight", "model.layers.1.attention.query.weight"} < ours.keys()
    for name, gradient in ours.items():
        scale = theirs[name].abs().max()
        error = (gradient - theirs[name]).abs().max()
        assert error <= 1e-6 * scale + 1e-9, (name, error, scale)
        assert scale > 0 or name.endswith("key.bias"), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_adapter_learns_and_all_of_it(model: ITEm, batch: Batch, variant: Variant) -> None:
    """Single precision, dropout on; the next random numbers are drawn as if backward had not run."""
    model.train()
    method = make(model, variant)
    with method.applied():
        loss = model(batch).states.square().mul(torch.linspace(0, 1, model.config.width)).sum()
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())


def test_dropout_differs_from_run_to_run(tiny_config: ItemConfig, batch: Batch) -> None:
    model = make_model(replace(tiny_config, dropout=0.2)).train()
    method = make(model)
    with torch.no_grad(), method.applied():
        assert not torch.equal(model(batch).states, model(batch).states)
        model.eval()
        assert torch.equal(model(batch).states, model(batch).states)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_mixed_batch_equals_single_runs(model: ITEm, batch: Batch, variant: Variant) -> None:
    method, rows = make(model, variant, num_adapters=3), torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0])
    with torch.no_grad():
        with method.applied(rows):
            mixed = model(batch).states
        alone = []
        for row in range(3):
            with method.applied(torch.full((10,), row)):
                alone.append(model(batch).states)
            present = model.present(batch) & (rows == row)[:, None]
            torch.testing.assert_close(mixed[present], alone[row][present], atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_tokens_can_stay_out_of_the_layers(model: ITEm, batch: Batch) -> None:
    method, keep = make(model), model.present(batch)
    keep[::2, 3:] = False
    with torch.no_grad(), method.applied(torch.tensor([0] * 10)):
        states, x = model(batch, keep=keep).states, layers_input(model, batch)[0]
    assert torch.equal(states[~keep], x[~keep])
    assert (states[keep] - x[keep]).abs().max() > 0.1


def test_it_keeps_no_more_for_more_layers(tiny_config: ItemConfig, batch: Batch) -> None:
    """Beyond a layer's attention bias, while plain training keeps every layer's states."""
    kept: dict[tuple[str, int], int] = {}
    for L in (2, 6):
        model = make_model(replace(tiny_config, num_layers=L))
        method = make(model)
        with method.applied():
            kept["meft1", L] = kept_for_backward(model, partial(states, model, batch))
        model.layers.requires_grad_(True)
        kept["full", L] = kept_for_backward(model, partial(states, model, batch))
    T = layers_input(model, batch)[0].shape[1]
    assert kept["meft1", 6] - kept["meft1", 2] == 4 * len(batch) * T * T * 4
    assert kept["full", 6] > 2.5 * kept["full", 2]
    assert kept["meft1", 6] < 0.3 * kept["full", 6]


def test_states_too_far_out_are_refused(model: ITEm, batch: Batch) -> None:
    method = make(model)
    method.check(batch)
    cast(Layer, model.layers[1]).mlp_norm.weight.mul_(1e4)
    with method.applied(), pytest.raises(ConfigError, match=r"layers\.1: a state reaches"):
        model(batch)
    with pytest.raises(ConfigError, match=r"layers\.1: a state reaches"):
        method.check(batch)


def test_a_layer_that_does_not_compute_the_same_twice_is_refused(model: ITEm, batch: Batch) -> None:
    method, calls = make(model), iter(range(1000))

    def drift(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + 1e-3 * next(calls)

    handle = cast(Layer, model.layers[1]).up.register_forward_hook(drift)
    with pytest.raises(ConfigError, match=r"layers\.1: its input is rebuilt .* off"):
        method.check(batch)
    with method.applied():
        loss = model(batch).states.sum()
        with pytest.raises(ConfigError, match=r"rebuilt .* off"):
            loss.backward()
    handle.remove()
    method.check(batch)


@pytest.mark.parametrize(("num_layers", "scale", "bits"), [(6, 0.125, 34), (12, 0.125, 25), (24, 0.5, 31)])
def test_bits_behind_the_point(num_layers: int, scale: float, bits: int) -> None:
    assert fraction_bits(num_layers, (scale, 1.0), swapped=True) == bits


def test_impossible_settings_are_refused(tiny_config: ItemConfig, model: ITEm) -> None:
    for values, match in (
        ({"scale": 0.1}, "power of two"),
        ({"scale": 1.0}, "power of two"),
        ({"rank": 0}, "rank: 0"),
        ({"variant": "meft4"}, "variant: 'meft4'"),
    ):
        with pytest.raises(ConfigError, match=match):
            MeftConfig(**values)
    deep = ITEm(replace(tiny_config, num_layers=24))
    with pytest.raises(ConfigError, match=r"scale: 0\.125 over 24 layers leaves 7"):
        Meft(deep, MeftConfig())
    Meft(deep, MeftConfig(scale=0.5))
    with pytest.raises(ConfigError, match="cannot be folded"):
        make(model).fold()
