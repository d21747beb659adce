"""How much two generations agree: of the nearest of sampled products, the share that both find.

It does not say which of the two is better; where they differ, somebody looks at the samples, or training.evaluate
measures the models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.changes import Keys
from index.exact import Vectors
from index.frozen_truth import FrozenTruth
from index.product import Product
from index.truth import Truth

NUM_SAMPLED = 200
NUM_NEAREST = 10
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A product, the share of its nearest that both generations find, and what each finds, the best first."""

    product: Product
    overlap: float
    before: list[Product]
    after: list[Product]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """value: the mean over the sampled products, in [0, 1]. samples: those that agree the least, the least first."""

    value: float
    samples: list[Sample]


def measure_overlap(before: Truth, after: Truth) -> Overlap | None:
    """Compares two generations with the same keys by exact search; None for fewer than two products in both."""
    with before.frozen() as old, after.frozen() as new:
        both = np.intersect1d(old.keys(), new.keys())
        if len(both) < 2:
            return None
        drawn = np.random.default_rng(0).choice(both, min(NUM_SAMPLED, len(both)), replace=False)
        sampled = np.sort(drawn)
        found = [nearest_keys(one, sampled) for one in (old, new)]
        shares = np.array([len(np.intersect1d(*pair)) / max(map(len, pair)) for pair in zip(*found, strict=True)])
        least = np.argsort(shares, kind="stable")[:NUM_SHOWN].tolist()
        shown = [[sampled[place : place + 1], *(one[place] for one in found)] for place in least]
        wanted = np.unique(np.concatenate([keys for group in shown for keys in group]))
        products = after.products(wanted.tolist()) | before.products(wanted.tolist())
    samples = []
    for place, groups in zip(least, shown, strict=True):
        (product, *_), old_hits, new_hits = [
            [products[key] for key in group.tolist() if key in products] or [Product(product_id="")] for group in groups
        ]
        samples.append(Sample(product=product, overlap=float(shares[place]), before=old_hits, after=new_hits))
    return Overlap(value=float(shares.mean()), samples=samples)


def nearest_keys(truth: FrozenTruth, sampled: Keys) -> list[Keys]:
    """For each of (Q,) sampled keys the keys of its `NUM_NEAREST` nearest others, the best first."""
    queries = truth.vectors_of(sampled)
    keys = np.zeros((len(sampled), 0), dtype=np.int64)
    scores: Vectors = np.zeros((len(sampled), 0), dtype=np.float32)
    for block_keys, vectors in truth.vectors():
        cosines = queries @ vectors.T
        cosines[sampled[:, None] == block_keys] = -np.inf
        keys = np.hstack([keys, np.broadcast_to(block_keys, cosines.shape)])
        scores = np.hstack([scores, cosines])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :NUM_NEAREST]
        keys, scores = np.take_along_axis(keys, best, axis=1), np.take_along_axis(scores, best, axis=1)
    return [row[there] for row, there in zip(keys, scores > -np.inf, strict=True)]
