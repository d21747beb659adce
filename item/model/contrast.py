"""InfoNCE: CE(scale x_i . y_j, j = i), in both directions (arXiv 1807.03748; symmetric as in arXiv 2103.00020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e4  # a logit that stands for no logit


def info_nce(x: Tensor, y: Tensor, scale: Tensor | float, ignored: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of pairs (x_i, y_i).

    Args:
        x, y: (B, D) of unit norm.
        scale: the inverse of the temperature.
        ignored: (B, B) bool: pairs that are neither positive nor negative (the same product, the same words).
    """
    logits = scale * x @ y.T
    own = torch.arange(len(x), device=x.device)
    if ignored is not None:
        logits = logits.masked_fill(ignored & (own[:, None] != own), MASKED)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
