"""Two towers: networks in which the words and the picture of a listing meet.

Two pairs side by side make them: the linear maps of a regularised canonical correlation analysis, in closed form, and
networks trained by InfoNCE. The former know more of a few hundred listings, the latter of thousands, and both together
more than either; held-out listings choose the shares.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.evaluation.retrieval import same_product
from item.model.contrast import info_nce
from item.model.vector import TOWER_WIDTH, components, join_fields
from item.progress import Progress
from training.categories import UNCHANGED
from training.config import AlignOptions
from training.inputs import TITLE_WEIGHT, Parts, Unseen, second_moment
from training.labels import Labels

SCALE = 20.0  # of InfoNCE's cosines; a larger one draws them together, and the categories drown them
SHRINKAGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the canonical correlations, in mean eigenvalues
TRAINED_WIDTH = 512  # hidden units of a tower that are trained; the rest hold the linear maps
LINEAR = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the linear maps
VALIDATE_EVERY = 20  # steps
PATIENCE = 200  # steps without a better one, then training ends


class Recipe(NamedTuple):
    """What held-out listings chose: lambda of the linear maps and their share in the cosine, and the steps of training
    of the others."""

    shrinkage: float = 1.0
    linear: float = 1.0
    steps: int = 0

    @classmethod
    def of_folds(cls, recipes: Sequence[Recipe]) -> Recipe:
        """For a training without held-out listings: the medians."""
        shrinkage, linear, steps = (float(np.median(values)) for values in zip(*recipes, strict=True))
        return cls(shrinkage, linear, round(steps))


def train_towers(
    parts: Parts,
    labels: Labels,
    width: int,
    options: AlignOptions,
    seed: int,
    held_out: Unseen | None = None,
    recipe: Recipe | None = None,
) -> tuple[nn.ModuleList, Recipe]:
    """The towers of words and picture, with `width` outputs; at least two listings have words and a picture.

    Args:
        held_out: choose the recipe, where any of them has words and a picture.
        recipe: taken where they don't; None: the closed form alone.
    """
    torch.manual_seed(seed)
    canonical, num_linear = Canonical(parts), min(width, (TOWER_WIDTH - TRAINED_WIDTH) // 2)

    def linear_pair(shrinkage: float) -> nn.ModuleList:
        return nn.ModuleList(linear_tower(one, width) for one in canonical.directions(shrinkage, num_linear))

    trained = nn.ModuleList(make_tower(part.x.shape[-1], TRAINED_WIDTH, width, options.dropout) for part in parts)
    trainer = TowerTrainer(trained, parts, labels, options, seed)
    if held_out is None or not len(held_out.rows):
        recipe = recipe or Recipe()
        trainer.run(recipe.steps)
        pairs = [linear_pair(recipe.shrinkage), trained]
        return side_by_side(pairs, parts, [recipe.linear, 1 - recipe.linear]), recipe

    def quality(pair: nn.ModuleList) -> float:
        return reciprocal_rank(pair, parts, held_out)

    steps = trainer.run_to_best(held_out, options.steps)
    linear_pairs = {shrinkage: linear_pair(shrinkage) for shrinkage in SHRINKAGES}
    shrinkage = max(linear_pairs, key=lambda one: quality(linear_pairs[one]))
    pairs = [linear_pairs[shrinkage], trained]
    merged = {share: side_by_side(pairs, parts, [share, 1 - share]) for share in (LINEAR if steps else (1.0,))}
    linear = max(merged, key=lambda share: quality(merged[share]))
    return merged[linear], Recipe(shrinkage, linear, steps)


@torch.no_grad()
def side_by_side(pairs: Sequence[nn.ModuleList], parts: Parts, shares: Sequence[float]) -> nn.ModuleList:
    """Several pairs of towers as one: their hidden units side by side, and the principal directions of their outputs.

    shares: of the cosine, of each pair: over the listings that have words and a picture, its outputs get that norm.
    """
    seen = [part.x[torch.from_numpy(parts.paired), 0] for part in parts]
    outputs = [[pair[i](x) for pair in pairs] for i, x in enumerate(seen)]
    scales = [
        [share**0.5 / x.norm(dim=1).mean().clamp(min=1e-12) for x, share in zip(of_part, shares, strict=True)]
        for of_part in outputs
    ]
    joined = [
        torch.cat([x * scale for x, scale in zip(*one, strict=True)], dim=1)
        for one in zip(outputs, scales, strict=True)
    ]
    width = outputs[0][0].shape[1]
    directions = components(torch.cat([F.normalize(x, dim=1) for x in joined]))[:width]
    directions = F.pad(directions, (0, 0, 0, width - len(directions)))  # there are few of very few listings
    merged = nn.ModuleList()
    for i, x in enumerate(seen):
        first, last = zip(*(linear_layers(pair[i]) for pair in pairs), strict=True)
        turns = [turn * scale for turn, scale in zip(torch.split(directions, width, dim=1), scales[i], strict=True)]
        tower = make_tower(x.shape[1], TOWER_WIDTH, width, 0.0)
        for parameter in tower.parameters():
            parameter.zero_()  # units that no pair has say nothing
        into, out = linear_layers(tower)
        hidden = sum(layer.out_features for layer in first)
        into.weight[:hidden] = torch.cat([layer.weight for layer in first])
        into.bias[:hidden] = torch.cat([layer.bias for layer in first])
        out.weight[:, :hidden] = torch.cat([turn @ one.weight for turn, one in zip(turns, last, strict=True)], dim=1)
        out.bias.copy_(torch.cat(turns, dim=1) @ torch.cat([layer.bias for layer in last]))
        merged.append(tower)
    return merged.eval()


@torch.no_grad()
def reciprocal_rank(towers: nn.ModuleList, parts: Parts, held_out: Unseen) -> float:
    """How well held-out words find their picture and back: the mean reciprocal rank."""
    rows = torch.from_numpy(held_out.rows)
    seen = join_fields(held_out.pooled.words[rows, 0], TITLE_WEIGHT), held_out.pooled.picture[rows, 0]
    w, p = (
        F.normalize(tower(part.centre(x)), dim=-1).numpy() for tower, part, x in zip(towers, parts, seen, strict=True)
    )
    products = held_out.products[held_out.rows].astype(str).tolist()
    ranks = [same_product(*pair, query_products=products, base_products=products) for pair in ((w, p), (p, w))]
    return float(np.mean([found.reciprocal_rank for found in ranks]))


class Canonical:
    """Regularised canonical correlations of the words and the pictures of those listings that have both.

        A, B = U S, V S of (C_w + lambda I)^(-1/2) C_wp (C_p + lambda I)^(-1/2) = U S V^T, each times its whitening

    with lambda in mean eigenvalues. C_w and C_p are of all views; C_wp is of the means of a listing's views, because
    any view of the words belongs to any view of the picture. Vinod 1976, doi:10.1016/0304-4076(76)90010-5; directions
    weighted by their correlation as in Gong et al. 2014, arXiv:1212.4522.
    """

    def __init__(self, parts: Parts) -> None:
        paired = torch.from_numpy(parts.paired)
        self.spectra = [torch.linalg.eigh(second_moment(part.x[paired].flatten(0, 1))) for part in parts]
        words, picture = (
            part.x[paired].mean(1).double() @ axes for part, (_, axes) in zip(parts, self.spectra, strict=True)
        )
        self.across = words.T @ picture / len(words)

    def directions(self, shrinkage: float, width: int) -> list[Tensor]:
        """(k, F) float32 of words and of picture, the strongest `width` where there are so many."""
        scales = [
            (spread.clamp(min=0) + shrinkage * spread.mean().clamp(min=1e-12)).rsqrt() for spread, _ in self.spectra
        ]
        U, S, Vh = torch.linalg.svd(scales[0][:, None] * self.across * scales[1], full_matrices=False)
        return [
            ((axes * scale) @ side * S).T[:width].float()
            for (_, axes), scale, side in zip(self.spectra, scales, (U, Vh.T), strict=True)
        ]


@torch.no_grad()
def linear_tower(directions: Tensor, width_out: int) -> nn.Sequential:
    """(k, F) -> a tower that computes directions @ x, exactly, by 2k hidden units: gelu(z) - gelu(-z) = z."""
    k, width = directions.shape
    tower, one = make_tower(width, 2 * k, width_out, 0.0), torch.eye(width_out, k)
    into, out = linear_layers(tower)
    into.weight.copy_(torch.cat([directions, -directions]))
    out.weight.copy_(torch.cat([one, -one], dim=1))
    into.bias.zero_()
    out.bias.zero_()
    return tower


def make_tower(width: int, hidden: int, width_out: int, dropout: float) -> nn.Sequential:
    """Two layers with GELU between them; dropout before each while training."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, width_out),
    )


def linear_layers(tower: nn.Module) -> list[nn.Linear]:
    """The two of a tower, in order."""
    return [layer for layer in tower.modules() if isinstance(layer, nn.Linear)]


class TowerTrainer:
    """Trains one pair of towers on one set of listings."""

    def __init__(self, towers: nn.ModuleList, parts: Parts, labels: Labels, options: AlignOptions, seed: int) -> None:
        self.towers, self.parts, self.labels, self.options = towers, parts, labels, options
        self.rng = np.random.default_rng([seed, 1])
        self.optimiser = torch.optim.AdamW(towers.parameters(), lr=options.lr, weight_decay=options.weight_decay)

    def run(self, steps: int) -> None:
        """So many steps."""
        progress = Progress("towers", steps, "steps")
        for step in range(steps):
            progress.update(1, f"loss {self.step(step):.3f}")
        progress.close()
        self.towers.eval()

    def run_to_best(self, held_out: Unseen, steps: int) -> int:
        """Returns the number of steps, at most `steps`, after which the towers are best on held-out listings, and
        leaves them there."""
        best, best_step, best_state = 0.0, 0, copy.deepcopy(self.towers.state_dict())
        progress = Progress("towers", steps, "steps")
        for step in range(steps):
            progress.update(1, f"loss {self.step(step):.3f}")
            if (step + 1) % VALIDATE_EVERY == 0 or step + 1 == steps:
                value = reciprocal_rank(self.towers.eval(), self.parts, held_out)
                if value > best:
                    best, best_step, best_state = value, step + 1, copy.deepcopy(self.towers.state_dict())
                elif step + 1 - best_step >= PATIENCE:
                    break
        progress.close()
        self.towers.load_state_dict(best_state)
        self.towers.eval()
        return best_step

    def step(self, step: int) -> float:
        """One of the optimiser, and the loss before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.lr * min(1.0, (step + 1) / 20) * (1 - step / self.options.steps)
        self.towers.train()
        loss = self.loss(self.draw_rows())
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.item()

    def draw_rows(self) -> npt.NDArray[np.int64]:
        """Half of a batch at random, half hard negatives: other listings of the same categories."""
        leaves = self.labels.leaves
        N, B = len(leaves), min(self.options.batch_size, len(leaves))
        chosen = self.rng.permutation(N)[: B // 2]
        keys = self.rng.random(N) + np.isin(leaves, self.rng.permutation(leaves[chosen])[: B // 4])
        keys[chosen] = -1
        return np.concatenate([chosen, np.argsort(-keys)[: B - len(chosen)]])

    def loss(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """InfoNCE between the words and the pictures of those listings that have both."""
        rows = rows[self.parts.paired[rows]]
        if len(rows) < 2:
            return torch.zeros((), requires_grad=True)  # nothing to learn from
        taken, views = torch.from_numpy(rows), self.draw_views(len(rows))
        w, p = (
            F.normalize(tower(part.x[taken, views]), dim=-1)
            for tower, part in zip(self.towers, self.parts, strict=True)
        )
        return info_nce(w, p, SCALE, self.indistinct(rows))

    def draw_views(self, count: int) -> Tensor:
        """(count,): which view of each listing the step sees, often the listing itself."""
        views = self.rng.integers(self.parts.words.x.shape[1], size=count)
        return torch.from_numpy(views * (self.rng.random(count) >= UNCHANGED))

    def indistinct(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """(B, B) bool: pairs of one product or with the same words, which no search could tell apart."""
        products = torch.from_numpy(self.labels.products[rows])
        words = self.parts.words.x[torch.from_numpy(rows), 0]
        return (products[:, None] == products) | (words @ words.T > 1 - 1e-5)
