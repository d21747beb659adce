"""The training of the towers: which step is kept, what a batch is, what is no negative."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

from item.model.vector import TOWER_WIDTH
from tests.training.pooled_views import (
    OPTIONS,
    alone,
    categorised,
    make_fit,
    make_pooled,
    make_start,
    same_state,
    unseen,
    without,
)
from training import towers as module
from training.alignment import Fit, HeadSettings
from training.config import AlignOptions
from training.inputs import Unseen
from training.labels import Labels
from training.pooled import Pooled, embed
from training.towers import (
    Recipe,
    TowerTrainer,
    linear_layers,
    linear_tower,
    make_tower,
    reciprocal_rank,
    side_by_side,
    train_towers,
)


@pytest.mark.parametrize("make_labels", [alone, categorised])
def test_a_seed_decides_everything(make_labels: Callable[[int], Labels]) -> None:
    pooled = without(make_pooled(), words=[3, 4, 9], picture=[5, 6])
    heads = []
    for seed in (0, 0, 1):
        fit = Fit(make_start(pooled), pooled, make_labels(120))
        fit.train_towers(OPTIONS, seed, recipe=Recipe(linear=0.5, steps=5))
        heads.append(fit.turn(fit.head(HeadSettings())))
    assert same_state(heads[0], heads[1])
    assert not same_state(heads[0], heads[2])


def told(monkeypatch: pytest.MonkeyPatch, values: Iterable[float]) -> list[float]:
    """Has held-out listings say these, first of the trained towers as they are trained, then of each shrinkage, then of
    each share; returns those that were asked for."""
    coming, asked = iter(values), list[float]()

    def say(*_: object) -> float:
        asked.append(next(coming))
        return asked[-1]

    monkeypatch.setattr(module, "reciprocal_rank", say)
    monkeypatch.setattr(module, "SHRINKAGES", (1.0, 4.0, 9.0))
    monkeypatch.setattr(module, "LINEAR", (0.0, 0.5, 1.0))
    return asked


def test_the_best_recipe_is_kept_and_can_be_followed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same recipe without held-out listings gives the same."""
    pooled, held_out = make_pooled(16, noise=1.0), make_pooled(60, seed=1, noise=1.0)
    options = replace(OPTIONS, steps=100, lr=0.02)
    fit = Fit(make_start(pooled), pooled, alone(16))
    asked = told(monkeypatch, [0.1, 0.4, 0.2, 0.3, 0.3, 0.1, 0.2, 0.1, 0.4, 0.6, 0.5])
    fit.train_towers(options, 0, held_out=unseen(held_out))
    assert len(asked) == 11
    assert fit.recipe == Recipe(shrinkage=4.0, linear=0.5, steps=40)
    assert fit.towers is not None
    for recipe in (fit.recipe, *(replace_one(fit.recipe, name) for name in Recipe._fields)):
        again = Fit(make_start(pooled), pooled, alone(16))
        again.train_towers(options, 0, recipe=recipe)
        assert again.recipe == recipe
        assert again.towers is not None
        assert same_state(fit.towers, again.towers) == (recipe == fit.recipe)


def replace_one(recipe: Recipe, name: str) -> Recipe:
    """A recipe that differs in one."""
    return recipe._replace(**{name: {"shrinkage": 1.0, "linear": 0.25, "steps": 60}[name]})  # type: ignore[arg-type]


@pytest.mark.parametrize("patience", [20, 60])
def test_training_ends_after_so_many_steps_without_a_better_one(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", patience)
    pooled = make_pooled(16)
    fit = Fit(make_start(pooled), pooled, alone(16))
    in_training = [0.1, 0.3, 0.2, 0.3, 0.1, 0.4, 0.1, 0.1, 0.1, 0.5]  # an equal value is no better one
    told(monkeypatch, [*in_training[: {20: 3, 60: 5}[patience]], 0.2, 0.1, 0.1, 0.1, 0.1, 0.2])
    fit.train_towers(replace(OPTIONS, steps=195), 0, held_out=unseen(pooled))
    assert fit.recipe == Recipe(1.0, 1.0, 40)


def test_the_last_step_is_asked_about_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = make_pooled(16)
    fit = Fit(make_start(pooled), pooled, alone(16))
    asked = told(monkeypatch, (0.1 * number for number in range(100)))
    fit.train_towers(replace(OPTIONS, steps=50), 0, held_out=unseen(pooled))
    assert len(asked) == 3 + 3 + 3
    assert fit.recipe == Recipe(9.0, 1.0, 50)


def test_without_a_step_the_closed_form_is_all_there_is() -> None:
    pooled = make_pooled(40)
    fits = [Fit(make_start(pooled), pooled, alone(40)) for _ in range(2)]
    fits[0].train_towers(replace(OPTIONS, steps=0), 0, held_out=unseen(make_pooled(30, seed=1)))
    fits[1].train_towers(replace(OPTIONS, steps=0), 1, recipe=fits[0].recipe)
    assert fits[0].recipe is not None
    assert fits[0].recipe[1:] == (1.0, 0)
    with torch.no_grad():
        found = [[tower(part.x) for tower, part in zip(fit.towers or [], fit.parts, strict=True)] for fit in fits]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)  # whatever the seed


def test_the_recipe_of_folds_is_their_median() -> None:
    """A fold that trained long by chance has no say."""
    folds = [Recipe(1.0, 0.5, 0), Recipe(3.0, 1.0, 200), Recipe(1.0, 0.75, 0), Recipe(3.0, 1.0, 0)]
    assert Recipe.of_folds(folds) == Recipe(2.0, 0.875, 0)
    assert Recipe.of_folds(folds[:1]) == folds[0]


def roots(moment: np.ndarray, shrinkage: float) -> np.ndarray:
    """(C + lambda mean eigenvalue)^(-1/2)."""
    shrunk = moment + shrinkage * np.trace(moment) / len(moment) * np.eye(len(moment))
    return np.linalg.inv(np.real(sqrtm(shrunk)))


@pytest.mark.parametrize("shrinkage", [0.03, 1.0, 10.0])
def test_the_closed_form_equals_its_definition(shrinkage: float) -> None:
    """Canonical correlations in numpy float64, of those listings that have both."""
    pooled = without(make_pooled(noise=0.5), words=[1, 7], picture=[2])
    fit = Fit(make_start(pooled), pooled, alone(120))
    fit.train_towers(OPTIONS, 0, recipe=Recipe(shrinkage))
    assert fit.towers is not None
    both = [0, *range(3, 7), *range(8, 120)]
    words, picture = (part.x[both].double().numpy() for part in fit.parts)
    moments = [np.einsum("nkf,nkg->fg", x, x) / x[..., 0].size for x in (words, picture)]
    across = np.einsum("nkf,nlg->fg", words, picture) / (len(both) * 9)
    into_words, into_picture = (roots(moment, shrinkage) for moment in moments)
    U, S, Vh = np.linalg.svd(into_words @ across @ into_picture, full_matrices=False)
    expected = [words[:, 0] @ into_words @ U * S, picture[:, 0] @ into_picture @ Vh.T * S]
    with torch.no_grad():
        found = [tower(part.x[both, 0]).numpy() for tower, part in zip(fit.towers, fit.parts, strict=True)]
    assert found[0].shape == (len(both), fit.shared_width)
    for x, y in zip(found, expected, strict=True):
        assert np.linalg.norm(x, axis=1).mean() == pytest.approx(1)
        np.testing.assert_allclose(x @ x.T, y @ y.T / np.linalg.norm(y, axis=1).mean() ** 2, atol=1e-5)
    scale = np.prod([np.linalg.norm(y, axis=1).mean() for y in expected])
    np.testing.assert_allclose(found[0] @ found[1].T, expected[0] @ expected[1].T / scale, atol=1e-5)


def test_a_hidden_layer_holds_a_linear_map() -> None:
    directions, x = torch.randn(5, 9), 3 * torch.randn(40, 9)
    tower = linear_tower(directions, 8)
    torch.testing.assert_close(tower(x), F.pad(x @ directions.T, (0, 3)), atol=1e-5, rtol=0)
    assert sum(parameter.shape[0] == 10 for parameter in tower.parameters()) == 2


@pytest.mark.parametrize("width", [16, 400])
def test_towers_side_by_side_equal_their_definition(width: int) -> None:
    """In numpy float64: outputs by their shares, side by side, on their principal directions, of which there may be
    fewer than dimensions."""
    pooled = without(make_pooled(noise=0.5), words=[1], picture=[2])
    parts, shares = Fit(make_start(pooled), pooled, alone(120)).parts, (0.7, 0.3, 0.0)
    torch.manual_seed(0)
    towers = [[make_tower(part.x.shape[-1], 24, width, 0.0) for part in parts] for _ in shares]
    with torch.no_grad():
        linear_layers(towers[0][0])[1].weight.mul_(9)  # says no more for being longer
        outputs = [
            [tower(part.x[:, 0]).double().numpy() for tower in of]
            for of, part in zip(zip(*towers, strict=True), parts, strict=True)
        ]
        merged = side_by_side([torch.nn.ModuleList(pair) for pair in towers], parts, shares)
        found = [tower(part.x[:, 0]).double().numpy() for tower, part in zip(merged, parts, strict=True)]
    assert parts.paired.sum() == 118
    joined = [
        np.hstack(
            [
                share**0.5 * x / np.linalg.norm(x[parts.paired], axis=1).mean()
                for x, share in zip(of_part, shares, strict=True)
            ]
        )
        for of_part in outputs
    ]
    units = np.vstack([x[parts.paired] / np.linalg.norm(x[parts.paired], axis=1, keepdims=True) for x in joined])
    directions = np.linalg.svd(units, full_matrices=False)[2][:width].T
    for i, k in ((0, 0), (0, 1), (1, 1)):
        expected = joined[i] @ directions @ directions.T @ joined[k].T
        np.testing.assert_allclose(found[i] @ found[k].T, expected, atol=1e-4)
    assert found[0].shape == (120, width)


def test_towers_of_any_width_have_the_heads_hidden_units() -> None:
    pooled = make_pooled(40)
    parts = Fit(make_start(pooled), pooled, alone(40)).parts
    for width in (3, TOWER_WIDTH):
        towers, _ = train_towers(parts, alone(40), width, OPTIONS, 0)
        assert [tower(part.x[:, 0]).shape for tower, part in zip(towers, parts, strict=True)] == [(40, width)] * 2
        assert [linear_layers(tower)[0].out_features for tower in towers] == [TOWER_WIDTH] * 2


def test_held_out_listings_measure_the_towers_of_the_head() -> None:
    """The mean reciprocal rank of the own picture and of the own words in the head's shared subspace, which reads
    held-out listings as it was fitted to read: theirs are centred as those that it learned from."""
    pooled, held_out = make_pooled(noise=0.5), without(make_pooled(60, seed=1, noise=0.5), words=[2], picture=[7, 8])
    fit = Fit(make_start(pooled), pooled, alone(120))
    fit.train_towers(OPTIONS, 0)
    assert fit.towers is not None
    head = fit.head(HeadSettings())
    words, picture = embed(head, held_out, "words", 0), embed(head, held_out, "picture", 0)
    both = held_out.has_words & held_out.has_picture
    assert unseen(held_out).rows.tolist() == np.flatnonzero(both).tolist()
    similar = words[both] @ picture[both].T  # without categories words and pictures meet in the shared subspace only
    for products in (np.arange(60), np.arange(60) // 3):
        same = products[both][:, None] == products[both]
        ranks = [1 + (row > row[same[i]].max()).sum() for side in (similar, similar.T) for i, row in enumerate(side)]
        expected = float(np.mean(1 / np.array(ranks)))
        assert 0.1 < expected < 0.99
        assert reciprocal_rank(fit.towers, fit.parts, Unseen(held_out, products)) == pytest.approx(expected, abs=1e-6)


def test_held_out_listings_without_a_pair_choose_nothing() -> None:
    pooled, rows = make_pooled(16), [*range(8)]
    held_out = without(make_pooled(8, seed=1), words=rows, picture=[])
    fits = [Fit(make_start(pooled), pooled, alone(16)) for _ in range(2)]
    for fit, asked in zip(fits, (unseen(held_out), None), strict=True):
        fit.train_towers(replace(OPTIONS, steps=30), 0, held_out=asked, recipe=Recipe(2.0, 0.5, 10))
        assert fit.recipe == (2.0, 0.5, 10)
        assert fit.towers is not None
    assert same_state(*(fit.towers for fit in fits if fit.towers is not None))


@pytest.mark.parametrize("make_labels", [alone, categorised])
@pytest.mark.parametrize("num_pairs", [0, 1, 2, 9])
def test_few_listings_that_have_both(make_labels: Callable[[int], Labels], num_pairs: int) -> None:
    """Batches of 8 of 40 listings mostly hold no pair, or one: there is nothing to tell apart, and nothing breaks."""
    pooled = without(make_pooled(40), words=[*range(num_pairs, 20)], picture=[*range(20, 40)])
    fit = make_fit(pooled, make_labels(40), replace(OPTIONS, batch_size=8, steps=10))
    assert (fit.towers is None) == (num_pairs < 2)
    head = fit.turn(fit.head(HeadSettings()))
    assert all(tensor.isfinite().all() for tensor in head.state_dict().values())
    assert (np.linalg.norm(embed(head, pooled, "both", 0), axis=1) > 0.99).all()


@pytest.mark.parametrize("lacking", ["words", "picture"])
def test_a_catalogue_of_one_modality(lacking: str) -> None:
    rows = [*range(40)]
    pooled = without(make_pooled(40), *((rows, []) if lacking == "words" else ([], rows)))
    for labels in (alone(40), categorised(40)):
        fit = make_fit(pooled, labels, replace(OPTIONS, steps=5))
        assert fit.towers is None  # nothing to meet
        assert fit.recipe is None
        head = fit.turn(fit.head(HeadSettings()))
        assert (head.weights[:, 4] > 0).tolist() == [bool(labels.levels)] * 2
        assert (np.linalg.norm(embed(head, pooled, "both", 0), axis=1) > 0.99).all()


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("alike", [("words",), ("picture",), ("words", "picture")])
def test_a_catalogue_that_says_one_thing(alike: Sequence[str], steps: int) -> None:
    """All words or all pictures are the same: nothing is known of them, and nothing breaks."""
    pooled = make_pooled(40)
    words = torch.ones_like(pooled.words) if "words" in alike else pooled.words  # without rounding: zeros once centred
    picture = torch.ones_like(pooled.picture) if "picture" in alike else pooled.picture
    fit = Fit(make_start(pooled), replace(pooled, words=words, picture=picture), alone(40))
    fit.train_towers(replace(OPTIONS, steps=steps), 0, held_out=unseen(make_pooled(12, seed=1)))
    head = fit.turn(fit.head(HeadSettings()))
    assert all(tensor.isfinite().all() for tensor in head.state_dict().values())


def trainer_of(pooled: Pooled, labels: Labels, options: AlignOptions = OPTIONS) -> TowerTrainer:
    fit = Fit(make_start(pooled), pooled, labels)
    towers = torch.nn.ModuleList(make_tower(part.x.shape[-1], 32, 16, 0.0) for part in fit.parts)
    return TowerTrainer(towers, fit.parts, labels, options, 0)


def test_a_batch_is_of_single_rows_and_of_hard_negatives() -> None:
    labels = replace(alone(400), leaves=np.arange(400) % 100)
    trainer = trainer_of(make_pooled(400), labels, replace(OPTIONS, batch_size=40))
    chance, found = [], []
    for _ in range(10):
        rows = trainer.draw_rows()
        assert len(rows) == len(set(rows.tolist())) == 40
        found.append(np.isin(rows[20:] % 100, rows[:20] % 100).mean())
        chance.append(np.isin(trainer.rng.permutation(400)[:20] % 100, rows[:20] % 100).mean())
    assert np.mean(found) > 0.9 > 0.5 > np.mean(chance)
    assert sorted(trainer_of(make_pooled(12), categorised(12)).draw_rows().tolist()) == [*range(12)]


def test_the_same_product_and_the_same_words_are_no_negatives() -> None:
    pooled = make_pooled(6)
    pooled.words[4] = pooled.words[0]
    labels = replace(alone(6), products=np.array([0, 1, 1, 3, 4, 5]))
    found = trainer_of(pooled, labels).indistinct(np.array([0, 1, 2, 3, 4]))
    expected = np.eye(5, dtype=np.bool_)
    expected[[1, 2, 0, 4], [2, 1, 4, 0]] = True
    np.testing.assert_array_equal(found.numpy(), expected)


def test_training_lowers_the_loss_and_reaches_every_parameter() -> None:
    pooled = without(make_pooled(), words=[3], picture=[4])
    trainer = trainer_of(pooled, categorised(120))
    before = {name: tensor.clone() for name, tensor in trainer.towers.state_dict().items()}
    rows = np.arange(120)
    with torch.no_grad():
        first = np.mean([trainer.loss(rows).item() for _ in range(5)])
    trainer.run(40)
    with torch.no_grad():
        last = np.mean([trainer.loss(rows).item() for _ in range(5)])
    assert last < 0.9 * first
    assert not any(torch.equal(before[name], tensor) for name, tensor in trainer.towers.state_dict().items())
