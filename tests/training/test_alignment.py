"""Fitting the vector head on views: its equations in numpy float64, and what it brings where it can be known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from item.model.config import ItemConfig
from item.model.vector import VectorHead, join_fields
from item.preprocessing.prepared import MODALITIES
from item.preprocessing.spelling import SPELLING_WIDTH
from training import alignment as module
from training.alignment import Fit, HeadSettings, Inputs, TowerTrainer, Unseen, within_scatter
from training.categories import fit_categories
from training.config import AlignOptions
from training.labels import UNKNOWN, Labels
from training.pooled import Pooled, embed

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
    fit = Fit(make_start(pooled), pooled, labels)
    fit.train_towers(options, 0)
    return fit


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def cosines(*parts: torch.Tensor) -> torch.Tensor:
    """Of all rows of all parts with each other."""
    x = F.normalize(torch.cat(parts), dim=1)
    return x @ x.T


# The scatter within listings, and the whitening.


def scatter_oracle(x: np.ndarray, products: np.ndarray) -> np.ndarray:
    """float64, one difference after the other."""
    own = np.zeros((x.shape[2], x.shape[2]))
    for listing in x:
        for view in listing[1:]:
            own += np.outer(view - listing[0], view - listing[0])
    groups = np.zeros_like(own)
    for product in np.unique(products):
        members = x[products == product, 0]
        if len(members) > 1:
            for one in members:
                groups += np.outer(one - members.mean(0), one - members.mean(0))
    own /= np.trace(own)
    return (own + groups / np.trace(groups)) / 2 if groups.any() else own


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), num=st.integers(1, 12), views=st.integers(1, 3), products=st.integers(1, 14))
def test_the_scatter_equals_its_definition(seed: int, num: int, views: int, products: int) -> None:
    rng = np.random.default_rng(seed)
    x, of = rng.normal(size=(num, 1 + views, 5)).astype(np.float32), rng.integers(products, size=num)
    found = within_scatter(torch.from_numpy(x), of)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), scatter_oracle(x.astype(np.float64), of), atol=1e-5)
    assert found.trace().item() == pytest.approx(1)


def test_equal_views_have_no_scatter() -> None:
    x = torch.randn(4, 1, 5).expand(4, 3, 5)
    assert not within_scatter(x, np.arange(4)).any()
    assert not within_scatter(x[:0], np.arange(0)).any()
    inputs = Inputs(x, np.ones(4, np.bool_), alone(4))
    torch.testing.assert_close(inputs.whitening(3.0), torch.eye(5), atol=1e-6, rtol=0)  # nothing is known to be noise


@pytest.mark.parametrize("shrinkage", [0.1, 3.0, 50.0])
def test_whitening_equals_its_definition(shrinkage: float) -> None:
    """sqrt(lambda) (S / mean eigenvalue + lambda I)^(-1/2), of the unit inputs that are there, about the mean of the
    listings as they are."""
    pooled, labels = make_pooled(), categorised(120)
    shifted, present = pooled.picture + 3.0, np.arange(120) % 5 != 0
    inputs = Inputs(shifted, present, labels)
    mean = shifted.double().numpy()[present, 0].mean(0)
    np.testing.assert_allclose(inputs.mean.numpy(), mean, atol=1e-5)
    x = shifted.double().numpy() - mean
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    S = scatter_oracle(x[present], labels.products[present])
    values, axes = np.linalg.eigh(S / (np.trace(S) / POOLED) + shrinkage * np.eye(POOLED))
    A = shrinkage**0.5 * (axes * values**-0.5) @ axes.T
    np.testing.assert_allclose(inputs.whitening(shrinkage).numpy(), A, atol=1e-5)
    assert np.linalg.eigvalsh(A).max() <= 1
    np.testing.assert_allclose(inputs.x.numpy(), x * present[:, None, None], atol=1e-5)
    assert not inputs.x[torch.from_numpy(~present)].any()
    nothing = Inputs(shifted, np.zeros(120, np.bool_), labels)
    assert not nothing.mean.any()
    assert not nothing.x.any()


# The head.


def test_without_whitening_the_own_subspaces_are_the_centred_inputs() -> None:
    """The cosine is that of late fusion of what is left of words and pictures without their means."""
    pooled = without(make_pooled(), words=[3, 4], picture=[5])
    fit = Fit(make_start(pooled), pooled, alone(120))
    kept = fit.head(HeadSettings(words=None, picture=None, picture_weight=0.4, shared_weight=0.0))
    changed = fit.head(HeadSettings(words=1.0, picture=1.0, picture_weight=0.4, shared_weight=0.0))
    fused = []
    for x, has in (
        (join_fields(pooled.words[:, 0], 0.6), pooled.has_words),
        (pooled.picture[:, 0], pooled.has_picture),
    ):
        centred = x.double().numpy() - x.double().numpy()[has].mean(0)
        fused.append(centred / np.linalg.norm(centred, axis=1, keepdims=True) * has[:, None])
    for modality, (w, p) in {"words": (1, 0), "picture": (0, 1), "both": (0.6, 0.4)}.items():
        expected = np.hstack([w**0.5 * fused[0], p**0.5 * fused[1]])
        norms = np.linalg.norm(expected, axis=1, keepdims=True)
        expected = expected / np.where(norms > 0, norms, 1)
        after, other = (embed(head, pooled, modality, 0) for head in (kept, changed))  # type: ignore[arg-type]
        np.testing.assert_allclose(after @ after.T, expected @ expected.T, atol=1e-5)
        assert np.abs(other @ other.T - expected @ expected.T).max() > 0.05


def test_the_settings_are_the_shares_of_the_cosine() -> None:
    """The five subspaces are orthogonal: the cosines of listings that have both add up by shares."""
    pooled = spelled_at_random(make_pooled())
    fit = make_fit(pooled, categorised(120))
    chosen = HeadSettings(
        words=2.0, picture=5.0, spelling=0.25, picture_weight=0.35, shared_weight=0.3, category_weight=0.1
    )
    head, parts = fit.head(chosen), []
    assert head.title_weight.item() == pytest.approx(0.6)
    for i in range(5):
        only = fit.head(chosen)
        with torch.no_grad():
            only.weights.copy_(F.one_hot(torch.tensor(i), 5))
        e = embed(only, pooled, "both", 0)
        np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, atol=1e-5)
        parts.append(e @ e.T)
    e = embed(head, pooled, "both", 0)
    shares = (0.75 * 0.39, 0.25 * 0.39, 0.21, 0.3, 0.1)
    np.testing.assert_allclose(e @ e.T, sum(a * part for a, part in zip(shares, parts, strict=True)), atol=1e-5)


def test_what_was_not_learned_has_no_share() -> None:
    """Without towers or without categories the others have the whole cosine, and settings of theirs change nothing."""
    pooled = make_pooled()
    untrained, uncategorised = Fit(make_start(pooled), pooled, alone(120)), make_fit(pooled, alone(120))
    settings = HeadSettings(
        shared_alone=0.2, category_alone=0.1, picture_weight=0.5, shared_weight=0.3, category_weight=0.4
    )
    for fit, alone_shares, both_shares in (
        (untrained, [1.0, 0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0, 0.0]),
        (uncategorised, [0.8, 0.0, 0.8, 0.2, 0.0], [0.35, 0.0, 0.35, 0.3, 0.0]),
    ):
        head = fit.head(settings)
        np.testing.assert_allclose(head.weights.detach().square().numpy(), [alone_shares, both_shares], atol=1e-6)
        assert head.category_levels == ()
        np.testing.assert_allclose(np.linalg.norm(embed(head, pooled, "both", 0), axis=1), 1, atol=1e-5)


def test_the_first_dimensions_are_the_principal_axes() -> None:
    """Of the listings' vectors, centred: uncorrelated, the widest first; a prefix keeps as much as any could. Before
    it is turned a head has the same cosines, in other dimensions."""
    pooled = make_pooled()
    fit = Fit(make_start(pooled, 24), pooled, categorised(120))
    fit.train_towers(OPTIONS, 0)
    before = embed(fit.head(HeadSettings()), pooled, "both", 0).astype(np.float64)
    e = embed(fit.turn(fit.head(HeadSettings())), pooled, "both", 0).astype(np.float64)
    np.testing.assert_allclose(e @ e.T, before @ before.T, atol=1e-5)
    covariance = np.cov(e.T, bias=True)
    spread = covariance.diagonal()
    assert (np.diff(spread) <= 1e-7).all()
    assert spread[0] > 2 * spread[-1]
    np.testing.assert_allclose(covariance, np.diag(spread), atol=1e-6)
    assert np.abs(np.cov(before.T, bias=True) - covariance).max() > 0.01


def test_the_heads_categories_are_the_softened_regressions() -> None:
    """Half of the logits that were fitted; their directions are the principal ones of the roots that words, pictures
    and both say of the listings, and hold all of their inner products."""
    pooled, labels = without(make_pooled(), words=[1], picture=[2]), categorised(120)
    fit = make_fit(pooled, labels)
    fitted = fit_categories(fit.words.x, fit.picture.x, labels)
    head = fit.head(HeadSettings())
    assert head.category_levels == (2, 6)
    for found, expected in zip(
        (head.words.categories, head.picture.categories, head.category_bias), fitted, strict=True
    ):
        torch.testing.assert_close(found.detach(), expected / 2)
    w, p = (part.x[:, 0].double().numpy() for part in fit.parts)
    C_w, C_p, bias = (tensor.double().numpy() / 2 for tensor in fitted)
    of_words, of_picture = w @ C_w.T, p @ C_p.T
    logits = np.concatenate([(of_words + bias)[pooled.has_words], (of_picture + bias)[pooled.has_picture]])
    logits = np.concatenate([logits, of_words + of_picture + bias])
    shares = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits[:, :2], logits[:, 2:])]
    roots = np.sqrt(np.hstack(shares))
    projected = roots @ fit.categories(40.0).directions.double().numpy().T
    np.testing.assert_allclose(projected @ projected.T, roots @ roots.T, atol=1e-4)
    squares = projected.T @ projected / (roots**2).sum()
    np.testing.assert_allclose(squares, np.diag(np.sort(squares.diagonal())[::-1]), atol=1e-6)
    with torch.no_grad():
        head.weights.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).expand(2, 5))
    e = embed(head, pooled, "both", 0)  # two levels, so that an inner product of roots is twice a cosine
    np.testing.assert_allclose(e @ e.T, roots[-120:] @ roots[-120:].T / 2, atol=1e-4)


def test_the_words_are_expected_to_speak_as_the_names_do() -> None:
    """So much as the settings say: what is expected is the names as the words' part reads them, of that length; a name
    without words expects nothing, and neither does no name at all."""
    pooled, labels = make_pooled(), categorised(120)
    names = torch.randn(8, 2, WIDTH, generator=torch.Generator().manual_seed(1))
    names[3] = 0
    fit, without = Fit(make_start(pooled), pooled, labels, names), Fit(make_start(pooled), pooled, labels)
    fit.train_towers(replace(OPTIONS, steps=1), 0)
    title, everything = (F.normalize(names, dim=-1)[:, field].double().numpy() for field in (0, 1))
    read = np.concatenate([0.6**0.5 * title, 0.4**0.5 * everything], axis=1) - fit.words.mean.double().numpy()
    expected = 15 * read / np.linalg.norm(read, axis=1, keepdims=True)
    expected[3] = 0
    assert fit.names is not None
    np.testing.assert_allclose(15 * fit.names.double().numpy(), expected, atol=1e-4)
    fitted = fit_categories(fit.words.x, fit.picture.x, labels, 15 * fit.names)
    head = fit.head(HeadSettings(names=15.0))
    for found, of_names in zip(
        (head.words.categories, head.picture.categories, head.category_bias), fitted, strict=True
    ):
        torch.testing.assert_close(found.detach(), of_names / 2)
    nothing = without.categories(15.0).weights.words
    assert torch.equal(fit.categories(0.0).weights.words, nothing)
    assert (head.words.categories - nothing).abs().max() > 1


def test_the_categories_get_so_many_dimensions_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = make_pooled()
    assert len(make_fit(pooled, categorised(120)).categories(40.0).directions) == 8
    monkeypatch.setattr(module, "CATEGORY_WIDTH", 3)
    fit = make_fit(pooled, categorised(120))
    assert len(fit.categories(40.0).directions) == 3
    head = fit.head(HeadSettings())
    assert head.category_projection.any(1).sum() == 3
    assert head.category_projection.shape == (VECTOR, 8)


def test_turning_a_head_leaves_the_fit_and_its_other_heads_alone() -> None:
    pooled = make_pooled()
    fit = make_fit(pooled, categorised(120))
    kept = fit.head(HeadSettings())
    first = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    assert not same_state(fit.turn(fit.head(HeadSettings())), kept)
    assert all(torch.equal(tensor, first[name]) for name, tensor in kept.state_dict().items())
    assert same_state(fit.head(HeadSettings()), kept)


def test_the_heads_towers_are_the_trained_towers() -> None:
    """Words, pictures and their meetings: all cosines are those of tower(unit(x - mu)), whatever the rotation."""
    pooled = without(make_pooled(noise=0.5), words=[1], picture=[2])
    start = make_start(pooled)
    fit = Fit(start, pooled, alone(120))
    fit.train_towers(OPTIONS, 0)
    assert fit.towers is not None
    head = fit.head(HeadSettings())
    fresh = make_pooled(seed=5, noise=0.5)
    raw = (join_fields(fresh.words[:, 1], 0.6), fresh.picture[:, 1])
    with torch.no_grad():
        trained = [
            F.normalize(tower(F.normalize(x - part.mean, dim=-1)), dim=-1)
            for tower, x, part in zip(fit.towers, raw, fit.parts, strict=True)
        ]
        copied = [part(x)[1] for part, x in zip((head.words, head.picture), raw, strict=True)]
    assert trained[0].shape == (120, fit.shared_width)
    torch.testing.assert_close(cosines(*copied), cosines(*trained), atol=1e-4, rtol=0)
    assert cosines(*trained).std() > 0.1
    assert module.linear_layers(start.picture.tower)[1].weight.abs().max() == 0  # the starting point is left alone
    x = torch.cat([head.words(join_fields(pooled.words[:, 0], 0.6))[1], head.picture(pooled.picture[:, 0])[1]])
    assert np.linalg.matrix_rank(x.detach().numpy(), tol=1e-4) <= fit.shared_width


@pytest.mark.parametrize("vector_width", [7, 24, 60])
def test_a_head_of_any_width_is_whole(vector_width: int) -> None:
    pooled = make_pooled()
    for labels in (alone(120), categorised(120)):
        fit = Fit(make_start(pooled, vector_width), pooled, labels)
        fit.train_towers(OPTIONS, 0)
        head = fit.turn(fit.head(HeadSettings()))
        for modality in MODALITIES:
            e = embed(head, pooled, modality, 1)
            np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, atol=1e-5)


# The towers' training.


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
    found = iter([0.1, 0.4, 0.2, 0.3, 0.3])
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
    trainer = TowerTrainer(fit.towers, fit, OPTIONS, 0)
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


def trainer_of(pooled: Pooled, labels: Labels, options: AlignOptions = OPTIONS) -> TowerTrainer:
    fit = Fit(make_start(pooled), pooled, labels)
    towers = torch.nn.ModuleList(module.make_tower(part.x.shape[-1], 16, 0.0) for part in fit.parts)
    return TowerTrainer(towers, fit, options, 0)


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
    found = TowerTrainer.indistinct(Fit(make_start(pooled), pooled, labels), np.array([0, 1, 2, 3, 4]))
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


# What it is for.


def test_aligned_views_find_their_listing() -> None:
    """Three directions of pure view noise drown the products at the start; fitted on others' views they do not."""
    known, asked = make_pooled(300, noise=2.0), make_pooled(200, seed=1, noise=2.0)
    start = make_start(known)
    fit = Fit(start, known, alone(300))
    fit.train_towers(replace(OPTIONS, steps=60), 0)
    head = fit.head(HeadSettings(words=0.1, picture=0.1))
    for modality in MODALITIES:
        recall = []
        for one in (start, head):
            base, queries = embed(one, asked, modality, 0), embed(one, asked, modality, 1)
            recall.append(((queries @ base.T).argmax(1) == np.arange(200)).mean())
        assert recall[1] > recall[0] + 0.2, (modality, recall)


def test_listings_of_one_product_come_nearer() -> None:
    """Groups alone show the noise: the views of this catalogue differ from their listings in nothing."""
    pooled = make_pooled(400, views=1, noise=2.0)
    words, picture = (x[:, :1].expand_as(x).clone() for x in (pooled.words, pooled.picture))
    words[1::2, :, :] = pooled.words[::2, 1:]
    picture[1::2, :, :] = pooled.picture[::2, 1:]  # the second listing of a product is another view of the first
    pairs = replace(pooled, words=words, picture=picture)
    known, asked = pairs[np.arange(200)], pairs[np.arange(200, 400)]
    start, found = make_start(known), []
    for labels in (alone(200), categorised(200)):
        head = Fit(start, known, labels).head(HeadSettings(words=0.1, picture=0.1))
        e = embed(head, asked, "both", 0)
        similar = e @ e.T
        np.fill_diagonal(similar, -1)
        found.append((similar.argmax(1) == np.arange(200) ^ 1).mean())
    assert found[1] > found[0] + 0.2, found


def test_spelling_is_compared_where_words_are() -> None:
    """The cosine by words is that of the words and of their spelling, by their shares; the picture is as it was. A
    catalogue in which nothing is spelled gives spelling no share."""
    pooled = make_pooled(40)
    spelled = spelled_at_random(pooled)
    fit = Fit(make_start(pooled, 1000), spelled, alone(40))  # all directions of the spelling find room
    heads = [fit.head(HeadSettings(spelling=share)) for share in (0.3, 0.0, 1.0)]
    found, words, spelling = (vectors @ vectors.T for vectors in (embed(head, spelled, "words", 0) for head in heads))
    np.testing.assert_allclose(found, 0.7 * words + 0.3 * spelling, atol=1e-5)
    exact = spelled.spelling[:, 0] @ spelled.spelling[:, 0].T
    np.testing.assert_allclose(spelling, exact.numpy(), atol=1e-4)
    picture, as_before = (embed(head, spelled, "picture", 0) for head in heads[:2])
    np.testing.assert_array_equal(picture, as_before)
    assert not Fit(make_start(pooled), pooled, alone(40)).head(HeadSettings()).weights[:, 1].any()


def test_categories_bring_words_and_pictures_of_a_kind_together() -> None:
    """Words of unseen listings find pictures of their category, which the towers have no need to learn."""
    num, rng = 240, np.random.default_rng(0)
    kind = np.arange(num) % 4
    centres = rng.normal(size=(4, WIDTH)), rng.normal(size=(4, POOLED))
    words, picture = (
        torch.from_numpy(of[kind][:, None] + 0.7 * rng.normal(size=(num, 3, of.shape[1]))).float() for of in centres
    )
    pooled = replace(make_pooled(num, 2), words=torch.stack([words, words], dim=2), picture=picture)
    known, asked = pooled[np.arange(120)], pooled[np.arange(120, num)]
    labels = replace(alone(120), categories=kind[:120, None], levels=(4,), leaves=kind[:120])
    fit, found = make_fit(known, labels), []
    for category_alone in (0.0, 0.4):
        head = fit.head(HeadSettings(category_alone=category_alone))
        similar = embed(head, asked, "words", 0) @ embed(head, asked, "picture", 0).T
        found.append((kind[120:][similar.argmax(1)] == kind[120:]).mean())
    assert found[1] > max(found[0], 0.8), found
