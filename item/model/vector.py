"""The vector head: from the encoder's states to the listing's vector e (before it is normalised).

    x_w = [sqrt(t) unit(mean H_title) ; sqrt(1 - t) unit(mean H_words)]         x_p = pooled(stem)
    own(x) = unit(P unit(x - mu))              tower(x) = unit(W_2 gelu(W_1 unit(x - mu) + b_1) + b_2)
    z = C_w unit(x_w - mu) + C_p unit(x_p - mu) + b             category(z) = unit(R [sqrt(softmax(z_level))]_levels)
    e = P_g g + a_w own(x_w) + a_l unit(P_l s) + a_p own(x_p) + a_s unit(tower(x_w) + tower(x_p)) + a_c category(z)
    a = a_both of a listing with words and a picture, a_alone of one with either of them
    s: how the words are spelled (item.preprocessing.spelling)

Five orthogonal subspaces: what the words say by themselves, how they are spelled, what the picture shows by itself,
what words and picture have in common, and the categories that they speak for. They meet only in the last two, so that
their cosine across modalities is the towers' and the categories' own, while listings that have both are compared in
all; the shares of the subspaces are therefore others where one modality speaks alone. Roots of probabilities are unit
vectors, and their inner product is the Bhattacharyya coefficient: how alike two listings' categories are, doubts
included. The dimensions are dealt in turn, the strongest of each first, so that every prefix is such a vector too
(Matryoshka). Alignment turns e at the end, so that the first dimensions carry the most of all five.

Masked objectives say nothing about distances, so the head is fitted after them. `fit` makes the starting point,
without labels: with starting weights it is late fusion of them (P keeps inner products), from scratch whitened late
fusion (the few directions that all listings share would drown the rest); t = 0, P_g = 0, P_l = 0, the towers are 0 and
there are no categories. `training.align` goes on from there. Before `fit`, e = g.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.errors import ConfigError
from item.model.config import ItemConfig
from item.preprocessing.spelling import SPELLING_WIDTH

SHRINKAGE = 0.05  # of whitening: the share of the strongest deviation that is added to each
TOWER_WIDTH = 768
NOTHING = 1e-6  # of the strongest deviation: a direction below it is empty
ROUNDING = 1e-6  # of a share: as far below 0 as sums of floats may leave it


class PooledWords(NamedTuple):
    """rows: (W,) of the listings that have words; means: (W, 2, D), of the title's states and of all words' states.
    spelling: (W, SPELLING_WIDTH), zeros where it is not known; None: of no listing."""

    rows: Tensor
    means: Tensor
    spelling: Tensor | None = None


class Part(nn.Module):
    """One modality's way into the vector: its own subspace, its tower into the shared one, its say on categories."""

    mean: Tensor

    def __init__(self, width: int, vector_width: int, num_categories: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.projection = nn.Parameter(torch.zeros(vector_width, width))
        self.categories = nn.Parameter(torch.zeros(num_categories, width))
        self.tower = nn.Sequential(nn.Linear(width, TOWER_WIDTH), nn.GELU(), nn.Linear(TOWER_WIDTH, vector_width))
        for parameter in self.tower.parameters():
            nn.init.zeros_(parameter)

    def centred(self, x: Tensor) -> Tensor:
        """(N, F) -> unit(x - mu), (N, F): what this part reads."""
        return F.normalize(x - self.mean, dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, F) -> own and shared share, (N, V) each, of unit norm, or 0 before they are fitted; (N, C) logits."""
        x = self.centred(x)
        own, shared = F.normalize(F.linear(x, self.projection), dim=-1), F.normalize(self.tower(x), dim=-1)
        return own, shared, F.linear(x, self.categories)


class VectorHead(nn.Module):
    """Maps g, the words' means and the picture's pooled features to V dimensions."""

    title_weight: Tensor

    def __init__(self, config: ItemConfig, pooled_width: int) -> None:
        super().__init__()
        V, self.category_levels = config.vector_width, config.category_levels
        C = sum(self.category_levels)
        self.global_projection = nn.Parameter(torch.eye(V, config.width))
        self.words = Part(2 * config.width, V, C)
        self.spelling_projection = nn.Parameter(torch.zeros(V, SPELLING_WIDTH))
        self.picture = Part(pooled_width, V, C)
        self.category_bias = nn.Parameter(torch.zeros(C))
        self.category_projection = nn.Parameter(torch.zeros(V, C))
        both = [0.5**0.5, 0.0, 0.5**0.5, 0.0, 0.0]
        self.weights = nn.Parameter(torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0], both]))  # a_w, a_l, a_p, a_s, a_c
        self.register_buffer("title_weight", torch.zeros(()))

    def forward(self, g: Tensor, words: PooledWords, picture_rows: Tensor, pooled: Tensor | None) -> Tensor:
        """g: (B, D); pooled: (P, F) of `picture_rows` -> (B, V) float32."""
        e = F.linear(g, self.global_projection).float()
        no_rows = torch.zeros_like(e[:, :1])
        has_words, has_picture = no_rows.index_fill(0, words.rows, 1), no_rows.index_fill(0, picture_rows, 1)
        a = torch.where((has_words * has_picture).bool(), self.weights[1], self.weights[0])
        own, shared, logits = self.words(join_fields(words.means.float(), self.title_weight))
        e = e.index_add(0, words.rows, a[words.rows, :1] * own)
        if words.spelling is not None:
            own = F.normalize(F.linear(words.spelling.float(), self.spelling_projection), dim=-1)
            e = e.index_add(0, words.rows, a[words.rows, 1:2] * own)
        meeting = torch.zeros_like(e).index_add(0, words.rows, shared)
        z = self.category_bias.expand(len(e), -1).index_add(0, words.rows, logits)
        if pooled is not None:
            own, shared, logits = self.picture(pooled.float())
            e = e.index_add(0, picture_rows, a[picture_rows, 2:3] * own)
            meeting = meeting.index_add(0, picture_rows, shared)
            z = z.index_add(0, picture_rows, logits)
        e = e + a[:, 3:4] * F.normalize(meeting, dim=-1)
        if not self.category_levels:
            return e
        category = F.linear(root_shares(z, self.category_levels), self.category_projection)
        return e + a[:, 4:] * torch.maximum(has_words, has_picture) * F.normalize(category, dim=-1)

    @property
    def features_width(self) -> int:
        """Of `features`."""
        return len(self.words.mean) + len(self.picture.mean)

    def features(self, count: int, words: PooledWords, picture_rows: Tensor, pooled: Tensor | None) -> Tensor:
        """What the parts read of `count` listings, as in `forward`: (count, 2 D + F) float32, words before picture, of
        unit norm each; zeros where a listing does not have it. Heads of categories read the same."""
        of_words = self.words.centred(join_fields(words.means.float(), self.title_weight))
        features = of_words.new_zeros(count, self.features_width)
        features[words.rows, : of_words.shape[1]] = of_words
        if pooled is not None:
            features[picture_rows, of_words.shape[1] :] = self.picture.centred(pooled.float())
        return features

    @torch.no_grad()
    def fit(self, means: Tensor, pooled: Tensor, picture_weight: float, *, whiten: bool) -> None:
        """Sets the starting point from a sample of the catalogue.

        Args:
            means: (W, 2, D) float, the words' means; W may be 0.
            pooled: (P, F) float, the pictures' pooled features; P may be 0.
            picture_weight: in (0, 1), the picture's share of the cosine of listings that have both.
            whiten: whether all directions are given the same spread, rather than their own.
        """
        if not 0 < picture_weight < 1:
            raise ConfigError(f"picture_weight: {picture_weight} must be between 0 and 1")
        self.title_weight.zero_()
        words = join_fields(means.float(), self.title_weight)
        if whiten and len(words):
            self.words.mean.copy_(words.mean(0))
        if len(pooled):
            self.picture.mean.copy_(pooled.mean(0))
        in_words = components(F.normalize(words - self.words.mean, dim=-1), whiten)
        in_picture = components(F.normalize(pooled.float() - self.picture.mean, dim=-1), whiten)
        self.set_projections(in_words, in_picture)
        self.set_shares(alone=(0.0, 0.0), both=(picture_weight, 0.0, 0.0))

    @torch.no_grad()
    def set_shares(self, alone: tuple[float, float], both: tuple[float, float, float], spelling: float = 0.0) -> None:
        """Weighs the subspaces by shares of a cosine.

        Args:
            alone: of the towers and of the categories, where two listings have one modality, the same.
            both: the picture's share of the own subspaces, then those of the towers and of the categories.
            spelling: its share of what is left to the words.

        Raises:
            ConfigError: a subspace would have less than nothing.
        """
        picture, *others = both
        own, alone_own = 1 - sum(others), 1 - sum(alone)
        if not 0 <= spelling <= 1:
            raise ConfigError(f"spelling: {spelling} must be within 0 and 1")
        shares = [[alone_own, alone_own, *alone], [own * (1 - picture), own * picture, *others]]
        for field, given, row in zip(("alone", "both"), (alone, both), shares, strict=True):
            if not all(share >= -ROUNDING for share in row):
                raise ConfigError(
                    f"{field}: {given} leaves words, picture, towers and categories "
                    f"{', '.join(f'{share:.3g}' for share in row)} of the cosine; "
                    "give shares within 0 and 1, towers and categories together at most 1"
                )
        of_words, *rest = torch.tensor(shares).clamp(min=0).T
        self.weights.copy_(torch.stack([of_words * (1 - spelling), of_words * spelling, *rest], dim=1).sqrt())

    @torch.no_grad()
    def set_projections(
        self,
        words: Tensor,
        picture: Tensor,
        num_shared: int = 0,
        categories: Tensor | None = None,
        spelling: Tensor | None = None,
    ) -> Tensor:
        """Deals the dimensions: directions (k, F) of either part, (k, C) of the categories and (k, SPELLING_WIDTH) of
        the spelling, the strongest first.

        Returns the shared dimensions. P_g and the towers are 0 afterwards, and so is what is not given.
        """
        directions = torch.zeros(0, len(self.category_bias)) if categories is None else categories
        spelling = torch.zeros(0, SPELLING_WIDTH) if spelling is None else spelling
        available = len(words), len(picture), num_shared, len(directions), len(spelling)
        in_words, in_picture, in_shared, in_categories, in_spelling = deal(len(self.words.projection), *available)
        self.global_projection.zero_()
        self.words.projection.zero_()[in_words] = words[: len(in_words)]
        self.picture.projection.zero_()[in_picture] = picture[: len(in_picture)]
        self.category_projection.zero_()[in_categories] = directions[: len(in_categories)]
        self.spelling_projection.zero_()[in_spelling] = spelling[: len(in_spelling)]
        for part in (self.words, self.picture):
            for parameter in part.tower.parameters():
                parameter.zero_()
        return in_shared

    @torch.no_grad()
    def set_categories(self, levels: tuple[int, ...], words: Tensor, picture: Tensor, bias: Tensor) -> None:
        """Gives the head other categories: words, picture (C, F), bias (C,), of C categories in so many a level.

        `set_projections` comes after it. `ItemConfig.category_levels` of the model must be set to the same levels.
        """
        self.category_levels = levels
        self.words.categories, self.picture.categories = nn.Parameter(words.clone()), nn.Parameter(picture.clone())
        self.category_bias = nn.Parameter(bias.clone())
        self.category_projection = nn.Parameter(torch.zeros(len(self.words.projection), len(bias)))

    @torch.no_grad()
    def rotate(self, rotation: Tensor) -> None:
        """e becomes R e, with R (V, V) orthogonal: every cosine stays, prefixes change."""
        for name, parameter in self.named_parameters():
            if name.endswith(("projection", "tower.2.weight", "tower.2.bias")):  # rows are dimensions
                parameter.copy_(rotation @ parameter)


def join_fields(means: Tensor, title_weight: Tensor | float) -> Tensor:
    """(..., 2, D) means of title and of all words -> (..., 2 D) of unit norm: the title's share of the cosine is t."""
    title, everything = F.normalize(means, dim=-1).unbind(-2)
    share = torch.as_tensor(title_weight, dtype=means.dtype, device=means.device)
    return torch.cat([share.sqrt() * title, (1 - share).sqrt() * everything], dim=-1)


def root_shares(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    """(N, C) logits -> (N, C): the root of each category's probability among those of its level."""
    return torch.cat([of_level.softmax(-1).sqrt() for of_level in torch.split(z, list(levels), dim=-1)], dim=-1)


def components(x: Tensor, whiten: bool = False) -> Tensor:
    """(N, F) -> (K, F), the principal directions of x^T x, the strongest first, empty ones left out; whitened: over
    their spread."""
    x = x.double()
    squares, directions = torch.linalg.eigh(x.T @ x)
    spread, directions = squares.clamp(min=0).sqrt().flip(0), directions.T.flip(0)
    kept = spread > NOTHING * spread[0]
    spread, directions = spread[kept], directions[kept]
    if whiten and len(spread):
        directions = directions / (spread + SHRINKAGE * spread[0])[:, None] * spread[0]
    return directions.float()


def deal(width: int, *available: int) -> list[Tensor]:
    """Deals `width` dimensions in turn to parts that can use so many each: for each part its dimensions, ascending."""
    hands: list[list[int]] = [[] for _ in available]
    dimension = 0
    while dimension < width:
        takers = [hand for hand, limit in zip(hands, available, strict=True) if len(hand) < limit]
        if not takers:
            break
        for hand in takers[: width - dimension]:
            hand.append(dimension)
            dimension += 1
    return [torch.tensor(hand, dtype=torch.int64) for hand in hands]
