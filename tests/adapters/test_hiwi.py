"""HiWi: its equation, the identity at the start, and a folded model that is the base's graph."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from item.adapters.hiwi import FEED_FORWARD, HiWi, HiwiConfig, change_of_bias
from item.errors import ConfigError
from item.export.encoder import LayersGraph
from item.model.batch import Batch
from item.model.encoder import ITEm, Layer


def fresh(model: ITEm, num_adapters: int = 1) -> HiWi:
    torch.manual_seed(1)
    return HiWi(model, HiwiConfig(rank=5), num_adapters)


def trained(model: ITEm, num_adapters: int = 1) -> HiWi:
    """One whose C is no longer 0."""
    method = fresh(model, num_adapters)
    with torch.no_grad():
        for C in method.C:
            C.normal_()
    return method


def states(model: ITEm, batch: Batch) -> torch.Tensor:
    return model(batch).states


@given(seed=st.integers(0, 99), d=st.integers(1, 9), r=st.integers(1, 5))
def test_the_change_equals_the_oracle(seed: int, d: int, r: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, A, C = (torch.randn(shape, generator=generator).double() for shape in ((d,), (2, d, r), (2, r, d)))
    for row, found in enumerate(change_of_bias(b, A, C)):
        hidden = [sum(b[i].item() * A[row, i, j].item() for i in range(d)) for j in range(r)]
        hidden = [x * (1 + math.erf(x / 2**0.5)) / 2 for x in hidden]
        expected = [sum(hidden[j] * C[row, j, i].item() for j in range(r)) for i in range(d)]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_a_fresh_one_is_the_identity_and_goes_away(model: ITEm, batch: Batch) -> None:
    before = states(model, batch)
    with fresh(model).applied():
        assert torch.equal(states(model, batch), before)
    with trained(model).applied():
        assert (states(model, batch) - before).abs().max() > 0.1
    assert torch.equal(states(model, batch), before)


def test_only_the_adapter_learns_and_all_of_it(model: ITEm, batch: Batch) -> None:
    method = trained(model)
    with method.applied():
        states(model, batch).square().mul(torch.linspace(0, 1, model.config.width)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())


def test_it_starts_to_learn_from_zero(model: ITEm, batch: Batch) -> None:
    method = fresh(model)
    with method.applied():
        states(model, batch)[..., :7].sum().backward()  # type: ignore[no-untyped-call]
    assert all(C.grad is not None and C.grad.any() for C in method.C)


def test_a_mixed_batch_equals_single_runs_and_folded_models(model: ITEm, batch: Batch) -> None:
    method, rows = trained(model, num_adapters=3), torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0])
    with torch.no_grad(), method.applied(rows):
        mixed = states(model, batch)
    folded = [method.fold(row) for row in range(3)]
    assert not torch.equal(folded[0]["layers.0.up.bias"], folded[1]["layers.0.up.bias"])
    other = ITEm(model.config).eval()
    for row, tensors in enumerate(folded):
        with torch.no_grad(), method.applied(torch.full((10,), row)):
            alone = states(model, batch)
        other.load_state_dict(tensors)
        present = model.present(batch) & (rows == row)[:, None]
        torch.testing.assert_close(mixed[present], alone[present], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states(other, batch)[present], mixed[present], atol=1e-5, rtol=1e-5)


def test_what_is_stored_is_the_biases(model: ITEm) -> None:
    method, base = trained(model), model.state_dict()
    tensors = method.fold()
    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, base[name])}
    assert changed == {f"layers.{index}.{name}.bias" for index in range(3) for name in FEED_FORWARD}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {k: v.shape for k, v in base.items()}
    assert method.num_stored == sum(tensors[name].numel() for name in changed)
    assert method.num_stored == 3 * (model.config.width + model.config.mlp_width)
    assert all(tensors[name].data_ptr() != base[name].data_ptr() for name in tensors if base[name].numel())


def nodes(graph: onnx.ModelProto) -> list[tuple[object, ...]]:
    """All that an engine runs: operations with their inputs, outputs and attributes, and the constants' shapes."""
    operations = [(n.op_type, n.domain, *n.input, *n.output, n.attribute) for n in graph.graph.node]
    return [*operations, *((one.name, one.data_type, *one.dims) for one in graph.graph.initializer)]


def test_the_folded_graph_is_the_bases(model: ITEm) -> None:
    """No operation more, so no latency."""
    folded = ITEm(model.config).eval()
    folded.load_state_dict(trained(model).fold())
    base, other = LayersGraph(model).build({}), LayersGraph(folded).build({})
    assert nodes(base) == nodes(other)
    assert base.SerializeToString() != other.SerializeToString()


def test_biases_of_zero_are_refused(model: ITEm) -> None:
    cast(Layer, model.layers[1]).down.bias.zero_()
    with pytest.raises(ConfigError, match=r"layers\.1\.down\.bias"):
        fresh(model)
    with pytest.raises(ConfigError, match="rank: 0"):
        HiwiConfig(rank=0)
