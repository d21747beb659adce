from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from item.catalog.listing import Listing, Picture
from item.errors import ModelError, PictureError
from item.preprocessing.preprocessor import PreprocessorConfig
from training.frozen import PICTURE_SIZE, FrozenEncoder, StartingWeights, words_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(starting_weights: StartingWeights) -> FrozenEncoder:
    return FrozenEncoder(starting_weights, PreprocessorConfig(), CPU)


def test_words_are_mean_pooled_as_in_transformers(
    starting_weights: StartingWeights, encoder: FrozenEncoder, listings: list[Listing]
) -> None:
    found = encoder.encode(listings, "the test").words
    reference = BertModel.from_pretrained(starting_weights.words, add_pooling_layer=False).eval()
    tokens = encoder.preprocessor
    for row, listing in enumerate(listings):
        if not words_of(listing):
            assert not found[row].any()
            continue
        ids = tokens.tokenizer.encode(words_of(listing), add_special_tokens=False).ids
        with torch.inference_mode():
            states = reference(torch.tensor([[tokens.cls_id, *ids, tokens.sep_id]])).last_hidden_state[0]
        np.testing.assert_allclose(found[row], states.mean(dim=0).numpy(), atol=1e-5)
    assert len(np.unique(found.round(4), axis=0)) > 20


def test_pictures_are_pooled_as_in_timm(
    starting_weights: StartingWeights, encoder: FrozenEncoder, listings: list[Listing]
) -> None:
    found = encoder.encode(listings, "the test").picture
    overlay = {"file": str(starting_weights.stem_weights)}
    reference = timm.create_model(
        starting_weights.stem, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    mean, std = (torch.tensor(reference.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    for row, listing in enumerate(listings):
        pixels = encoder.preprocessor.picture(listing)
        if pixels is None:
            assert not found[row].any()
            continue
        assert pixels.shape == (3, PICTURE_SIZE, PICTURE_SIZE)
        with torch.inference_mode():
            pooled = reference(((torch.from_numpy(pixels) / 255 - mean) / std)[None])[0]
        np.testing.assert_allclose(found[row], pooled.numpy(), atol=1e-4)
    assert len(np.unique(found.round(4), axis=0)) > 20


def test_text_is_the_title_and_the_beginning_of_the_description() -> None:
    assert words_of(Listing(title="Mug", description="d" * 300)) == "Mug. " + "d" * 200
    assert words_of(Listing()) == ""


def test_equal_content_has_equal_vectors_to_the_last_bit(encoder: FrozenEncoder, listings: list[Listing]) -> None:
    rows = [listings[0], *listings[:9], replace(listings[0], product_id="again", title="Other words of another length")]
    found = encoder.encode(rows, "the test")
    np.testing.assert_array_equal(found.words[0], found.words[1])
    np.testing.assert_array_equal(found.picture[0], found.picture[-1])
    assert not np.array_equal(found.words[0], found.words[-1])


def test_cache_gives_the_same_vectors_and_only_for_the_same_content(
    starting_weights: StartingWeights, encoder: FrozenEncoder, listings: list[Listing], tmp_path: Path
) -> None:
    cached = FrozenEncoder(starting_weights, PreprocessorConfig(), CPU, tmp_path / "cache")
    first = cached.encode(listings, "the test")
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2  # one block of words, one of pictures
    for file in files:
        marked = np.load(file)
        marked[0] = 7
        np.save(file, marked)
    again = cached.encode(listings, "the test")
    assert (again.words == 7).all(axis=1).any()  # read from the cache
    assert (again.picture == 7).all(axis=1).any()
    other = [replace(listing, title=f"{listing.title}!") for listing in listings]
    changed = cached.encode(other, "the test")
    assert not (changed.words == 7).all(axis=1).any()
    np.testing.assert_array_equal(first.words, encoder.encode(listings, "the test").words)


def test_digest_is_that_of_the_weights(
    starting_weights: StartingWeights, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    assert FrozenEncoder(starting_weights, PreprocessorConfig(), CPU).digest == encoder.digest
    folder = tmp_path / "bert"
    shutil.copytree(starting_weights.words, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert FrozenEncoder(replace(starting_weights, words=folder), PreprocessorConfig(), CPU).digest != encoder.digest


def test_no_listings(encoder: FrozenEncoder) -> None:
    found = encoder.encode([], "the test")
    assert (found.words.shape[0], found.picture.shape[0]) == (0, 0)
    assert found.words.shape[1] == 32


def test_bad_weights_and_pictures(starting_weights: StartingWeights, encoder: FrozenEncoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        FrozenEncoder(replace(starting_weights, words=tmp_path / "none"), PreprocessorConfig(), CPU)
    with pytest.raises(ModelError, match="no such file"):
        FrozenEncoder(replace(starting_weights, stem_weights=tmp_path / "none"), PreprocessorConfig(), CPU)
    with pytest.raises(PictureError, match="is none of JPEG"):
        encoder.encode([Listing(images=(Picture(data=b"no picture", reference="a.png"),))], "the test")
