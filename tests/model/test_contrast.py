"""InfoNCE against numpy float64, written from the equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from item.model.contrast import info_nce


def cross_entropy(logits: list[float], positive: int) -> float:
    """- log of the positive's share, (n,) logits."""
    z = np.asarray(logits, dtype=np.float64)
    return float(z.max() + np.log(np.exp(z - z.max()).sum()) - z[positive])


def info_nce_oracle(x: np.ndarray, y: np.ndarray, scale: float, ignored: np.ndarray) -> float:
    """Row by row over the pairs that count, both directions."""
    losses = []
    for queries, answers, left_out in ((x, y, ignored), (y, x, ignored.T)):
        for i in range(len(queries)):
            there = [j for j in range(len(answers)) if j == i or not left_out[i, j]]
            logits = [scale * float(queries[i] @ answers[j]) for j in there]
            losses.append(cross_entropy(logits, there.index(i)))
    return float(np.mean(losses))


def unit(rng: np.random.Generator, rows: int) -> torch.Tensor:
    return F.normalize(torch.from_numpy(rng.normal(size=(rows, 6))), dim=1)


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 7), scale=st.floats(0.1, 30), share=st.floats(0, 1))
def test_info_nce_equals_its_definition(seed: int, rows: int, scale: float, share: float) -> None:
    """Ignored pairs, not symmetric: neither positive nor negative in their direction."""
    rng = np.random.default_rng(seed)
    x, y, ignored = unit(rng, rows), unit(rng, rows), rng.random((rows, rows)) < share
    found = info_nce(x, y, scale, torch.from_numpy(ignored)).item()
    assert found == pytest.approx(info_nce_oracle(x.numpy(), y.numpy(), scale, ignored), rel=1e-9, abs=1e-9)
    nothing = np.zeros_like(ignored)
    assert info_nce(x, y, scale).item() == pytest.approx(info_nce_oracle(x.numpy(), y.numpy(), scale, nothing))


def test_ignored_pairs_change_the_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = unit(rng, 5), unit(rng, 5)
    ignored = torch.zeros(5, 5, dtype=torch.bool)
    ignored[0, 1] = True
    assert info_nce(x, y, 10.0, ignored) < info_nce(x, y, 10.0)
    assert info_nce(x, y, 10.0, torch.eye(5, dtype=torch.bool)) == info_nce(x, y, 10.0)  # the own pair always counts


def test_gradients_reach_both_inputs_and_the_scale() -> None:
    rng = np.random.default_rng(0)
    x, y = unit(rng, 5).requires_grad_(), unit(rng, 5).requires_grad_()
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    info_nce(x, y, scale, torch.from_numpy(rng.random((5, 5)) < 0.2)).backward()  # type: ignore[no-untyped-call]
    for tensor in (x, y):
        assert tensor.grad is not None
        assert (tensor.grad.abs().sum(1) > 0).all()
    assert scale.grad is not None
    assert scale.grad.abs() > 0
