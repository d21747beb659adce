"""The kinds of attention: what their equations promise, for every length."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from item.model.attention import ATTENTION, BETA, clipped, normalised, normalised_clipped
from item.model.config import AttentionKind
from tests.model import oracle

KINDS = get_args(AttentionKind)


def draw(seed: int, T: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of two rows and three heads."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = scale * torch.randn(3, 2, 3, T, 4, generator=generator, dtype=torch.float64)
    return q, k, v


def padding(lengths: list[int], T: int) -> Tensor:
    """(B, 1, 1, T): -inf from each row's length on."""
    seen = torch.arange(T) < torch.tensor(lengths)[:, None]
    return torch.zeros(len(lengths), T, dtype=torch.float64).masked_fill(~seen, -torch.inf)[:, None, None]


def test_every_kind_is_there() -> None:
    assert tuple(ATTENTION) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99), lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)), gate=st.floats(-9, 2))
def test_attention_equals_the_oracle(kind: str, seed: int, lengths: tuple[int, int], gate: float) -> None:
    """Masked keys by -inf, and a finite bias that differs between queries."""
    (q, k, v), T = draw(seed, 9, scale=3), 9
    gates = gate * (torch.arange(T)[:, None] < 3) * (torch.arange(T) >= 3)
    y = ATTENTION[kind](q, k, v, padding(list(lengths), T) + gates, 0.0)
    for b, n in enumerate(lengths):
        for h in range(3):
            x = q[b, h].numpy() @ k[b, h, :n].numpy().T / 2 + gates[:, :n].numpy()
            expected = np.stack([oracle.attention(row, kind) for row in x]) @ v[b, h, :n].numpy()
            np.testing.assert_allclose(y[b, h].numpy(), expected, atol=1e-12)


@given(seed=st.integers(0, 99), n=st.integers(1, 80), padded=st.integers(0, 5), scale=st.floats(0, 9))
def test_a_row_sums_to_beta_before_it_is_clipped(seed: int, n: int, padded: int, scale: float) -> None:
    x = scale * torch.randn(1, 1, 4, n + padded, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = (torch.arange(n + padded) < n)[None, None, None]
    p = x.masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(normalised(p, mask).sum(-1), torch.full((1, 1, 4), BETA, dtype=torch.float64))
    assert torch.count_nonzero(normalised_clipped(p, mask)[..., n:]) == 0
    if n == 1:
        assert torch.equal(normalised_clipped(p, mask), p)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99), more=st.integers(1, 6))
def test_padding_changes_nothing(kind: str, seed: int, more: int) -> None:
    q, k, v = draw(seed, 7)
    y = ATTENTION[kind](q, k, v, padding([7, 4], 7), 0.0)
    q, k, v = (torch.cat([x, torch.randn(2, 3, more, 4, dtype=x.dtype)], dim=2) for x in (q, k, v))
    torch.testing.assert_close(ATTENTION[kind](q, k, v, padding([7, 4], 7 + more), 0.0)[:, :, :7], y)


def test_uniform_attention_survives_long_rows_only_when_normalised() -> None:
    for n in (30, 42, 43, 60):
        p, mask = torch.full((1, 1, 1, n), 1 / n), torch.ones(1, 1, 1, n, dtype=torch.bool)
        assert (torch.count_nonzero(clipped(p, mask)) == 0) == (n >= 43)
        torch.testing.assert_close(normalised_clipped(p, mask), p)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_clipped_kinds_reach_zero_and_one(kind: str) -> None:
    """One key far above the others: its weight is exactly 1, and theirs exactly 0, at a logit softmax cannot do it."""
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([5.0, 0.0, 0.0])[None, None, :, None]
    weights = ATTENTION[kind](q, k, torch.eye(3)[None, None], torch.zeros(1, 1, 1, 3), 0.0).flatten()
    assert (weights.tolist() == [1.0, 0.0, 0.0]) == (kind != "softmax")


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_of_the_weights_and_keeps_their_mean(kind: str) -> None:
    q, k, v = draw(0, 6)
    torch.manual_seed(0)
    mean = torch.stack([ATTENTION[kind](q, k, v, padding([6, 6], 6), 0.3) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, ATTENTION[kind](q, k, v, padding([6, 6], 6), 0.0), atol=0.06, rtol=0)
