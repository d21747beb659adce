"""Fits the vector head on views of a catalogue's listings: what differs between views is not the product.

    S      = mean (x_view - x_i)(x_view - x_i)^T, the scatter within listings (and within groups of one product)
    A      = (S / mean eigenvalue + lambda I)^(-1/2)          lambda: how much of the starting space is kept
    own        : P = principal directions of unit(A x), times A    closed form, nothing to overfit
    spelling   : P_l = principal directions
    towers     : two-layer networks on x, by InfoNCE between the words and the picture of a listing
    categories : multinomial regressions on x (training/categories.py) that expect words to speak for a category as its
                 name does, softened; R: principal directions of the roots

The own subspaces keep what the starting weights knew (A is linear and close to the identity where views say nothing),
so a small catalogue cannot make the vector forget; what is learned freely has dimensions of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.evaluation.retrieval import same_product
from item.model.contrast import info_nce
from item.model.vector import TOWER_WIDTH, Part, VectorHead, components, deal, join_fields, root_shares
from item.progress import Progress
from training.categories import UNCHANGED, CategoryWeights, fit_categories
from training.config import AlignOptions
from training.labels import Labels
from training.pooled import Pooled, embed

TITLE_WEIGHT = 0.6  # the title's share of the words' cosine
GROUP_SHARE = 0.5  # of the scatter, where listings of one product are known
SOFTENING = 2.0  # of the categories' logits: those of listings that were learned from are too sure
CATEGORY_WIDTH = 64  # dimensions of the categories, at most
SCALE = 20.0  # of InfoNCE's cosines; a larger one draws them together, and the categories drown them
VALIDATE_EVERY = 20  # steps
PATIENCE = 200  # steps without a better one, then training ends


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


class Unseen(NamedTuple):
    """M listings that are not learned from, and the number of each one's product, (M,)."""

    pooled: Pooled
    products: npt.NDArray[np.int64]

    @property
    def rows(self) -> npt.NDArray[np.intp]:
        """Of the listings that have words and a picture."""
        return np.flatnonzero(self.pooled.has_words & self.pooled.has_picture)


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
        self.spelling = components(pooled.spelling[torch.from_numpy(pooled.has_words)].flatten(0, 1))
        self.towers: nn.ModuleList | None = None
        self.names = None
        if names is not None:
            self.names = self.words.centre(join_fields(names, TITLE_WEIGHT)) * names.flatten(1).any(dim=1)[:, None]
        self.known: dict[float, Categories] = {}  # the choice of settings asks for the same ones again
        self.num_steps = 0

    def train_towers(self, options: AlignOptions, seed: int, held_out: Unseen | None = None, steps: int = 0) -> None:
        """Trains the towers, where at least two listings have words and a picture; keeps their best step on held-out
        listings (None: the last of `steps`)."""
        if (self.words.present & self.picture.present).sum() < 2:
            return
        torch.manual_seed(seed)
        towers = nn.ModuleList(make_tower(part.x.shape[-1], self.shared_width, options.dropout) for part in self.parts)
        trainer = TowerTrainer(towers, self, options, seed)
        self.num_steps = trainer.run(held_out, steps or options.steps)
        self.towers = towers.eval()

    @property
    def parts(self) -> tuple[Inputs, Inputs]:
        return self.words, self.picture

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


class Inputs:
    """One modality of N listings and their views, centred and of unit norm, and the scatter within listings.

    x: (N, 1 + K, F) float32; present: (N,) bool; rows of what is not there are zeros.
    """

    def __init__(self, x: Tensor, present: npt.NDArray[np.bool_], labels: Labels) -> None:
        self.present, there = present, torch.from_numpy(present)
        self.mean = x[there, 0].mean(0) if present.any() else torch.zeros(x.shape[-1])
        self.x = self.centre(x) * there[:, None, None]
        scatter = within_scatter(self.x[there], labels.products[present])
        self.spread, self.axes = torch.linalg.eigh(scatter)
        self.known: dict[float | None, Tensor] = {}  # directions: the choice of settings asks for the same ones again

    def centre(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., F), of unit norm."""
        return F.normalize(x - self.mean, dim=-1)

    def whitening(self, shrinkage: float) -> Tensor:
        """A (F, F) float32, symmetric, at most 1."""
        spread = self.spread.clamp(min=0)
        scale = (spread / spread.mean().clamp(min=1e-12) + shrinkage).rsqrt() * shrinkage**0.5
        return ((self.axes * scale) @ self.axes.T).float()

    def directions(self, shrinkage: float | None) -> Tensor:
        """(k, F): rows of P, the strongest first."""
        if shrinkage not in self.known:
            x = self.x[torch.from_numpy(self.present)].flatten(0, 1)
            A = None if shrinkage is None else self.whitening(shrinkage)
            self.known[shrinkage] = components(x) if A is None else components(F.normalize(x @ A, dim=-1)) @ A
        return self.known[shrinkage]


def within_scatter(x: Tensor, products: npt.NDArray[np.int64]) -> Tensor:
    """(F, F) float64 of trace 1: how views differ from their listing, and listings of one product from each other.

    x: (N, 1 + K, F), view 0 the listing itself; products: (N,). Zeros where nothing differs.
    """
    own = (x[:, 1:] - x[:, :1]).flatten(0, 1)
    _, product, counts = np.unique(products, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[product] > 1)
    scatters = [_scatter(own)]
    if len(shared):
        listings, of = x[torch.from_numpy(shared), 0], torch.from_numpy(product[shared])
        sums = torch.zeros(len(counts), x.shape[2]).index_add_(0, of, listings)
        means = sums / torch.from_numpy(counts).clamp(min=1)[:, None]
        scatters.append(_scatter(listings - means[of]))
    trace = [float(scatter.trace()) for scatter in scatters]
    if len(scatters) == 1 or not trace[1]:
        return scatters[0]
    return (1 - GROUP_SHARE) * scatters[0] + GROUP_SHARE * scatters[1]


def _scatter(differences: Tensor) -> Tensor:
    scatter = torch.zeros(differences.shape[1], differences.shape[1], dtype=torch.float64)
    for block in torch.split(differences, 4096):
        scatter += block.double().T @ block.double()
    return scatter / scatter.trace().clamp(min=1e-12)


def make_tower(width: int, width_out: int, dropout: float) -> nn.Sequential:
    """Two layers with GELU between them; dropout before each while training."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, TOWER_WIDTH),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(TOWER_WIDTH, width_out),
    )


def copy_tower(part: Part, tower: nn.Module, dimensions: Tensor) -> None:
    """Puts a tower into a head; its outputs go to `dimensions` of the vector."""
    (first, last), (into, out) = linear_layers(tower), linear_layers(part.tower)
    into.weight.copy_(first.weight)
    into.bias.copy_(first.bias)
    out.weight[dimensions] = last.weight
    out.bias[dimensions] = last.bias


def linear_layers(tower: nn.Module) -> list[nn.Linear]:
    """The two of a tower, in order."""
    return [layer for layer in tower.modules() if isinstance(layer, nn.Linear)]


class TowerTrainer:
    """Trains two towers on one set of listings."""

    def __init__(self, towers: nn.ModuleList, fit: Fit, options: AlignOptions, seed: int) -> None:
        self.towers, self.fit, self.options = towers, fit, options
        self.rng = np.random.default_rng([seed, 1])
        self.optimiser = torch.optim.AdamW(towers.parameters(), lr=options.lr, weight_decay=options.weight_decay)

    def run(self, held_out: Unseen | None, steps: int) -> int:
        """Returns the number of steps after which the towers were best on held-out listings, and leaves them there."""
        best, best_step, best_state = 0.0, 0, None
        if held_out is not None and not len(held_out.rows):
            held_out = None
        progress = Progress("towers", steps, "steps")
        for step in range(steps):
            for group in self.optimiser.param_groups:
                group["lr"] = self.options.lr * min(1.0, (step + 1) / 20) * (1 - step / self.options.steps)
            self.towers.train()
            loss = self.loss(self.draw_rows())
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            progress.update(1, f"loss {loss.item():.3f}")
            if held_out is not None and ((step + 1) % VALIDATE_EVERY == 0 or step + 1 == steps):
                value = self.validate(held_out)
                if value > best:
                    best, best_step, best_state = value, step + 1, copy.deepcopy(self.towers.state_dict())
                elif step + 1 - best_step >= PATIENCE:
                    break
        progress.close()
        if best_state is None:
            return steps
        self.towers.load_state_dict(best_state)
        return best_step

    def draw_rows(self) -> npt.NDArray[np.int64]:
        """Half of a batch at random, half hard negatives: other listings of the same categories."""
        leaves = self.fit.labels.leaves
        N, B = len(leaves), min(self.options.batch_size, len(leaves))
        chosen = self.rng.permutation(N)[: B // 2]
        keys = self.rng.random(N) + np.isin(leaves, self.rng.permutation(leaves[chosen])[: B // 4])
        keys[chosen] = -1
        return np.concatenate([chosen, np.argsort(-keys)[: B - len(chosen)]])

    @torch.no_grad()
    def validate(self, held_out: Unseen) -> float:
        """How well held-out words find their picture and back: the mean reciprocal rank."""
        self.towers.eval()
        rows = torch.from_numpy(held_out.rows)
        seen = join_fields(held_out.pooled.words[rows, 0], TITLE_WEIGHT), held_out.pooled.picture[rows, 0]
        w, p = (
            F.normalize(tower(part.centre(x)), dim=-1).numpy()
            for tower, part, x in zip(self.towers, self.fit.parts, seen, strict=True)
        )
        products = held_out.products[held_out.rows].astype(str).tolist()
        ranks = [same_product(*pair, query_products=products, base_products=products) for pair in ((w, p), (p, w))]
        return float(np.mean([found.reciprocal_rank for found in ranks]))

    def loss(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """InfoNCE between the words and the pictures of those listings that have both."""
        fit = self.fit
        rows = rows[fit.words.present[rows] & fit.picture.present[rows]]
        if len(rows) < 2:
            return torch.zeros((), requires_grad=True)  # nothing to learn from
        taken, views = torch.from_numpy(rows), self.draw_views(len(rows))
        w, p = (
            F.normalize(tower(part.x[taken, views]), dim=-1) for tower, part in zip(self.towers, fit.parts, strict=True)
        )
        return info_nce(w, p, SCALE, self.indistinct(fit, rows))

    def draw_views(self, count: int) -> Tensor:
        """(count,): which view of each listing the step sees, often the listing itself."""
        views = self.rng.integers(self.fit.words.x.shape[1], size=count)
        return torch.from_numpy(views * (self.rng.random(count) >= UNCHANGED))

    @staticmethod
    def indistinct(fit: Fit, rows: npt.NDArray[np.int64]) -> Tensor:
        """(B, B) bool: pairs of one product or with the same words, which no search could tell apart."""
        products = torch.from_numpy(fit.labels.products[rows])
        words = fit.words.x[torch.from_numpy(rows), 0]
        return (products[:, None] == products) | (words @ words.T > 1 - 1e-5)
