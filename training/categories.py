"""Learns which categories words and pictures speak for: multinomial regressions on what the vector head reads.

    z   = C_w x_w + C_p x_p + b                                   by one modality alone the other adds nothing
    min   sum_listings sum_{words | picture | both} SHARES mean_views sum_levels CE(z_level + frequency, category)
          + (|C_w - N|^2 + |C_p|^2) / (2 PRIOR)

Convex, so that no seed decides and nothing is held out to stop at; L-BFGS ends at the minimum where there is little to
learn from, else after so many steps. The vector's categories have a regression for each level of the tree
(`fit_categories`), heads one for their paths (`training.adapting`).

A listing is learned from by its words alone, by its picture alone and by both: each must know how much it knows. By
both counts most and by picture least (`SHARES`): were they equal, words and picture would each be learned to be right
alone, and what both say would count twice where both are there.

What a category is called is known before any listing is seen: N, the words' weights that are expected, is what the
words of its name say (0: nothing is expected). The fewer listings a category has, the more of its name is left.

Categories have from two listings to thousands. The loss is adjusted for that (arXiv 2007.07314, eq. 10, with half its
weight): in training each logit gets `ADJUSTED` times the logarithm of its category's listings, so that what is served,
which gets nothing, does not lean on what is frequent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from item.progress import Progress
from training.labels import UNKNOWN, Labels

PRIOR = 300.0  # variance of the weights that is expected before anything is seen
SHARES = (0.4, 0.1, 0.5)  # of a listing with both, by its readings: `item.adapters.head.PATTERNS`
ADJUSTED = 0.5  # for the numbers of listings: 0 takes them as they are, 1 as if all categories had as many
UNCHANGED = 0.5  # of a listing is learned from as it is, the rest from its views
STEPS = 60  # of L-BFGS, about as many at most
VIEWS = 20_000  # about so many are learned from, the listings as they are among them


class CategoryWeights(NamedTuple):
    """words: (C, F_w), picture: (C, F_p), bias: (C,): z = words x_w + picture x_p + bias."""

    words: Tensor
    picture: Tensor
    bias: Tensor


def fit_categories(words: Tensor, picture: Tensor, labels: Labels, expected: Tensor | None = None) -> CategoryWeights:
    """Fits a regression for each level of the tree on N listings in 1 + K views, some of them where there are many.

    Args:
        words, picture: (N, 1 + K, F), centred and of unit norm; zeros where a listing has none.
        expected: (C, F_w), N above; None: zeros.
    """
    there = words[:, 0].any(dim=1) | picture[:, 0].any(dim=1)
    learned = np.flatnonzero((labels.categories != UNKNOWN).any(axis=1) & there.numpy())
    views, rows = max(1, VIEWS // max(1, len(learned))), torch.from_numpy(learned)
    return fit_regressions(
        words[rows, :views],
        picture[rows, :views],
        labels.categories[learned],
        labels.levels,
        STEPS,
        expected=expected,
        name="categories",
    )


def fit_regressions(
    words: Tensor,
    picture: Tensor,
    categories: npt.NDArray[np.int64],
    levels: tuple[int, ...],
    steps: int,
    *,
    known: CategoryWeights | None = None,
    expected: Tensor | None = None,
    scale: float = 1.0,
    name: str | None = None,
) -> CategoryWeights:
    """The weights of sum(levels) categories.

    Args:
        words, picture: (N, 1 + K, F), centred and of unit norm; zeros where a listing has none.
        categories: (N, L), of each level the listing's category, or `UNKNOWN`. levels: how many each level has.
        steps: of L-BFGS, about as many at most.
        known: weights of the first categories, which stay as they are, bit for bit; only the others are learned.
        expected: (C, F_w) of those that are learned: their words' weights before anything is seen; None: zeros.
        scale: of all logits.
        name: shown with the progress.
    """
    targets = torch.from_numpy(categories)
    frequency = torch.cat([frequency_of(level, count) for level, count in zip(categories.T, levels, strict=True)])
    shares = reading_shares(words[:, 0].any(dim=1), picture[:, 0].any(dim=1))[..., None] * view_shares(words.shape[1])
    fixed = known or CategoryWeights(
        words.new_zeros(0, words.shape[2]), words.new_zeros(0, picture.shape[2]), words.new_zeros(0)
    )
    C = sum(levels) - len(fixed.bias)
    start = CategoryWeights(*(torch.zeros(C, *one.shape[1:]) for one in fixed))
    if expected is not None:
        start = start._replace(words=expected)
    learned = [one.clone().requires_grad_() for one in start]
    optimiser = torch.optim.LBFGS(learned, max_iter=steps, max_eval=steps, line_search_fn="strong_wolfe")
    progress = None if name is None else Progress(name, steps, "steps")

    def loss() -> Tensor:
        optimiser.zero_grad()
        into_words, into_picture, bias = (torch.cat(both) for both in zip(fixed, learned, strict=True))
        by_words, by_picture = F.linear(words, into_words), F.linear(picture, into_picture)
        away = (learned[0] - start.words).square().sum() + learned[1].square().sum()
        total = away / (2 * PRIOR)
        for said, share in zip((by_words, by_picture, by_words + by_picture), shares, strict=True):
            z = (said + bias) * scale + frequency
            for level, of_level in enumerate(torch.split(z, list(levels), dim=-1)):
                expected = targets[:, level, None].expand(-1, z.shape[1])
                errors = F.cross_entropy(of_level.transpose(1, 2), expected, ignore_index=UNKNOWN, reduction="none")
                total = total + (errors * share).sum()
        total.backward()  # type: ignore[no-untyped-call]
        if progress is not None:
            progress.update(1, f"loss {total.item() / max(1, len(targets)):.3f}")
        return total

    if C and len(targets) and sum(levels) > len(levels):
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    if progress is not None:
        progress.close()
    return CategoryWeights(*(torch.cat([one, new.detach()]) for one, new in zip(fixed, learned, strict=True)))


def frequency_of(categories: npt.NDArray[np.int64], count: int) -> Tensor:
    """(C,): what the logits get in training, of N listings' categories; one without listings as one with one."""
    listings = np.bincount(categories[categories != UNKNOWN], minlength=count).clip(min=1)
    return torch.from_numpy(ADJUSTED * np.log(listings)).float()


def reading_shares(has_words: Tensor, has_picture: Tensor) -> Tensor:
    """(3, N): how much each of `PATTERNS` counts, so that all readings of a listing count as one."""
    has_both = has_words & has_picture
    alone = [has_words & ~has_both, has_picture & ~has_both, has_both & ~has_both]
    return torch.stack([one + has_both * share for one, share in zip(alone, SHARES, strict=True)])


def view_shares(count: int) -> Tensor:
    """(1 + K,), of sum 1: how much the listing as it is counts, and each of its views."""
    shares = torch.full((count,), (1 - UNCHANGED) / max(1, count - 1))
    shares[0] = UNCHANGED if count > 1 else 1.0
    return shares
