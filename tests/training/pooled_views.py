"""Views of made-up listings as the encoder would pool them, and fits on them, for the tests of alignment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from item.model.config import ItemConfig
from item.model.vector import VectorHead
from item.preprocessing.spelling import SPELLING_WIDTH
from training.alignment import Fit
from training.config import AlignOptions
from training.inputs import Unseen
from training.labels import UNKNOWN, Labels
from training.pooled import Pooled
from training.towers import Recipe

WIDTH, POOLED, VECTOR = 12, 10, 48
OPTIONS = AlignOptions(steps=40, batch_size=64, dropout=0.1)


def make_pooled(num: int = 120, views: int = 2, seed: int = 0, noise: float = 4.0) -> Pooled:
    """What words and picture share is the product; three directions of either are noise, drawn anew in each view."""
    generator = torch.Generator().manual_seed(99)  # of the world, the same for all seeds
    into_words, into_picture = (torch.randn(6, width, generator=generator) for width in (WIDTH, POOLED))
    noisy_words, noisy_picture = (torch.randn(3, width, generator=generator) for width in (WIDTH, POOLED))
    generator.manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    product = draw(num, 1, 6)
    words = product @ into_words + noise * draw(num, 1 + views, 3) @ noisy_words + 0.1 * draw(num, 1 + views, WIDTH)
    picture = (
        product @ into_picture + noise * draw(num, 1 + views, 3) @ noisy_picture + 0.1 * draw(num, 1 + views, POOLED)
    )
    title = words + 0.3 * draw(num, 1 + views, WIDTH)
    there = np.ones(num, np.bool_)
    return Pooled(
        words=torch.stack([title, words], dim=2),
        spelling=torch.zeros(num, 1 + views, SPELLING_WIDTH),
        picture=picture,
        has_words=there,
        has_picture=there,
    )


def spelled_at_random(pooled: Pooled) -> Pooled:
    sketches = torch.randn(*pooled.words.shape[:2], SPELLING_WIDTH, generator=torch.Generator().manual_seed(0))
    return replace(pooled, spelling=F.normalize(sketches, dim=-1))


def without(pooled: Pooled, words: list[int], picture: list[int]) -> Pooled:
    """The rows `words` lose their words, `picture` their picture."""
    has_words, has_picture = pooled.has_words.copy(), pooled.has_picture.copy()
    has_words[words], has_picture[picture] = False, False
    return Pooled(
        words=pooled.words * torch.from_numpy(has_words)[:, None, None, None],
        spelling=pooled.spelling * torch.from_numpy(has_words)[:, None, None],
        picture=pooled.picture * torch.from_numpy(has_picture)[:, None, None],
        has_words=has_words,
        has_picture=has_picture,
    )


def make_start(pooled: Pooled, vector_width: int = VECTOR) -> VectorHead:
    config = ItemConfig(vocab_size=10, cls_id=1, sep_id=2, width=WIDTH, num_heads=4, vector_width=vector_width)
    head = VectorHead(config, POOLED)
    words, picture = (torch.from_numpy(has) for has in (pooled.has_words, pooled.has_picture))
    head.fit(pooled.words[words, 0], pooled.picture[picture, 0], 0.5, whiten=False)
    return head


def alone(num: int) -> Labels:
    """No categories, no groups."""
    own = np.arange(num)
    return Labels(categories=np.zeros((num, 0), np.int64), levels=(), paths=(), leaves=own, products=own)


def categorised(num: int) -> Labels:
    """Two levels, some places unknown, and pairs of listings of one product."""
    product = np.arange(num) // 2
    categories = np.stack([product % 2, product % 6], axis=1)
    categories[::7, 1] = UNKNOWN
    paths = tuple((f"top {number}",) for number in range(2)) + tuple(("top", f"leaf {number}") for number in range(6))
    return Labels(categories=categories, levels=(2, 6), paths=paths, leaves=product % 6, products=product)


def unseen(pooled: Pooled) -> Unseen:
    """Each a product of its own."""
    return Unseen(pooled, np.arange(len(pooled)))


def make_fit(pooled: Pooled, labels: Labels, options: AlignOptions = OPTIONS) -> Fit:
    """With towers of which half were trained to the last step."""
    fit = Fit(make_start(pooled), pooled, labels)
    fit.train_towers(options, 0, recipe=Recipe(linear=0.5, steps=options.steps))
    return fit


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
