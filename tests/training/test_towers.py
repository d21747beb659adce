"""The training of the towers: which step is kept, what a batch is, what is no negative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

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
from training.towers import TowerTrainer, linear_layers, make_tower, side_by_side


@pytest.mark.parametrize("make_labels", [alone, categorised])
def test_a_seed_decides_everything(make_labels: Callable[[int], Labels]) -> None:
    pooled = without(make_pooled(), words=[3, 4, 9], picture=[5, 6])
    heads = []
    for seed in (0, 0, 1):
        fit = Fit(make_start(pooled), pooled, make_labels(120))
        fit.train_towers(replace(OPTIONS, steps=5), seed)
        heads.append(fit.turn(fit.head(HeadSettings())))
    assert same_state(heads[0], heads[1])
    assert not same_state(heads[0], heads[2])


def test_the_best_step_is_kept_and_can_be_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps without held-out listings give the same."""
    found = iter([0.1, 0.4, 0.2, 0.3, 0.3] * module.NUM_TOWERS)
    monkeypatch.setattr(TowerTrainer, "validate", lambda *_: next(found))
    pooled, held_out = make_pooled(16, noise=1.0), make_pooled(60, seed=1, noise=1.0)
    options = replace(OPTIONS, steps=100, lr=0.02, dropout=0.0)
    start = make_start(pooled)
    fit, again, last = (Fit(start, pooled, alone(16)) for _ in range(3))
    fit.train_towers(options, 0, held_out=unseen(held_out))
    assert fit.num_steps == 40
    again.train_towers(options, 0, steps=fit.num_steps)
    last.train_towers(options, 0)
    assert last.num_steps == 100
    assert fit.towers is not None
    assert again.towers is not None
    assert last.towers is not None
    assert same_state(fit.towers, again.towers)
    assert not same_state(fit.towers, last.towers)


@pytest.mark.parametrize("patience", [20, 60])
def test_training_ends_after_so_many_steps_without_a_better_one(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, asked = [0.1, 0.3, 0.2, 0.3, 0.1, 0.4, 0.1, 0.1, 0.1, 0.5], list[float]()
    monkeypatch.setattr(module, "NUM_TOWERS", 1)

    def validate(_: TowerTrainer, __: Unseen) -> float:
        asked.append(values[len(asked)])
        return asked[-1]

    monkeypatch.setattr(TowerTrainer, "validate", validate)
    monkeypatch.setattr(module, "PATIENCE", patience)
    pooled = make_pooled(16)
    fit = Fit(make_start(pooled), pooled, alone(16))
    fit.train_towers(replace(OPTIONS, steps=195), 0, held_out=unseen(pooled))
    assert fit.num_steps == 40
    assert len(asked) == {20: 3, 60: 5}[patience]  # an equal value is no better one


def test_the_last_step_is_asked_about_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()

    def validate(_: TowerTrainer, __: Unseen) -> float:
        calls.append(1)
        return 0.1 * len(calls)

    monkeypatch.setattr(TowerTrainer, "validate", validate)
    monkeypatch.setattr(module, "NUM_TOWERS", 1)
    pooled = make_pooled(16)
    fit = Fit(make_start(pooled), pooled, alone(16))
    fit.train_towers(replace(OPTIONS, steps=50), 0, held_out=unseen(pooled))
    assert len(calls) == 3
    assert fit.num_steps == 50


def test_validation_measures_the_towers_of_the_head() -> None:
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
    trainer = TowerTrainer(fit.towers, fit.parts, fit.labels, OPTIONS, 0)
    for products in (np.arange(60), np.arange(60) // 3):
        same = products[both][:, None] == products[both]
        ranks = [1 + (row > row[same[i]].max()).sum() for side in (similar, similar.T) for i, row in enumerate(side)]
        expected = float(np.mean(1 / np.array(ranks)))
        assert 0.1 < expected < 0.99
        assert trainer.validate(Unseen(held_out, products)) == pytest.approx(expected, abs=1e-6)


def test_held_out_listings_without_a_pair_choose_no_step() -> None:
    pooled, rows = make_pooled(16), [*range(8)]
    held_out = without(make_pooled(8, seed=1), words=rows, picture=[])
    fits = [Fit(make_start(pooled), pooled, alone(16)) for _ in range(2)]
    for fit, asked in zip(fits, (unseen(held_out), None), strict=True):
        fit.train_towers(replace(OPTIONS, steps=30), 0, held_out=asked)
        assert fit.num_steps == 30
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
        assert fit.num_steps == 0
        head = fit.turn(fit.head(HeadSettings()))
        assert (head.weights[:, 4] > 0).tolist() == [bool(labels.levels)] * 2
        assert (np.linalg.norm(embed(head, pooled, "both", 0), axis=1) > 0.99).all()


@pytest.mark.parametrize("width", [16, 400])
def test_towers_side_by_side_equal_their_definition(width: int) -> None:
    """In numpy float64: outputs over their mean norm, side by side, on their principal directions, of which there may
    be fewer than dimensions."""
    pooled = without(make_pooled(noise=0.5), words=[1], picture=[2])
    parts = Fit(make_start(pooled), pooled, alone(120)).parts
    torch.manual_seed(0)
    towers = [[make_tower(part.x.shape[-1], 24, width, 0.0) for part in parts] for _ in range(3)]
    with torch.no_grad():
        linear_layers(towers[0][0])[1].weight.mul_(9)  # says no more for being longer
        outputs = [
            [tower(part.x[:, 0]).double().numpy() for tower in of]
            for of, part in zip(zip(*towers, strict=True), parts, strict=True)
        ]
        merged = side_by_side([torch.nn.ModuleList(pair) for pair in towers], parts, width)
        found = [tower(part.x[:, 0]).double().numpy() for tower, part in zip(merged, parts, strict=True)]
    assert parts.paired.sum() == 118
    joined = [np.hstack([x / np.linalg.norm(x[parts.paired], axis=1).mean() for x in of_part]) for of_part in outputs]
    units = np.vstack([x[parts.paired] / np.linalg.norm(x[parts.paired], axis=1, keepdims=True) for x in joined])
    directions = np.linalg.svd(units, full_matrices=False)[2][:width].T
    for i, k in ((0, 0), (0, 1), (1, 1)):
        expected = joined[i] @ directions @ directions.T @ joined[k].T
        np.testing.assert_allclose(found[i] @ found[k].T, expected, atol=1e-4)
    assert found[0].shape == (120, width)


def test_pairs_of_towers_are_trained_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """From values and on batches of their own, whatever the seed; each to its own best step."""
    pooled, drawn, best = make_pooled(40), list[tuple[bytes, bytes]](), iter([*range(8)])

    def run(trainer: TowerTrainer, held_out: Unseen | None, steps: int) -> int:
        drawn.append(
            (linear_layers(trainer.towers)[0].weight.detach().numpy().tobytes(), trainer.draw_rows().tobytes())
        )
        return steps + next(best)

    monkeypatch.setattr(TowerTrainer, "run", run)
    fit = make_fit(pooled, alone(40), replace(OPTIONS, batch_size=20, steps=10))
    assert fit.num_steps == 12  # the mean of 10, 11, 12 and 13
    fit.train_towers(replace(OPTIONS, batch_size=20), 1)
    assert [len({one[i] for one in drawn}) for i in range(2)] == [8, 8]


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
    trainer.run(None, 40)
    with torch.no_grad():
        last = np.mean([trainer.loss(rows).item() for _ in range(5)])
    assert last < 0.9 * first
    assert not any(torch.equal(before[name], tensor) for name, tensor in trainer.towers.state_dict().items())
