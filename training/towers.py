"""Two towers: networks in which the words and the picture of a listing meet.

They begin as the linear maps of a regularised canonical correlation analysis, in closed form, and are trained by
InfoNCE as long as held-out listings gain from it: hardly at all where there are a few hundred listings, long where
there are thousands.
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
from item.model.vector import TOWER_WIDTH, join_fields
from item.progress import Progress
from training.categories import UNCHANGED
from training.config import AlignOptions
from training.inputs import TITLE_WEIGHT, Parts, Unseen, second_moment
from training.labels import Labels

SCALE = 20.0  # of InfoNCE's cosines; a larger one draws them together, and the categories drown them
SHRINKAGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the canonical correlations, in mean eigenvalues
VALIDATE_EVERY = 20  # steps
PATIENCE = 200  # steps without a better one, then training ends


class Recipe(NamedTuple):
    """What held-out listings chose: lambda of the beginning, and how many steps of training follow it."""

    shrinkage: float = 1.0
    steps: int = 0

    @classmethod
    def of_folds(cls, recipes: Sequence[Recipe]) -> Recipe:
        """For a training without held-out listings: the medians."""
        shrinkage = np.exp(np.median(np.log([one.shrinkage for one in recipes])))
        return cls(float(shrinkage), round(float(np.median([one.steps for one in recipes]))))


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
    asked = held_out if held_out is not None and len(held_out.rows) else None
    canonical, recipe = Canonical(parts), recipe or Recipe()

    def begin(shrinkage: float) -> TowerTrainer:
        torch.manual_seed(seed)
        directions = canonical.directions(shrinkage, min(width, TOWER_WIDTH // 2))
        pair = nn.ModuleList(linear_tower(one, width, options.dropout) for one in directions)
        return TowerTrainer(pair, parts, labels, options, seed)

    if asked is None:
        trainer = begin(recipe.shrinkage)
        trainer.run(recipe.steps)
    else:
        shrinkage = max(SHRINKAGES, key=lambda one: begin(one).validate(asked))
        trainer = begin(shrinkage)
        recipe = Recipe(shrinkage, trainer.run_to_best(asked, options.steps))
    return trainer.towers, recipe


class Canonical:
    """Regularised canonical correlations of the words and the pictures of those listings that have both.

        A, B = U S, V S of (C_w + lambda I)^(-1/2) C_wp (C_p + lambda I)^(-1/2) = U S V^T, each times its whitening

    with lambda in mean eigenvalues. C_w and C_p are of all views; C_wp is of the means of a listing's views, because
    any view of the words belongs to any view of the picture. Vinod 1976, doi:10.1016/0304-4076(76)90010-5; directions
    weighted by their correlation as in Gong et al. 2014, arXiv:1212.4522.
    """

    def __init__(self, parts: Parts) -> None:
        paired = torch.from_numpy(parts.paired)
        self.seen = [part.x[paired, 0] for part in parts]
        self.spectra = [torch.linalg.eigh(second_moment(part.x[paired].flatten(0, 1))) for part in parts]
        words, picture = (
            part.x[paired].mean(1).double() @ axes for part, (_, axes) in zip(parts, self.spectra, strict=True)
        )
        self.across = words.T @ picture / len(words)

    def directions(self, shrinkage: float, width: int) -> list[Tensor]:
        """(k, F) float32 of words and of picture, the strongest `width` where there are so many, and so long that what
        they give has a mean norm of 1."""
        scales = [(spread.clamp(min=0) + shrinkage * spread.mean()).rsqrt() for spread, _ in self.spectra]
        U, S, Vh = torch.linalg.svd(scales[0][:, None] * self.across * scales[1], full_matrices=False)
        found = []
        for x, (_, axes), scale, side in zip(self.seen, self.spectra, scales, (U, Vh.T), strict=True):
            directions = ((axes * scale) @ side * S).T[:width].float()
            found.append(directions / (x @ directions.T).norm(dim=1).mean().clamp(min=1e-12))
        return found


@torch.no_grad()
def linear_tower(directions: Tensor, width_out: int, dropout: float) -> nn.Sequential:
    """A tower that begins as a linear map, exactly: gelu(z) - gelu(-z) = z. Its other hidden units say nothing yet.

    directions: (k, F), at most `width_out` and half of the hidden units.
    """
    k, width = directions.shape
    tower = make_tower(width, width_out, dropout)
    into, out = linear_layers(tower)
    into.weight[: 2 * k] = torch.cat([directions, -directions])
    into.bias[: 2 * k] = 0
    for parameter in out.parameters():
        parameter.zero_()
    out.weight[:k, : 2 * k] = torch.cat([torch.eye(k), -torch.eye(k)], dim=1)
    return tower


def make_tower(width: int, width_out: int, dropout: float) -> nn.Sequential:
    """Two layers with GELU between them; dropout before each while training."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, TOWER_WIDTH),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(TOWER_WIDTH, width_out),
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
        leaves them there: none, where training does not help."""
        best, best_step, best_state = self.validate(held_out), 0, copy.deepcopy(self.towers.state_dict())
        progress = Progress("towers", steps, "steps")
        for step in range(steps):
            progress.update(1, f"loss {self.step(step):.3f}")
            if (step + 1) % VALIDATE_EVERY == 0 or step + 1 == steps:
                value = self.validate(held_out)
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

    @torch.no_grad()
    def validate(self, held_out: Unseen) -> float:
        """How well held-out words find their picture and back: the mean reciprocal rank."""
        self.towers.eval()
        rows = torch.from_numpy(held_out.rows)
        seen = join_fields(held_out.pooled.words[rows, 0], TITLE_WEIGHT), held_out.pooled.picture[rows, 0]
        w, p = (
            F.normalize(tower(part.centre(x)), dim=-1).numpy()
            for tower, part, x in zip(self.towers, self.parts, seen, strict=True)
        )
        products = held_out.products[held_out.rows].astype(str).tolist()
        ranks = [same_product(*pair, query_products=products, base_products=products) for pair in ((w, p), (p, w))]
        return float(np.mean([found.reciprocal_rank for found in ranks]))

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
