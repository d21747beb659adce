"""Fits the vector head on views of a catalogue's listings: what differs between views is not the product.

    own        : P = principal directions of unit(A x), times A (training/inputs.py): closed form, nothing to overfit
    spelling   : P_l = principal directions
    towers     : networks on x in which words and picture meet (training/towers.py)
    categories : multinomial regressions on x (training/categories.py) that expect words to speak for a category as its
                 name does, softened; R: principal directions of the roots

The own subspaces keep what the starting weights knew (A is linear and close to the identity where views say nothing),
so a small catalogue cannot make the vector forget; what is learned freely has dimensions of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from item.model.vector import Part, VectorHead, components, deal, join_fields, root_shares
from training.categories import CategoryWeights, fit_categories
from training.config import AlignOptions
from training.inputs import TITLE_WEIGHT, Inputs, Parts, Unseen
from training.labels import Labels
from training.pooled import Pooled, embed
from training.towers import Recipe, linear_layers, train_towers

SOFTENING = 2.0  # of the categories' logits: those of listings that were learned from are too sure
CATEGORY_WIDTH = 64  # dimensions of the categories, at most


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How much is changed of the starting point.

    words, picture: lambda of either own subspace; None leaves its directions as they started.
    names: how much the words are expected to speak for a category by what its name says: the norm of the weights that
    are expected.
    spelling: how much of the words' own cosine is how they are spelled.
    shared_alone, category_alone: the shares of the towers and of the categories in the cosine of two listings that are
    seen by one modality. shared_weight, category_weight: by both. picture_weight: the picture's share of what is left
    to the own subspaces of both.
    """

    words: float | None = 1.0
    picture: float | None = 1.0
    names: float = 40.0
    spelling: float = 0.5
    shared_alone: float = 0.3
    category_alone: float = 0.2
    picture_weight: float = 0.5
    shared_weight: float = 0.2
    category_weight: float = 0.3


class Categories(NamedTuple):
    """The regressions, softened. directions: (k, C), rows of R, the strongest first: of what words, pictures and both
    say of the listings."""

    weights: CategoryWeights
    directions: Tensor


class Fit:
    """Everything that is learned from N listings; `head` then makes a head of it in any settings.

    Args:
        names: (C, 2, D), the words' means of the categories' names, zeros for a name without words; None: not known.
    """

    def __init__(self, start: VectorHead, pooled: Pooled, labels: Labels, names: Tensor | None = None) -> None:
        self.start, self.pooled, self.labels = start, pooled, labels
        self.words = Inputs(join_fields(pooled.words, TITLE_WEIGHT), pooled.has_words, labels)
        self.picture = Inputs(pooled.picture, pooled.has_picture, labels)
        self.parts = Parts(self.words, self.picture)
        self.spelling = components(pooled.spelling[torch.from_numpy(pooled.has_words)].flatten(0, 1))
        self.towers: nn.ModuleList | None = None
        self.names = None
        if names is not None:
            self.names = self.words.centre(join_fields(names, TITLE_WEIGHT)) * names.flatten(1).any(dim=1)[:, None]
        self.known: dict[float, Categories] = {}  # the choice of settings asks for the same ones again
        self.recipe: Recipe | None = None  # of the towers

    def train_towers(
        self, options: AlignOptions, seed: int, held_out: Unseen | None = None, recipe: Recipe | None = None
    ) -> None:
        """Trains the towers as `training.towers.train_towers` says, where at least two listings have words and a
        picture."""
        if self.parts.paired.sum() >= 2:
            given = self.parts, self.labels, self.shared_width, options, seed, held_out, recipe
            self.towers, self.recipe = train_towers(*given)

    def categories(self, names: float) -> Categories:
        """The categories where their names weigh so much (`HeadSettings`)."""
        if names not in self.known:
            expected = None if self.names is None else names * self.names
            fitted = fit_categories(self.words.x, self.picture.x, self.labels, expected)
            weights = CategoryWeights(*(tensor / SOFTENING for tensor in fitted))
            self.known[names] = Categories(weights, self.category_directions(weights))
        return self.known[names]

    def category_directions(self, weights: CategoryWeights) -> Tensor:
        """(k, C): R of these regressions."""
        into_words, into_picture, bias = weights
        words, picture = self.words.x[:, 0] @ into_words.T, self.picture.x[:, 0] @ into_picture.T
        said = [
            z[torch.from_numpy(has)] + bias for z, has in ((words, self.words.present), (picture, self.picture.present))
        ]
        roots = [root_shares(z, self.labels.levels) for z in (*said, words + picture + bias)]
        return components(torch.cat(roots))[:CATEGORY_WIDTH]

    @property
    def shared_width(self) -> int:
        """How many dimensions of the vector the towers get."""
        width = len(self.start.words.projection)
        num_categories = min(CATEGORY_WIDTH, sum(self.labels.levels))
        return len(deal(width, width, width, width, num_categories, len(self.spelling))[2])

    @torch.no_grad()
    def head(self, settings: HeadSettings) -> VectorHead:
        """A vector head in these settings, as `item.model.vector` describes it; `turn` makes its prefixes good ones."""
        head = copy.deepcopy(self.start)
        categories = self.categories(settings.names) if self.labels.levels else None
        if categories is not None:
            head.set_categories(self.labels.levels, *categories.weights)
        in_shared = head.set_projections(
            self.words.directions(settings.words),
            self.picture.directions(settings.picture),
            self.shared_width if self.towers is not None else 0,
            None if categories is None else categories.directions,
            self.spelling,
        )
        head.title_weight.fill_(TITLE_WEIGHT)
        for part, inputs in zip((head.words, head.picture), self.parts, strict=True):
            part.mean.copy_(inputs.mean)
        if self.towers is not None:
            for part, tower in zip((head.words, head.picture), self.towers, strict=True):
                copy_tower(part, tower, in_shared)
        shared, category = float(self.towers is not None), float(categories is not None)
        head.set_shares(
            alone=(settings.shared_alone * shared, settings.category_alone * category),
            both=(settings.picture_weight, settings.shared_weight * shared, settings.category_weight * category),
            spelling=settings.spelling * float(len(self.spelling) > 0),
        )
        return head

    @torch.no_grad()
    def turn(self, head: VectorHead) -> VectorHead:
        """The same head turned so that its first dimensions carry the most."""
        head.rotate(self.principal_axes(head))
        return head

    def principal_axes(self, head: VectorHead) -> Tensor:
        """(V, V): the axes along which the listings' vectors, by all that they have, differ most, the first most."""
        e = torch.from_numpy(embed(head, self.pooled, "both", 0)).double()
        e = e - e.mean(0)
        return torch.linalg.eigh(e.T @ e).eigenvectors.T.flip(0).float()


def copy_tower(part: Part, tower: nn.Module, dimensions: Tensor) -> None:
    """Puts a tower into a head; its outputs go to `dimensions` of the vector."""
    (first, last), (into, out) = linear_layers(tower), linear_layers(part.tower)
    into.weight.copy_(first.weight)
    into.bias.copy_(first.bias)
    out.weight[dimensions] = last.weight
    out.bias[dimensions] = last.bias
