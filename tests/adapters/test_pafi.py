"""PaFi: which parameters it trains, that all others keep their bits, and what it stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from item.adapters.pafi import MASK_FILE, PaFi, PafiConfig, smallest, task_file
from item.errors import ConfigError, ModelError
from item.model.batch import Batch
from item.model.encoder import ITEm


def make(model: ITEm, num_adapters: int = 1, share: float = 0.05) -> PaFi:
    return PaFi(model, PafiConfig(share=share), num_adapters)


def trained(model: ITEm, num_adapters: int = 1) -> PaFi:
    """One whose values are no longer the model's."""
    torch.manual_seed(1)
    method = make(model, num_adapters)
    with torch.no_grad():
        method.values.add_(0.3 * torch.randn_like(method.values))
    return method


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    levels=st.integers(1, 6),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_the_smallest_equal_the_oracle(sizes: list[int], levels: int, share: float, seed: int) -> None:
    """Many equal magnitudes among them."""
    generator = np.random.default_rng(seed)
    parameters = [generator.integers(-levels, levels + 1, size).astype(np.float32) for size in sizes]
    flat = np.abs(np.concatenate(parameters))
    count = max(1, round(share * len(flat)))
    expected = sorted(sorted(range(len(flat)), key=lambda index: (flat[index], index))[:count])
    assert smallest([torch.from_numpy(one) for one in parameters], share).tolist() == expected


def test_a_fresh_one_is_the_identity_and_goes_away(model: ITEm, batch: Batch) -> None:
    before = model(batch).states
    with torch.no_grad(), make(model).applied():
        assert torch.equal(model(batch).states, before)
    with torch.no_grad(), trained(model).applied():
        assert (model(batch).states - before).abs().max() > 1e-2
    assert torch.equal(model(batch).states, before)
    assert "run_layers" not in model.__dict__


def test_gradients_are_those_of_the_model_at_the_mask(model: ITEm, batch: Batch) -> None:
    method = make(model)
    weights = torch.linspace(-1, 1, model.config.width)
    with method.applied():
        (model(batch).states @ weights).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    model.layers.requires_grad_(True)
    (model(batch).states @ weights).square().sum().backward()
    dense = torch.cat([one.grad.flatten() for one in model.layers.parameters() if one.grad is not None])
    assert len(dense) == sum(one.numel() for one in model.layers.parameters())
    assert method.values.grad is not None
    assert method.values.grad.any()
    torch.testing.assert_close(method.values.grad[0], dense[method.indices])


def test_all_others_keep_their_bits_in_training(model: ITEm, batch: Batch) -> None:
    """With weight decay, and moments for the values alone."""
    method, base = make(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        with method.applied():
            loss = model(batch).states[..., ::3].square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moments = [one for state in optimiser.state.values() for one in state.values() if one.ndim]
    assert sum(one.numel() for one in moments) == 2 * method.num_stored
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())
    tensors = method.fold()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {k: v.shape for k, v in base.items()}
    names = [f"layers.{name}" for name, _ in model.layers.named_parameters()]
    changed = torch.cat([(tensors[name] != base[name]).flatten() for name in names]).nonzero().squeeze(1)
    assert set(changed.tolist()) <= set(method.indices.tolist())
    assert len(changed) > 0.9 * method.num_stored
    assert all(torch.equal(tensors[name], base[name]) for name in base if name not in names)


def test_a_mixed_batch_equals_single_runs_and_folded_models(model: ITEm, batch: Batch) -> None:
    method, rows = trained(model, num_adapters=3), torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0])
    with torch.no_grad(), method.applied(rows):
        mixed = model(batch).states
    other = ITEm(model.config).eval()
    for row in range(3):
        other.load_state_dict(method.fold(row))
        present = model.present(batch) & (rows == row)[:, None]
        with torch.no_grad(), method.applied(torch.full((10,), row)):
            assert torch.equal(model(batch).states, other(batch).states)
        torch.testing.assert_close(mixed[present], other(batch).states[present], atol=1e-5, rtol=1e-5)
    assert not torch.equal(method.values[0], method.values[1])


def test_the_mask_is_stored_once_and_values_for_each_task(model: ITEm, tmp_path: Path) -> None:
    method = trained(model, num_adapters=2)
    method.save(tmp_path, "shoes", 0)
    written = (tmp_path / MASK_FILE).stat().st_mtime_ns
    method.save(tmp_path, "mask", 1)
    assert (tmp_path / MASK_FILE).stat().st_mtime_ns == written
    assert task_file(tmp_path, "shoes").stat().st_size < 4 * method.num_stored + 200
    other = make(model)
    for row, name in enumerate(("shoes", "mask")):
        other.load(tmp_path, name)
        assert torch.equal(other.values[0], method.values[row])
    with pytest.raises(ModelError, match="another model or share"):
        make(model, share=0.1).load(tmp_path, "shoes")
    with pytest.raises(ModelError, match="another model or share"):
        make(model, share=0.1).save(tmp_path, "mugs")
    with pytest.raises(ModelError, match="no such file"):
        other.load(tmp_path, "mugs")


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        PafiConfig(share=share)
