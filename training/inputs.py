"""What a fit learns from: one modality of the listings and their views, whitened by how the views differ.

S = mean (x_view - x_i)(x_view - x_i)^T, the scatter within listings (and within groups of one product)
A = (S / mean eigenvalue + lambda I)^(-1/2)          lambda: how much of the starting space is kept
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from item.model.vector import components
from training.labels import Labels
from training.pooled import Pooled

TITLE_WEIGHT = 0.6  # the title's share of the words' cosine
GROUP_SHARE = 0.5  # of the scatter, where listings of one product are known


class Parts(NamedTuple):
    """The two modalities of the same N listings."""

    words: Inputs
    picture: Inputs

    @property
    def paired(self) -> npt.NDArray[np.bool_]:
        """(N,): which listings have both."""
        return self.words.present & self.picture.present


class Unseen(NamedTuple):
    """M listings that are not learned from, and the number of each one's product, (M,)."""

    pooled: Pooled
    products: npt.NDArray[np.int64]

    @property
    def rows(self) -> npt.NDArray[np.intp]:
        """Of the listings that have words and a picture."""
        return np.flatnonzero(self.pooled.has_words & self.pooled.has_picture)


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
    scatter = second_moment(differences)
    return scatter / scatter.trace().clamp(min=1e-12)


def second_moment(x: Tensor) -> Tensor:
    """(n, F) -> (F, F) float64: the mean of x x^T, zeros of nothing."""
    moment = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for block in torch.split(x, 4096):
        moment += block.double().T @ block.double()
    return moment / max(1, len(x))
