"""Two towers: networks in which the words and the picture of a listing meet, trained by InfoNCE between them.

A catalogue is small enough to be overfitted, so several narrow pairs are trained apart and put side by side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

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
from training.inputs import TITLE_WEIGHT, Parts, Unseen
from training.labels import Labels

SCALE = 20.0  # of InfoNCE's cosines; a larger one draws them together, and the categories drown them
NUM_TOWERS = 4  # of either modality, trained apart; together they have the head's hidden units
VALIDATE_EVERY = 20  # steps
PATIENCE = 200  # steps without a better one, then training ends


def train_towers(
    parts: Parts, labels: Labels, width: int, options: AlignOptions, seed: int, held_out: Unseen | None, steps: int
) -> tuple[nn.ModuleList, int]:
    """At most `steps` steps, on listings of which at least two have words and a picture.

    Returns:
        The towers of words and picture, with `width` outputs, and the mean number of steps that the pairs took, each to
        its best one on the held-out listings (None: the last).
    """
    trained, num_steps = list[nn.ModuleList](), list[int]()
    for seed_of_pair in range(NUM_TOWERS * seed, NUM_TOWERS * (seed + 1)):
        torch.manual_seed(seed_of_pair)
        pair = nn.ModuleList(
            make_tower(part.x.shape[-1], TOWER_WIDTH // NUM_TOWERS, width, options.dropout) for part in parts
        )
        trainer = TowerTrainer(pair, parts, labels, options, seed_of_pair)
        num_steps.append(trainer.run(held_out, steps))
        trained.append(pair.eval())
    return side_by_side(trained, parts, width), round(sum(num_steps) / NUM_TOWERS)


@torch.no_grad()
def side_by_side(trained: Sequence[nn.ModuleList], parts: Parts, width: int) -> nn.ModuleList:
    """Several pairs of towers as one: their hidden units side by side, and of their outputs, each over its mean norm,
    the `width` principal directions over the listings that have words and a picture."""
    seen = [part.x[torch.from_numpy(parts.paired), 0] for part in parts]
    outputs = [[pair[i](x) for pair in trained] for i, x in enumerate(seen)]
    norms = [[output.norm(dim=1).mean().clamp(min=1e-12) for output in of_part] for of_part in outputs]
    joined = [
        torch.cat([x / norm for x, norm in zip(*one, strict=True)], dim=1) for one in zip(outputs, norms, strict=True)
    ]
    directions = components(torch.cat([F.normalize(x, dim=1) for x in joined]))[:width]
    directions = F.pad(directions, (0, 0, 0, width - len(directions)))  # there are few of very few listings
    merged = nn.ModuleList()
    for i, x in enumerate(seen):
        first, last = zip(*(linear_layers(pair[i]) for pair in trained), strict=True)
        tower = make_tower(x.shape[1], sum(layer.out_features for layer in first), width, 0.0)
        into, out = linear_layers(tower)
        into.weight.copy_(torch.cat([layer.weight for layer in first]))
        into.bias.copy_(torch.cat([layer.bias for layer in first]))
        turns = [turn / norm for turn, norm in zip(torch.split(directions, width, dim=1), norms[i], strict=True)]
        out.weight.copy_(torch.cat([turn @ layer.weight for turn, layer in zip(turns, last, strict=True)], dim=1))
        out.bias.copy_(torch.cat(turns, dim=1) @ torch.cat([layer.bias for layer in last]))
        merged.append(tower)
    return merged.eval()


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
