"""Pooled states and features: they are the model's own, computed once, and kept under all that they depend on."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from item.catalog.listing import Listing, Picture
from item.model.batch import collate
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.prepared import MODALITIES, Modality
from item.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from item.preprocessing.spelling import spelling
from training import pooled as module
from training.pooled import Pooled, Pooler, cache_key, embed, pool_listings, pool_names

K = 2


@pytest.fixture
def model(tiny_model: ITEm) -> ITEm:
    """Its words do not look at pictures: a listing's means are those of its words alone."""
    with torch.no_grad():
        tiny_model.gates.fill_(-1e4)
    return tiny_model


def fitted(model: ITEm, pooled: Pooled, *, whiten: bool = False) -> ITEm:
    words, picture = (torch.from_numpy(has) for has in (pooled.has_words, pooled.has_picture))
    model.vector.fit(pooled.words[words, 0], pooled.picture[picture, 0], 0.5, whiten=whiten)
    return model


@pytest.mark.parametrize("modality", MODALITIES)
def test_view_0_is_embedded_as_the_model_itself_does(
    model: ITEm, preprocessor: Preprocessor, listings: list[Listing], tmp_path: Path, modality: Modality
) -> None:
    """Listing by listing, so that nothing is padded; float16 on disk is the whole difference."""
    pooled = pool_listings(tmp_path, model, preprocessor, listings, K, 0)
    fitted(model, pooled)
    found, first_view = embed(model.vector, pooled, modality, 0), embed(model.vector, pooled, modality, 1)
    assert found.dtype == np.float32
    there = 0
    for row, listing in enumerate(listings):
        prepared = preprocessor(listing).only(modality)
        if prepared is None:
            assert not found[row].any()
            continue
        there += 1
        with torch.inference_mode():
            expected = model.embed(collate([prepared]))[0].numpy()
        np.testing.assert_allclose(found[row], expected, atol=2e-3)
        assert np.linalg.norm(found[row]) == pytest.approx(1, abs=1e-5)
    assert there > 20
    assert np.abs(first_view - found).max() > 0.05  # a view is not the listing


def test_what_a_listing_lacks_is_marked_and_zero(
    model: ITEm, preprocessor: Preprocessor, listings: list[Listing], tmp_path: Path
) -> None:
    pooled = pool_listings(tmp_path, model, preprocessor, listings, K, 0)
    assert len(pooled) == len(listings)
    assert pooled.words.shape == (48, 1 + K, 2, 32)
    assert pooled.picture.shape == (48, 1 + K, model.stem.pooled_width)
    assert pooled.has_words.tolist() == [bool(listing.title) for listing in listings]
    assert pooled.has_picture.tolist() == [bool(listing.images) for listing in listings]
    assert not pooled.has_words.all()
    assert not pooled.has_picture.all()
    for values, has in ((pooled.words, pooled.has_words), (pooled.picture, pooled.has_picture)):
        assert (values.flatten(2).abs().amax(2) > 0).all(1).tolist() == has.tolist()
        assert not values[torch.from_numpy(~has)].any()
    rows = np.array([7, 3])
    some = pooled[rows]
    assert torch.equal(some.words, pooled.words[[7, 3]])
    assert torch.equal(some.picture, pooled.picture[[7, 3]])
    assert some.has_words.tolist() == pooled.has_words[rows].tolist()
    assert some.has_picture.tolist() == pooled.has_picture[rows].tolist()


def test_no_words_at_all_and_no_picture_at_all(
    model: ITEm, preprocessor: Preprocessor, listings: list[Listing], tmp_path: Path
) -> None:
    both = [listing for listing in listings if listing.title and listing.images][:6]
    for part in ([replace(one, title="", description="") for one in both], [replace(one, images=()) for one in both]):
        pooled = pool_listings(tmp_path, model, preprocessor, part, K, 0)
        fitted(model, pooled)
        has_words, has_picture = bool(part[0].title), bool(part[0].images)
        assert pooled.has_words.all() == has_words
        assert pooled.has_picture.all() == has_picture
        assert embed(model.vector, pooled, "words", 0).any(axis=1).all() == has_words
        assert embed(model.vector, pooled, "picture", 0).any(axis=1).all() == has_picture
        assert embed(model.vector, pooled, "both", 0).any(axis=1).all()


def test_a_view_whose_words_the_tokenizer_drops_is_the_listing(model: ITEm, preprocessor: Preprocessor) -> None:
    listing, nothing = Listing(title="red shirt"), Listing(title="\u200b")
    assert preprocessor.words(nothing) is None
    means, spellings, has_words = Pooler(model.eval(), preprocessor).words(
        [[listing, nothing, Listing(title="blue mug")]]
    )
    assert has_words.tolist() == [True]
    expected = [spelling(listing), spelling(listing), spelling(Listing(title="blue mug"))]
    np.testing.assert_array_equal(spellings[0], expected)
    np.testing.assert_allclose(means[0, 1], means[0, 0], atol=1e-6)
    assert np.abs(means[0, 2] - means[0, 0]).max() > 0.01


def test_a_categorys_name_is_its_path_with_the_leaf_first(model: ITEm, preprocessor: Preprocessor) -> None:
    """And so are those above it, once each; a name of which the tokenizer keeps nothing is zero."""
    names = pool_names(model, preprocessor, [("blue", "shirt"), ("blue", "mug"), ("\u200b",), ()])
    assert list(names) == [("blue",), ("blue", "mug"), ("blue", "shirt"), ("\u200b",)]
    as_listing, *_ = Pooler(model.eval(), preprocessor).words([[Listing(title="shirt blue")]])
    np.testing.assert_allclose(names["blue", "shirt"].numpy(), as_listing[0, 0], atol=1e-6)
    assert (names["blue", "shirt"] - names["blue", "mug"]).abs().max() > 0.01
    assert not names[("\u200b",)].any()
    assert pool_names(model, preprocessor, [()]) == {}


def test_an_interrupted_pooling_goes_on_bit_for_bit(
    model: ITEm,
    preprocessor: Preprocessor,
    listings: list[Listing],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)
    whole = pool_listings(tmp_path / "whole", model, preprocessor, listings, K, 0)
    calls, words = 0, Pooler.words

    def killed(self: Pooler, texts: list[list[Listing]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return words(self, texts)

    monkeypatch.setattr(Pooler, "words", killed)
    with pytest.raises(KeyboardInterrupt):
        pool_listings(tmp_path / "cut", model, preprocessor, listings, K, 0)
    cut = pool_listings(tmp_path / "cut", model, preprocessor, listings, K, 0)
    assert calls == 6  # the first two of five chunks are not computed again
    pool_listings(tmp_path / "cut", model, preprocessor, listings, K, 0)
    assert calls == 6
    for a, b in ((whole.words, cut.words), (whole.picture, cut.picture)):
        assert torch.equal(a, b)
    assert whole.has_words.tolist() == cut.has_words.tolist()
    assert whole.has_picture.tolist() == cut.has_picture.tolist()


def test_other_seeds_draw_other_views_of_the_same_listings(
    model: ITEm, preprocessor: Preprocessor, listings: list[Listing], tmp_path: Path
) -> None:
    first, second = (pool_listings(tmp_path, model, preprocessor, listings[:12], K, seed) for seed in (0, 1))
    assert torch.equal(first.words[:, 0], second.words[:, 0])
    assert torch.equal(first.picture[:, 0], second.picture[:, 0])
    assert not torch.equal(first.words[:, 1], second.words[:, 1])
    assert not torch.equal(first.picture[:, 1], second.picture[:, 1])
    assert not torch.equal(first.picture[:, 1], first.picture[:, 2])


def test_the_key_is_of_all_that_decides_and_of_nothing_else(
    model: ITEm, preprocessor: Preprocessor, listings: list[Listing], tiny_config: ItemConfig
) -> None:
    few, settings = listings[:3], (1, K, 0)
    first = cache_key(model, preprocessor, few, settings)
    assert cache_key(copy.deepcopy(model), preprocessor, list(few), settings) == first
    changed = {
        "title": [replace(few[0], title="other"), *few[1:]],
        "description": [replace(few[0], description="other"), *few[1:]],
        "picture": [replace(few[0], images=(Picture(data=b"other"),)), *few[1:]],
        "no picture": [replace(few[0], images=()), *few[1:]],
        "order": few[::-1],
        "fewer": few[:2],
    }
    keys = {name: cache_key(model, preprocessor, rows, settings) for name, rows in changed.items()}
    keys |= {f"settings {s}": cache_key(model, preprocessor, few, s) for s in ((1, K, 1), (1, K + 1, 0), (2, K, 0))}
    reader = Preprocessor(PreprocessorConfig(max_words=11, picture_size=32), preprocessor.tokenizer)
    keys["preprocessing"] = cache_key(model, reader, few, settings)
    for name in ("stem.embedding.proj.weight", "layers.1.up.weight", "gates"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            dict(other.named_parameters())[name].add_(0.5)
        keys[name] = cache_key(other, preprocessor, few, settings)
    heads = ITEm(replace(tiny_config, num_heads=2)).eval()
    heads.load_state_dict(model.state_dict())
    keys["number of heads"] = cache_key(heads, preprocessor, few, settings)
    assert len({first, *keys.values()}) == 1 + len(keys), keys

    encoder = {k: v for k, v in model.state_dict().items() if not k.startswith("vector.")}
    for changes in ({"vector_width": 40}, {"category_levels": (2, 3)}):
        other_head = ITEm(replace(tiny_config, **changes)).eval()
        other_head.load_state_dict(encoder, strict=False)
        assert cache_key(other_head, preprocessor, few, settings) == first, changes
    with torch.no_grad():
        model.vector.weights.add_(1)
    assert cache_key(model, preprocessor, few, settings) == first
    assert cache_key(model, preprocessor, [replace(few[0], category=("x",)), *few[1:]], settings) == first
