"""Learns which categories words and pictures speak for: a multinomial regression for each level of the tree.

    z   = C_w x_w + C_p x_p + b                                   by one modality alone the other adds nothing
    min   sum_listings mean_{views, words | picture | both} sum_levels CE(z_level, category) + |C|^2 / (2 PRIOR)

Convex, so that no seed decides and nothing is held out to stop at; L-BFGS ends at the minimum in small catalogues and
after `STEPS` in large ones. A listing's words alone and its picture alone are learned from as well as both together:
each must know how much it knows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from item.progress import Progress
from training.labels import UNKNOWN, Labels

PRIOR = 300.0  # variance of the weights that is expected before anything is seen
STEPS = 60  # of L-BFGS, about as many at most
VIEWS = 20_000  # about so many are learned from, the listings as they are among them


class CategoryWeights(NamedTuple):
    """words: (C, F_w), picture: (C, F_p), bias: (C,): z = words x_w + picture x_p + bias."""

    words: Tensor
    picture: Tensor
    bias: Tensor


def fit_categories(words: Tensor, picture: Tensor, labels: Labels) -> CategoryWeights:
    """Fits the weights on N listings in 1 + K views.

    Args:
        words, picture: (N, 1 + K, F), centred and of unit norm; zeros where a listing has none.
    """
    learned = torch.from_numpy((labels.categories != UNKNOWN).any(axis=1))
    categories = torch.from_numpy(labels.categories)[learned]
    views = max(1, VIEWS // max(1, len(categories)))
    words, picture = words[learned, :views], picture[learned, :views]
    has_words, has_picture = (part[:, 0].any(dim=1) for part in (words, picture))
    patterns = [(1, 0, has_words), (0, 1, has_picture), (1, 1, has_words & has_picture)]
    readings = torch.stack([there for _, _, there in patterns]).sum(0).clamp(min=1) * words.shape[1]
    C = sum(labels.levels)
    weights = CategoryWeights(*(torch.zeros(C, *shape) for shape in ((words.shape[2],), (picture.shape[2],), ())))
    for tensor in weights:
        tensor.requires_grad_()
    optimiser = torch.optim.LBFGS(weights, max_iter=STEPS, max_eval=STEPS, line_search_fn="strong_wolfe")
    progress = Progress("categories", STEPS, "steps")

    def loss() -> Tensor:
        optimiser.zero_grad()
        by_words, by_picture = F.linear(words, weights.words), F.linear(picture, weights.picture)
        total = (weights.words.square().sum() + weights.picture.square().sum()) / (2 * PRIOR)
        for w, p, there in patterns:
            z = w * by_words + p * by_picture + weights.bias
            for level, of_level in enumerate(torch.split(z, list(labels.levels), dim=-1)):
                expected = categories[:, level, None].expand(-1, z.shape[1])
                errors = F.cross_entropy(of_level.transpose(1, 2), expected, ignore_index=UNKNOWN, reduction="none")
                total = total + (errors * (there / readings)[:, None]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        progress.update(1, f"loss {total.item() / max(1, len(categories)):.3f}")
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    progress.close()
    return CategoryWeights(*(tensor.detach() for tensor in weights))
