"""Vector heads: from the encoder's states to the listing's vector e (before it is normalised).

    global   e = P_g g
    fusion   e = P_g g + a_w P_w unit(mean(H_words)) + a_p P_p unit(pooled(stem) - mean)

'fusion' starts as late fusion of the starting weights (P_g = 0) and can only earn its way from there: P_w and P_p map
into orthogonal subspaces and keep inner products, with the strongest components of both first, so that every prefix
of the vector is itself a late fusion.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.errors import ConfigError
from item.model.config import ItemConfig


class GlobalVector(nn.Module):
    """e = P_g g, with P_g = I at the start."""

    def __init__(self, config: ItemConfig, pooled_width: int) -> None:
        super().__init__()
        self.global_projection = nn.Parameter(torch.eye(config.vector_width, config.width))

    def forward(self, g: Tensor, words: tuple[Tensor, Tensor], picture_rows: Tensor, pooled: Tensor | None) -> Tensor:
        """g: (B, D) -> (B, V). The pooled words and picture are not used."""
        return F.linear(g, self.global_projection)


class FusionVector(nn.Module):
    """e = P_g g + a_w P_w unit(mean(H_words)) + a_p P_p unit(pooled(stem) - mean); call `fit` before first use."""

    picture_mean: Tensor

    def __init__(self, config: ItemConfig, pooled_width: int) -> None:
        super().__init__()
        self.global_projection = nn.Parameter(torch.zeros(config.vector_width, config.width))
        self.words_projection = nn.Parameter(torch.zeros(config.vector_width, config.width))
        self.picture_projection = nn.Parameter(torch.zeros(config.vector_width, pooled_width))
        self.weights = nn.Parameter(torch.full((2,), 0.5**0.5))  # a_w, a_p
        self.register_buffer("picture_mean", torch.zeros(pooled_width))

    def forward(self, g: Tensor, words: tuple[Tensor, Tensor], picture_rows: Tensor, pooled: Tensor | None) -> Tensor:
        """g: (B, D); words: rows (W,) and means (W, D); pooled: (P, F) of `picture_rows` -> (B, V)."""
        e = F.linear(g, self.global_projection).float()
        rows, means = words
        e = e.index_add(0, rows, self.weights[0] * self.words_part(means))
        if pooled is not None:
            e = e.index_add(0, picture_rows, self.weights[1] * self.picture_part(pooled))
        return e

    def words_part(self, means: Tensor) -> Tensor:
        """(W, D) -> (W, V), unit norm up to what the projection leaves out."""
        return F.linear(F.normalize(means.float(), dim=-1), self.words_projection)

    def picture_part(self, pooled: Tensor) -> Tensor:
        """(P, F) -> (P, V), unit norm up to what the projection leaves out."""
        return F.linear(F.normalize(pooled.float() - self.picture_mean, dim=-1), self.picture_projection)

    @torch.no_grad()
    def fit(self, means: Tensor, pooled: Tensor, picture_weight: float) -> None:
        """Sets the projections from a catalogue's own words and pictures.

        means: (W, D), pooled: (P, F), float; picture_weight: in (0, 1), the picture's share of the cosine.
        """
        if not 0 < picture_weight < 1:
            raise ConfigError(f"picture_weight: {picture_weight} must be between 0 and 1")
        self.picture_mean.copy_(pooled.mean(0))
        words = principal_components(F.normalize(means.float(), dim=-1))
        picture = principal_components(F.normalize(pooled.float() - self.picture_mean, dim=-1))
        in_words, in_picture = interleave(len(self.words_projection), len(words), len(picture))
        self.words_projection.zero_()[in_words] = words[: len(in_words)]
        self.picture_projection.zero_()[in_picture] = picture[: len(in_picture)]
        self.weights.copy_(torch.tensor([1 - picture_weight, picture_weight]).sqrt())


def principal_components(x: Tensor) -> Tensor:
    """(N, D) -> (min(N, D), D), orthonormal rows, the strongest first. Not centred, so that inner products are kept."""
    return torch.linalg.svd(x.double(), full_matrices=False).Vh.to(x.dtype)


def interleave(width: int, num_words: int, num_picture: int) -> tuple[Tensor, Tensor]:
    """Deals `width` dimensions to words and picture in turn, until one has no components left."""
    turns = torch.arange(width)
    words, picture = turns[0::2], turns[1::2]
    spare_words, spare_picture = words[num_words:], picture[num_picture:]
    words = torch.cat([words[:num_words], spare_picture]).sort().values[:num_words]
    picture = torch.cat([picture[:num_picture], spare_words]).sort().values[:num_picture]
    return words, picture


VECTOR_HEADS: dict[str, type[GlobalVector | FusionVector]] = {"global": GlobalVector, "fusion": FusionVector}
