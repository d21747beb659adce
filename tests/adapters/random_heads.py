"""Heads and novelties drawn at random, and features as listings of one modality have them."""

from __future__ import annotations

import numpy as np

from item.adapters.head import PATTERNS, RANKS, Array, Category, Head, Novelty, unit

SPACE = "5" * 64
F, WORDS = 6, 4  # features, of them those of the words


def make_head(
    rng: np.random.Generator, category: Category, paths: tuple[Category, ...], temperature: float = 1.0
) -> Head:
    """The head of a category, which knows these paths."""
    weight, bias = rng.normal(size=(len(paths), F)), rng.normal(size=len(paths))
    return Head(
        category=category,
        paths=paths,
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=temperature,
    )


def make_novelty(seed: int = 0, threshold: float = 0.99) -> Novelty:
    """Five centres, ranks of each pattern."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(5, F))).astype(np.float32)
    ranks = np.sort(rng.uniform(0, 1, (len(PATTERNS), RANKS)), axis=1).astype(np.float32)
    return Novelty(centres=centres, ranks=ranks, threshold=threshold)


def seen_by(features: Array, pattern: int) -> Array:
    """Features of words alone, of a picture alone, or of both."""
    seen = features.copy()
    if pattern == PATTERNS.index("words"):
        seen[:, WORDS:] = 0
    if pattern == PATTERNS.index("picture"):
        seen[:, :WORDS] = 0
    return seen
