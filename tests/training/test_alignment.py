"""Fitting the vector head on views: its equations in numpy float64, and what it brings where it can be known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from item.model.vector import join_fields
from item.preprocessing.prepared import MODALITIES
from tests.training.pooled_views import (
    OPTIONS,
    POOLED,
    VECTOR,
    WIDTH,
    alone,
    categorised,
    make_fit,
    make_pooled,
    make_start,
    same_state,
    spelled_at_random,
    without,
)
from training import alignment as module
from training.alignment import Fit, HeadSettings
from training.categories import fit_categories
from training.pooled import embed
from training.towers import linear_layers


def cosines(*parts: torch.Tensor) -> torch.Tensor:
    """Of all rows of all parts with each other."""
    x = F.normalize(torch.cat(parts), dim=1)
    return x @ x.T


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
    assert linear_layers(start.picture.tower)[1].weight.abs().max() == 0  # the starting point is left alone
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
    """Words of unseen listings find pictures of their category, without the towers."""
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
        head = fit.head(HeadSettings(shared_alone=0.0, category_alone=category_alone))
        similar = embed(head, asked, "words", 0) @ embed(head, asked, "picture", 0).T
        found.append((kind[120:][similar.argmax(1)] == kind[120:]).mean())
    assert found[0] < 0.5 < 0.9 < found[1], found
