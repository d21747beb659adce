"""The vector head: from the encoder's states to the listing's vector e (before it is normalised).

    e = P_g g + a_w unit(P_w unit(mean(H_words) - mu_w)) + a_p unit(P_p unit(pooled(stem) - mu_p))

Masked objectives say nothing about distances, so the head is fitted (`fit`) afterwards, without labels, on listings of
the catalogue. With starting weights the fit is late fusion of them: P_w and P_p keep inner products (PCA). From scratch
it is whitened late fusion: the few directions that all listings share would drown the rest. Words and picture get
orthogonal subspaces, dealt in turn with the strongest components first, so that every prefix is itself a late fusion.
P_g is then 0: what the global representation adds is for alignment to earn. Before `fit`, e = g.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.errors import ConfigError
from item.model.config import ItemConfig

SHRINKAGE = 0.05  # of whitening: the share of the strongest deviation that is added to each


class VectorHead(nn.Module):
    """Maps g, the words' mean and the picture's pooled features to V dimensions."""

    words_mean: Tensor
    picture_mean: Tensor

    def __init__(self, config: ItemConfig, pooled_width: int) -> None:
        super().__init__()
        V = config.vector_width
        self.global_projection = nn.Parameter(torch.eye(V, config.width))
        self.words_projection = nn.Parameter(torch.zeros(V, config.width))
        self.picture_projection = nn.Parameter(torch.zeros(V, pooled_width))
        self.weights = nn.Parameter(torch.full((2,), 0.5**0.5))  # a_w, a_p
        self.register_buffer("words_mean", torch.zeros(config.width))
        self.register_buffer("picture_mean", torch.zeros(pooled_width))

    def forward(self, g: Tensor, words: tuple[Tensor, Tensor], picture_rows: Tensor, pooled: Tensor | None) -> Tensor:
        """g: (B, D); words: rows (W,) and means (W, D); pooled: (P, F) of `picture_rows` -> (B, V) float32."""
        e = F.linear(g, self.global_projection).float()
        rows, means = words
        e = e.index_add(0, rows, self.weights[0] * part(means, self.words_mean, self.words_projection))
        if pooled is not None:
            picture = part(pooled, self.picture_mean, self.picture_projection)
            e = e.index_add(0, picture_rows, self.weights[1] * picture)
        return e

    @torch.no_grad()
    def fit(self, means: Tensor, pooled: Tensor, picture_weight: float, *, whiten: bool) -> None:
        """Sets everything but P_g's later values from a sample of the catalogue.

        Args:
            means: (W, D) float, the words' means; W may be 0.
            pooled: (P, F) float, the pictures' pooled features; P may be 0.
            picture_weight: in (0, 1), the picture's share of the cosine of listings that have both.
            whiten: whether all directions are given the same spread, rather than their own.
        """
        if not 0 < picture_weight < 1:
            raise ConfigError(f"picture_weight: {picture_weight} must be between 0 and 1")
        if whiten and len(means):
            self.words_mean.copy_(means.mean(0))
        if len(pooled):
            self.picture_mean.copy_(pooled.mean(0))
        words = components(F.normalize(means.float() - self.words_mean, dim=-1), whiten)
        picture = components(F.normalize(pooled.float() - self.picture_mean, dim=-1), whiten)
        in_words, in_picture = interleave(len(self.words_projection), len(words), len(picture))
        self.global_projection.zero_()
        self.words_projection.zero_()[in_words] = words[: len(in_words)]
        self.picture_projection.zero_()[in_picture] = picture[: len(in_picture)]
        self.weights.copy_(torch.tensor([1 - picture_weight, picture_weight]).sqrt())


def part(x: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    """One modality's share of the vector: (N, F) -> (N, V) float32 of unit norm, or 0 before the head is fitted."""
    return F.normalize(F.linear(F.normalize(x.float() - mean, dim=-1), projection), dim=-1)


def components(x: Tensor, whiten: bool) -> Tensor:
    """(N, F) -> (min(N, F), F), the principal directions of x x^T, the strongest first; whitened: over their spread."""
    _, spread, directions = torch.linalg.svd(x.double(), full_matrices=False)
    if whiten and len(spread):
        directions = directions / (spread + SHRINKAGE * spread[0])[:, None] * spread[0]
    return directions.to(x.dtype)


def interleave(width: int, num_words: int, num_picture: int) -> tuple[Tensor, Tensor]:
    """Deals `width` dimensions to words and picture in turn; what one has no components for goes to the other."""
    turns = torch.arange(width)
    words, picture = turns[0::2], turns[1::2]
    spare_words, spare_picture = words[num_words:], picture[num_picture:]
    words = torch.cat([words[:num_words], spare_picture]).sort().values[:num_words]
    picture = torch.cat([picture[:num_picture], spare_words]).sort().values[:num_picture]
    return words, picture
