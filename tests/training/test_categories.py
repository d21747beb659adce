"""The regressions of the categories: the minimum that the module documents, and what they know of unseen listings."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from training import categories as module
from training.categories import PRIOR, CategoryWeights, fit_categories
from training.labels import UNKNOWN, Labels

Floats = npt.NDArray[np.float64]

WIDTH, POOLED = 7, 5
LEVELS = (2, 4)


def make_inputs(num: int, views: int = 1, seed: int = 0, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 1 + K, F) of words and of pictures, unit norm: row i is of leaf i % 4, which either modality shows."""
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    parts = []
    for width in (WIDTH, POOLED):
        centres = world.normal(size=(4, width))[np.arange(num) % 4]
        x = centres[:, None] + noise * rng.normal(size=(num, 1 + views, width))
        parts.append(F.normalize(torch.from_numpy(x).float(), dim=-1))
    return parts[0], parts[1]


def make_labels(num: int) -> Labels:
    """Two levels: leaves 0 and 1 are of the first wide category, 2 and 3 of the second."""
    leaf = np.arange(num) % 4
    return of(np.stack([leaf // 2, leaf], axis=1))


def of(categories: npt.NDArray[np.int64], levels: tuple[int, ...] = LEVELS) -> Labels:
    num = len(categories)
    paths = tuple(
        ("top",) * depth + (f"category {number}",) for depth, count in enumerate(levels) for number in range(count)
    )
    return Labels(categories=categories, levels=levels, paths=paths, leaves=np.arange(num), products=np.arange(num))


def lacking(x: torch.Tensor, rows: slice) -> torch.Tensor:
    x = x.clone()
    x[rows] = 0
    return x


def objective(w: Floats, p: Floats, labels: Labels, expected: Floats, flat: Floats) -> tuple[float, Floats]:
    """float64, one reading of one listing after the other: words, picture, both, of each view; in training each logit
    gets half the logarithm of its category's listings. And the slopes."""
    C, ends = sum(labels.levels), np.cumsum([0, *labels.levels])
    into_words, into_picture, bias = unpack(flat)
    away = into_words - expected
    total = ((away**2).sum() + (into_picture**2).sum()) / (2 * PRIOR)
    there = labels.categories[w[:, 0].any(axis=1) | p[:, 0].any(axis=1)]
    counts = [np.bincount(of[of != UNKNOWN], minlength=C) for of, C in zip(there.T, labels.levels, strict=True)]
    frequency = 0.5 * np.log(np.maximum(np.concatenate(counts), 1))
    slopes = [away / PRIOR, into_picture / PRIOR, np.zeros(C)]
    for words, picture, numbers in zip(w, p, labels.categories, strict=True):
        has_words, has_picture = bool(words[0].any()), bool(picture[0].any())
        readings = [(1, 0, 1.0)] * has_words + [(0, 1, 1.0)] * has_picture
        if has_words and has_picture:
            readings = [(1, 0, 0.4), (0, 1, 0.1), (1, 1, 0.5)]
        K = len(words) - 1
        views = zip([0.5] + [0.5 / K] * K if K else [1.0], words, picture, strict=True)
        for (by_words, by_picture, share), (of_view, x_w, x_p) in product(readings, views):
            weight = share * of_view
            x_w, x_p = by_words * x_w, by_picture * x_p
            z, errors = into_words @ x_w + into_picture @ x_p + bias + frequency, np.zeros(C)
            for (first, end), number in zip(pairwise(ends), numbers, strict=True):
                if number != UNKNOWN:
                    exponentials = np.exp(z[first:end])
                    total += weight * (np.log(exponentials.sum()) - z[first + number])
                    errors[first:end] = exponentials / exponentials.sum()
                    errors[first + number] -= 1
            for slope, x in zip(slopes, (x_w, x_p, 1.0), strict=True):
                slope += weight * np.multiply.outer(errors, x)
    return float(total), np.concatenate([slope.ravel() for slope in slopes])


def unpack(flat: Floats) -> tuple[Floats, Floats, Floats]:
    C = sum(LEVELS)
    words, picture, bias = np.split(flat, [C * WIDTH, C * (WIDTH + POOLED)])
    return words.reshape(C, WIDTH), picture.reshape(C, POOLED), bias


def flatten(weights: CategoryWeights) -> Floats:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in weights])


def right(z: torch.Tensor, labels: Labels) -> list[float]:
    """The share of right answers at each level."""
    numbers = torch.from_numpy(labels.categories)
    return [
        (of_level.argmax(1) == numbers[:, level]).float().mean().item()
        for level, of_level in enumerate(torch.split(z, list(labels.levels), dim=1))
    ]


def awkward(num: int = 24, views: int = 1) -> tuple[torch.Tensor, torch.Tensor, Labels]:
    """Listings without words, without a picture and without either; unknown at one level or at all."""
    words, picture = make_inputs(num, views)
    words, picture = lacking(words, slice(0, 3)), lacking(picture, slice(2, 6))  # row 2 has neither
    labels = make_labels(num)
    labels.categories[7:9] = UNKNOWN
    labels.categories[9:12, 0] = UNKNOWN
    labels.categories[12:15, 1] = UNKNOWN
    labels.categories[1] = UNKNOWN
    return words, picture, labels


@pytest.mark.parametrize("strength", [0.0, 40.0])
def test_the_weights_are_the_minimum_of_the_objective(strength: float) -> None:
    """An independent minimiser of the objective in float64 comes to the same weights, and is flat there."""
    words, picture, labels = awkward()
    w, p = words.double().numpy(), picture.double().numpy()
    names = strength * F.normalize(torch.randn(sum(LEVELS), WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = names.double().numpy()
    found = flatten(fit_categories(words, picture, labels, names if strength else None))
    start = np.zeros_like(found)
    best = minimize(lambda flat: objective(w, p, labels, expected, flat), start, jac=True, options={"maxiter": 500})
    (at_start, first_slopes), (at_found, slopes) = (objective(w, p, labels, expected, flat) for flat in (start, found))
    assert best.success
    assert at_found - best.fun < 1e-3 * (at_start - best.fun)
    assert np.abs(slopes).max() < 1e-2 * np.abs(first_slopes).max()
    np.testing.assert_allclose(found, best.x, atol=0.1)
    assert np.abs(found).max() > 1


def test_categories_of_few_listings_are_known_by_their_names() -> None:
    """With three noisy listings each and names, unseen ones are named more often than with the listings alone."""
    centres = F.normalize(make_inputs(800, noise=1.5)[0][:, 0].reshape(-1, 4, WIDTH).mean(0), dim=1)
    blurred = centres + 0.3 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    names = torch.cat([torch.zeros(2, WIDTH), F.normalize(blurred, dim=1)])
    words, picture = make_inputs(12, seed=1, noise=1.5)
    unseen = make_inputs(400, seed=2, noise=1.5)[0][:, 0]

    def named(weights: CategoryWeights) -> float:
        return right(unseen @ weights.words.T + weights.bias, make_labels(400))[1]

    without, both = (
        fit_categories(words, torch.zeros_like(picture), make_labels(12), expected) for expected in (None, 40 * names)
    )
    assert named(both) > named(without) + 0.05


def test_names_give_way_to_listings() -> None:
    """The more listings, the nearer are the weights to those that expect nothing, in what they say."""
    wrong = 20 * F.normalize(torch.randn(sum(LEVELS), WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    unseen, away = make_inputs(400, seed=1, noise=0.8)[0][:, 0], []
    for num in (8, 80, 800):
        words, picture = make_inputs(num, noise=0.8)
        picture = torch.zeros_like(picture)
        said = [
            (unseen @ weights.words.T + weights.bias)[:, 2:].softmax(1)
            for weights in (fit_categories(words, picture, make_labels(num), names) for names in (None, wrong))
        ]
        away.append((said[0] - said[1]).abs().mean().item())
    assert away[0] > 1.5 * away[1] > 3 * away[2]


def test_what_is_learned_names_the_categories_of_unseen_listings() -> None:
    """By words alone and by the picture alone, and better by both; by chance it is one in 2 and one in 4."""
    weights = fit_categories(*make_inputs(120, noise=0.8), make_labels(120))
    words, picture = (x[:, 0] for x in make_inputs(400, seed=1, noise=0.8))
    by_words, by_picture = words @ weights.words.T, picture @ weights.picture.T
    by = [right(z + weights.bias, make_labels(400)) for z in (by_words, by_picture, by_words + by_picture)]
    assert min(wide for wide, _ in by) > 0.7
    assert min(leaf for _, leaf in by) > 0.8
    assert by[2][1] > max(by[0][1], by[1][1]) + 0.02


def test_each_modality_knows_how_much_it_knows() -> None:
    """Pictures that show hardly anything are in doubt by themselves, and leave the words their say."""
    words, picture = make_inputs(200, noise=0.4)[0], make_inputs(200, noise=8.0)[1]
    weights, labels = fit_categories(words, picture, make_labels(200)), make_labels(200)
    unseen = make_inputs(200, seed=1, noise=0.4)[0][:, 0], make_inputs(200, seed=1, noise=8.0)[1][:, 0]
    by_words, by_picture = unseen[0] @ weights.words.T, unseen[1] @ weights.picture.T
    sure = [(z + weights.bias)[:, 2:].softmax(1).amax(1).mean().item() for z in (by_words, by_picture)]
    assert sure[0] > 0.8 > 0.5 > sure[1]
    assert right(by_words + by_picture + weights.bias, labels)[1] > 0.85


def test_listings_that_say_nothing_change_nothing() -> None:
    """Those of unknown categories, and those with neither words nor a picture; others do."""
    words, picture = make_inputs(40)
    without = fit_categories(words[:32], picture[:32], make_labels(32))
    labels = make_labels(40)
    labels.categories[32:] = UNKNOWN
    assert all(map(torch.equal, fit_categories(words, picture, labels), without))
    nothing = fit_categories(lacking(words, slice(32, 40)), lacking(picture, slice(32, 40)), make_labels(40))
    np.testing.assert_allclose(flatten(nothing), flatten(without), atol=1e-3)
    whole = fit_categories(words, picture, make_labels(40))
    assert np.abs(flatten(whole) - flatten(without)).max() > 0.1


def test_an_unknown_level_is_not_learned_from_and_the_known_one_is() -> None:
    """Levels share nothing: the wide one is as if the unknown leaves were known."""
    words, picture = make_inputs(40)
    labels = make_labels(40)
    labels.categories[:20, 1] = UNKNOWN
    some, whole = fit_categories(words, picture, labels), fit_categories(words, picture, make_labels(40))
    for found, expected in zip(some, whole, strict=True):
        np.testing.assert_allclose(found[:2].numpy(), expected[:2].numpy(), atol=0.1)
        assert (found[2:] - expected[2:]).abs().max() > 0.1


@pytest.mark.parametrize("absent", ["words", "picture"])
def test_a_modality_that_is_nowhere_gets_no_weights(absent: str) -> None:
    words, picture = make_inputs(40, noise=0.4)
    if absent == "words":
        words = torch.zeros_like(words)
    else:
        picture = torch.zeros_like(picture)
    weights = fit_categories(words, picture, make_labels(40))
    here, gone = (weights.picture, weights.words) if absent == "words" else (weights.words, weights.picture)
    assert not gone.any()
    x = picture if absent == "words" else words
    assert right(x[:, 0] @ here.T + weights.bias, make_labels(40))[1] > 0.9


def test_where_nothing_is_known_nothing_is_learned() -> None:
    labels = of(np.full((6, 2), UNKNOWN))
    for tensor, shape in zip(fit_categories(*make_inputs(6), labels), ((6, WIDTH), (6, POOLED), (6,)), strict=True):
        assert tensor.shape == shape
        assert not tensor.any()


def test_the_same_listings_give_the_same_weights() -> None:
    """Whatever was drawn before; and the weights are free of the graph that made them."""
    words, picture, labels = awkward()
    kept = words.clone(), picture.clone(), labels.categories.copy()
    first = fit_categories(words, picture, labels)
    torch.rand(7)
    assert all(map(torch.equal, fit_categories(words, picture, labels), first))
    assert not any(tensor.requires_grad for tensor in first)
    assert torch.equal(words, kept[0])
    assert torch.equal(picture, kept[1])
    assert labels.categories.tolist() == kept[2].tolist()


def test_of_many_views_the_first_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """About `VIEWS` in all, of those listings that have a known category; the listings themselves always."""
    words, picture = make_inputs(20, views=3)
    labels = make_labels(20)
    labels.categories[16:] = UNKNOWN
    by_views = [fit_categories(words[:, :count], picture[:, :count], labels) for count in range(1, 5)]
    assert not any(torch.equal(a.words, b.words) for a, b in pairwise(by_views))
    for limit, count in ((1, 1), (16, 1), (47, 2), (48, 3), (1000, 4)):
        monkeypatch.setattr(module, "VIEWS", limit)
        assert all(map(torch.equal, fit_categories(words, picture, labels), by_views[count - 1])), limit
