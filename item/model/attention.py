"""What the layers attend with: softmax, or one whose heads can attend to nothing (arXiv 2402.12102).

    softmax              p = softmax(x)
    clipped              clip((zeta - gamma) p + gamma, 0, 1)
    normalised_clipped   clip(p (n zeta - beta) / (n - 1) + (beta - zeta) / (n - 1), 0, 1), and 0 at masked keys

n is the number of a row's keys that are not masked. A head that has nothing to add can only say so through softmax with
a huge logit somewhere, and that grows the outliers that 8-bit activations lose; clipping makes exactly 0 reachable.
Before it is clipped, a row of `normalised_clipped` sums to beta for every n, so that it means the same for words alone
(15 tokens) as for words and picture (55). `clipped` does not: uniform attention to 43 keys or more is 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# The paper's starting values: 1 < zeta makes exactly 1 reachable, gamma < 0 exactly 0; beta is the sum of a row.
ZETA = 1.03
GAMMA = -0.025
BETA = 1.0

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """q, k, v: (B, H, T, D / H); bias: (B, 1, T or 1, T), -inf at masked keys -> (B, H, T, D / H)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout)


def through(
    clip: Callable[[Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float
) -> Tensor:
    """As `softmax`, with the probabilities put through `clip` before they are dropped out."""
    p = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias.to(q.dtype), dim=-1)
    return F.dropout(clip(p, bias > -torch.inf).to(v.dtype), dropout) @ v


def clipped(p: Tensor, mask: Tensor) -> Tensor:
    """(B, H, T, T) probabilities -> the same stretched to [gamma, zeta] and clipped; masked keys are 0 and stay it."""
    return ((ZETA - GAMMA) * p + GAMMA).clamp(0, 1)


def normalised_clipped(p: Tensor, mask: Tensor) -> Tensor:
    """(B, H, T, T) probabilities, mask (B, 1, T or 1, T) bool, False at masked keys -> `normalised`, clipped."""
    return normalised(p, mask).clamp(0, 1)


def normalised(p: Tensor, mask: Tensor) -> Tensor:
    """Stretched so that each row sums to beta over its unmasked keys; a row of one key is left as it is."""
    n = mask.sum(-1, keepdim=True, dtype=p.dtype)
    others = (n - 1).clamp(min=1)
    stretched = (p * (n * ZETA - BETA) + (BETA - ZETA)) / others * mask
    return torch.where(n > 1, stretched, p)


ATTENTION: dict[str, Attend] = {
    "softmax": softmax,
    "clipped": partial(through, clipped),
    "normalised_clipped": partial(through, normalised_clipped),
}
