"""Losses of alignment: which of these vectors belong together?

InfoNCE        CE(scale x_i . y_j, j = i), in both directions (arXiv 1807.03748; symmetric as in arXiv 2103.00020)
by category    mean over the positives p of i of CE(z_i . z_j / tau, j = p) (supervised contrast, arXiv 2004.11362)
"""

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


def category_contrast(z: Tensor, levels: Tensor, ignored: Tensor, temperature: float) -> Tensor:
    """Supervised contrast: the mean over the levels of its mean over the rows that have a positive there.

    Args:
        z: (B, D) of unit norm.
        levels: (B, L) int64, the category of each row at each level; equal numbers are positives.
        ignored: (B, B) bool: pairs that are neither positive nor negative (a row and itself, views of one listing).
    """
    shares = torch.zeros_like(ignored, dtype=z.dtype)  # of each pair in the sum: the logarithms are taken once
    for level in levels.unbind(1):
        positive = (level[:, None] == level) & ~ignored
        counts = positive.sum(1, keepdim=True, dtype=z.dtype)
        shares += positive / counts.clamp(min=1) / (counts > 0).sum().clamp(min=1) / levels.shape[1]
    return -((z @ z.T / temperature).masked_fill(ignored, MASKED).log_softmax(1) * shares).sum()
