"""How a listing is spelled: which n-grams there are, and what hashing them keeps of their inner products."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from item.catalog.listing import Listing
from item.preprocessing.spelling import MAX_CHARACTERS, SPELLING_WIDTH, ngrams, spelling, stack_spelling


def plain_ngrams(text: str) -> Counter[str]:
    """Slow: of each word of lower-case letters, with its ends."""
    return Counter(
        f" {word} "[start : start + n] for word in text.split() for n in (3, 4) for start in range(len(word) + 3 - n)
    )


def cosine(a: Counter[str], b: Counter[str]) -> float:
    inner = sum(count * b[gram] for gram, count in a.items())
    return float(inner / np.sqrt(sum(c * c for c in a.values()) * sum(c * c for c in b.values())))


TEXTS = st.lists(st.text("abcdefghij", min_size=1, max_size=8), min_size=1, max_size=8).map(" ".join)


@given(text=TEXTS)
def test_ngrams_are_those_of_each_word(text: str) -> None:
    assert sorted(Counter(ngrams(text).tolist()).values()) == sorted(plain_ngrams(text).values())


@given(text=TEXTS, other=TEXTS)
def test_the_same_ngrams_have_the_same_hashes(text: str, other: str) -> None:
    shared = Counter(ngrams(text).tolist()) & Counter(ngrams(other).tolist())
    assert shared.total() == (plain_ngrams(text) & plain_ngrams(other)).total()


def test_inner_products_stay_what_they_are() -> None:
    """Without bias, and with the deviation of random signs: at most sqrt((1 + cosine^2) / cells)."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrst"), 7)) for _ in range(400)]
    titles = [" ".join(rng.choice(words, 12)) for _ in range(120)]
    titles += [title.rsplit(" ", 4)[0] + " something else" for title in titles]
    sketches = np.stack([spelling(Listing(title=title)) for title in titles])
    grams = [plain_ngrams(title) for title in titles]
    pairs = [(a, b) for a in range(240) for b in range(a)]
    exact = np.array([cosine(grams[a], grams[b]) for a, b in pairs])
    errors = np.array([float(sketches[a] @ sketches[b]) for a, b in pairs]) - exact
    assert exact.max() > 0.6
    assert abs(errors.mean()) < 0.003
    assert 0.5 / SPELLING_WIDTH**0.5 < errors.std() < 1.2 * (2 / SPELLING_WIDTH) ** 0.5


def test_unit_norm_and_nothing_to_spell() -> None:
    assert np.linalg.norm(spelling(Listing(title="red mug", description="dishwasher safe"))) == pytest.approx(1)
    assert not spelling(Listing(title="!? \u200b", description="--")).any()
    assert spelling(Listing()).shape == (SPELLING_WIDTH,)


def test_case_width_and_punctuation_say_nothing() -> None:
    np.testing.assert_array_equal(spelling(Listing(title="RED, Mug!")), spelling(Listing(title="red \uff4dug")))


def test_a_misspelt_word_is_near_and_another_is_not() -> None:
    titles = ("wireless headphones", "wireles headfones", "oak table")
    right, wrong, other = (spelling(Listing(title=title)) for title in titles)
    assert right @ wrong > 0.5
    assert right @ other < 0.3


def test_title_and_description_count_alike_and_do_not_meet() -> None:
    np.testing.assert_array_equal(spelling(Listing(title="red", description="mug")), spelling(Listing(title="red mug")))


def test_what_is_read_is_bounded() -> None:
    word = "mug "
    long = Listing(title=word * (MAX_CHARACTERS // len(word)) + "chair", description="\ud800 lone")
    np.testing.assert_array_equal(
        spelling(long), spelling(Listing(title=word * (MAX_CHARACTERS // len(word)), description="\ud800 lone"))
    )


def test_stacked() -> None:
    one = spelling(Listing(title="red mug"))
    np.testing.assert_array_equal(stack_spelling([None, one]), [np.zeros(SPELLING_WIDTH), one])
    assert stack_spelling([]).shape == (0, SPELLING_WIDTH)
