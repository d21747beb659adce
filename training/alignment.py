"""Fits the vector head on views of a catalogue's listings: what differs between views is not the product.

    S      = mean (x_view - x_i)(x_view - x_i)^T, the scatter within listings (and within groups of one product)
    A      = (S / mean eigenvalue + lambda I)^(-1/2)          lambda: how much of the starting space is kept
    own    : P = principal directions of unit(A x), times A    closed form, nothing to overfit
    towers : two-layer networks on x, by InfoNCE between the words and the picture of a listing, and by supervised
             contrast of the categories over words, picture and both

The own subspaces keep what the starting weights knew (A is linear and close to the identity where views say nothing),
so a small catalogue cannot make the vector forget; the towers learn freely, in dimensions of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.evaluation.retrieval import same_product
from item.model.contrast import category_contrast, info_nce
from item.model.vector import TOWER_WIDTH, Part, VectorHead, components, deal, join_fields
from item.progress import Progress
from training.config import AlignOptions
from training.pooled import Pooled, embed

TITLE_WEIGHT = 0.6  # the title's share of the words' cosine
GROUP_SHARE = 0.5  # of the scatter, where listings of one product are known
TEMPERATURE = 0.1  # of the contrast of categories
MAX_SCALE = 50.0  # of InfoNCE's cosines
UNCHANGED = 0.5  # of the listings of a step are seen as they are
VALIDATE_EVERY = 20  # steps


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How much is changed of the starting point.

    words, picture: lambda of either own subspace; None leaves its directions as they started.
    picture_weight: the picture's share of the own subspaces' cosine. shared_weight: the shared subspace's share of the
    whole cosine of two listings that have both.
    """

    words: float | None = 3.0
    picture: float | None = 3.0
    picture_weight: float = 0.5
    shared_weight: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the catalogue says of N listings: categories from the widest level, and the product of each, as numbers.

    levels: (N, L) int64, at each level the path down to it; rows without such a level have numbers of their own.
    products: (N,) int64. grouped: whether some listings share a product.
    """

    levels: npt.NDArray[np.int64]
    products: npt.NDArray[np.int64]

    @property
    def grouped(self) -> bool:
        return len(np.unique(self.products)) < len(self.products)

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> Labels:
        return Labels(levels=self.levels[rows], products=self.products[rows])


def number_labels(categories: Sequence[tuple[str, ...]], products: Sequence[str], options: AlignOptions) -> Labels:
    """Labels of N listings; what the options leave out is numbered as if each listing were alone."""
    own = [("", str(row)) for row in range(len(products))]
    depth = max(map(len, categories), default=0) if options.categories else 0
    levels = [
        [path[: level + 1] if len(path) > level else own[row] for row, path in enumerate(categories)]
        for level in range(depth)
    ]
    columns = [_numbers(level) for level in levels]
    return Labels(
        levels=np.stack(columns, axis=1) if columns else np.zeros((len(products), 0), np.int64),
        products=_numbers(list(products) if options.groups else [name for _, name in own]),
    )


def _numbers(names: Sequence[object]) -> npt.NDArray[np.int64]:
    first: dict[object, int] = {}
    return np.array([first.setdefault(name, len(first)) for name in names], dtype=np.int64)


class Fit:
    """Everything that is learned from N listings; `head` then makes a head of it in any settings."""

    def __init__(self, start: VectorHead, pooled: Pooled, labels: Labels) -> None:
        self.start, self.pooled, self.labels = start, pooled, labels
        self.words = Inputs(join_fields(pooled.words, TITLE_WEIGHT), start_mean(start.words), pooled.has_words, labels)
        self.picture = Inputs(pooled.picture, start.picture.mean, pooled.has_picture, labels)
        self.towers: nn.ModuleList | None = None
        self.num_steps = 0

    def train_towers(self, options: AlignOptions, seed: int, held_out: Fit | None = None, steps: int = 0) -> None:
        """Trains the towers and keeps the best step on held-out listings (None: the last of `steps`)."""
        if (self.words.present & self.picture.present).sum() < 2 and not self.labels.levels.size:
            return
        torch.manual_seed(seed)
        towers = nn.ModuleList(make_tower(part.x.shape[-1], self.shared_width, options.dropout) for part in self.parts)
        trainer = TowerTrainer(towers, self, options, seed)
        self.num_steps = trainer.run(held_out, steps or options.steps)
        self.towers = towers.eval()

    @property
    def parts(self) -> tuple[Inputs, Inputs]:
        return self.words, self.picture

    @property
    def shared_width(self) -> int:
        """How many dimensions of the vector the towers get."""
        width = len(self.start.words.projection)
        return len(deal(width, width, width, width)[2])

    @torch.no_grad()
    def head(self, settings: HeadSettings) -> VectorHead:
        """A vector head in these settings, as `item.model.vector` describes it."""
        head = copy.deepcopy(self.start)
        words, picture = self.words.directions(settings.words), self.picture.directions(settings.picture)
        in_shared = head.set_projections(words, picture, self.shared_width if self.towers is not None else 0)
        head.title_weight.fill_(TITLE_WEIGHT)
        head.words.mean.copy_(self.words.mean)
        if self.towers is not None:
            for part, tower in zip((head.words, head.picture), self.towers, strict=True):
                copy_tower(part, tower, in_shared)
        shared = settings.shared_weight if self.towers is not None else 0.0
        shares = [(1 - shared) * (1 - settings.picture_weight), (1 - shared) * settings.picture_weight, shared]
        head.weights.copy_(torch.tensor(shares).sqrt())
        head.rotate(self.principal_axes(head))
        return head

    def principal_axes(self, head: VectorHead) -> Tensor:
        """(V, V): the axes along which the listings' vectors, by all that they have, differ most, the first most."""
        e = torch.from_numpy(embed(head, self.pooled, "both", 0)).double()
        e = e - e.mean(0)
        return torch.linalg.eigh(e.T @ e).eigenvectors.T.flip(0).float()


def start_mean(part: Part) -> Tensor:
    """The words' mean of the starting point, whose title half (t = 0) is empty: joined fields start uncentred."""
    return torch.zeros_like(part.mean)


class Inputs:
    """One modality of N listings and their views, centred and of unit norm, and the scatter within listings.

    x: (N, 1 + K, F) float32; present: (N,) bool; rows of what is not there are zeros.
    """

    def __init__(self, x: Tensor, mean: Tensor, present: npt.NDArray[np.bool_], labels: Labels) -> None:
        self.mean, self.present = mean, present
        self.x = F.normalize(x - mean, dim=-1) * torch.from_numpy(present)[:, None, None]
        scatter = within_scatter(self.x[torch.from_numpy(present)], labels.products[present])
        self.spread, self.axes = torch.linalg.eigh(scatter)
        self.known: dict[float | None, Tensor] = {}  # directions: the choice of settings asks for the same ones again

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
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.optimiser = torch.optim.AdamW(
            [*towers.parameters(), self.log_scale], lr=options.lr, weight_decay=options.weight_decay
        )

    def run(self, held_out: Fit | None, steps: int) -> int:
        """Returns the number of steps after which the towers were best on held-out listings, and leaves them there."""
        best, best_step, best_state = 0.0, steps, None
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
        progress.close()
        if best_state is not None:
            self.towers.load_state_dict(best_state)
        return best_step

    def draw_rows(self) -> npt.NDArray[np.int64]:
        """Half of a batch at random, half hard negatives: other listings of the same categories."""
        leaves, N = self.fit.labels.levels, len(self.fit.labels.products)
        B = min(self.options.batch_size, N)
        if B == N or not leaves.shape[1]:
            return self.rng.permutation(N)[:B]
        chosen = self.rng.permutation(N)[: B // 2]
        keys = self.rng.random(N) + np.isin(leaves[:, -1], self.rng.permutation(leaves[chosen, -1])[: B // 4])
        keys[chosen] = -1
        return np.concatenate([chosen, np.argsort(-keys)[: B - len(chosen)]])

    @torch.no_grad()
    def validate(self, held_out: Fit) -> float:
        """How well held-out words find their picture and back: the mean reciprocal rank, 0 where nothing has both."""
        self.towers.eval()
        rows = np.flatnonzero(held_out.words.present & held_out.picture.present)
        w, p = (
            F.normalize(tower(part.x[torch.from_numpy(rows), 0]), dim=-1).numpy()
            for tower, part in zip(self.towers, held_out.parts, strict=True)
        )
        products = held_out.labels.products[rows].astype(str).tolist()
        ranks = [same_product(*pair, query_products=products, base_products=products) for pair in ((w, p), (p, w))]
        return float(np.mean([found.reciprocal_rank for found in ranks])) if len(rows) else 0.0

    def loss(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """InfoNCE across modalities, and the contrast of categories over words, picture and both."""
        fit, taken = self.fit, torch.from_numpy(rows)
        words, picture = (part.x[taken, self.draw_views(len(rows))] for part in fit.parts)
        has_words, has_picture = (part.present[rows] for part in fit.parts)
        w, p = (F.normalize(tower(x), dim=-1) for tower, x in zip(self.towers, (words, picture), strict=True))
        paired = np.flatnonzero(has_words & has_picture)
        both, labels = torch.from_numpy(paired), fit.labels[rows]
        loss = torch.zeros((), requires_grad=True)  # a batch may hold nothing to learn from
        if len(paired) > 1:
            scale = self.log_scale.exp().clamp(max=MAX_SCALE)
            loss = info_nce(w[both], p[both], scale, self.indistinct(fit, rows[paired]))
        if labels.levels.shape[1]:
            parts = [np.flatnonzero(has)[::2] for has in (has_words, has_picture, has_words & has_picture)]
            z = torch.cat([x[some] for x, some in zip((w, p, F.normalize(w + p, dim=-1)), parts, strict=True)])
            of = torch.from_numpy(np.concatenate(parts))
            levels = torch.from_numpy(labels.levels)[of]
            loss = loss + category_contrast(z, levels, of[:, None] == of, TEMPERATURE)
        return loss

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
