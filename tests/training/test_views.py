"""Views of listings: pure functions of listing and generator, of what is there alone, on pictures of any size."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from item.catalog.listing import Listing, Picture
from training.views import CHANGES, WORK_SIZE, Change, exchange_background, listing_view, misspell, picture_view, retype

WORD = st.text(alphabet="abcdefgh0123äß", min_size=1, max_size=9)
SEED = st.integers(0, 2**32)
SIZES = ((1, 1), (3, 500), (500, 3), (2, 5000), (5000, 1), (7, 9), (300, 200), (256, 256))


def noisy(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@given(title=st.lists(WORD, max_size=8), description=st.lists(WORD, max_size=200), seed=SEED)
def test_a_listing_keeps_some_of_its_words_and_gains_no_field(
    title: list[str], description: list[str], seed: int
) -> None:
    picture = Picture(data=b"x", reference="a.png")
    listing = Listing(
        product_id="a",
        title=" ".join(title),
        description=" ".join(description),
        images=(picture,),
        category=("shop", "mug"),
        group_id="g",
        split="train",
    )
    view = listing_view(listing, np.random.default_rng(seed))
    assert view == listing_view(listing, np.random.default_rng(seed))
    assert bool(view.title) == bool(title)
    assert bool(view.title or view.description) == bool(title or description)
    assert description or not view.description
    assert (view.product_id, view.images, view.category, view.group_id, view.split) == (
        "a",
        (picture,),
        ("shop", "mug"),
        "g",
        "train",
    )


def test_other_seeds_draw_other_views() -> None:
    listing = Listing(title="a blue mug of fine china", description="holds a lot of tea and keeps it warm for hours")
    views = {listing_view(listing, np.random.default_rng(seed)).title for seed in range(20)}
    assert len(views) > 10
    image = noisy((60, 40))
    pictures = {picture_view(image, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert len(pictures) > 15


@given(words=st.lists(WORD, min_size=1, max_size=12), drop=st.floats(0, 0.5), shuffled=st.booleans(), seed=SEED)
def test_retyped_words_are_some_of_the_words(words: list[str], drop: float, shuffled: bool, seed: int) -> None:
    kept = retype(words, np.random.default_rng(seed), drop, 0.0, shuffled)
    assert len(kept) >= 1
    assert not Counter(kept) - Counter(words)
    if not drop:
        assert sorted(kept) == sorted(words)
    if not shuffled:
        rest = iter(words)
        assert all(word in rest for word in kept)  # in their order


def test_retyping_drops_misspells_and_shuffles() -> None:
    words, rng = [f"word{i}" for i in range(1000)], np.random.default_rng(0)
    assert 450 < len(retype(words, rng, 0.5, 0.0, False)) < 550
    assert retype(words, rng, 0.0, 0.0, True) != words
    same = sum(a == b for a, b in zip(words, retype(words, rng, 0.0, 0.5, False), strict=True))
    assert 450 < same < 600  # a slip may exchange equal letters
    assert retype([], rng, 0.5, 0.5, True) == []


def len_common(a: str, b: str) -> int:
    """Letters before the first difference."""
    return next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))


@given(word=WORD, seed=SEED)
def test_a_misspelt_word_is_one_slip_away(word: str, seed: int) -> None:
    found = misspell(word, np.random.default_rng(seed))
    if len(word) < 3:
        assert found == word
        return
    assert found
    start, end = len_common(word, found), len_common(word[::-1], found[::-1])
    assert abs(len(found) - len(word)) <= 1
    assert start + end >= len(word) - 2  # all but two neighbours stay


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", [change for change, _ in CHANGES])
def test_every_change_takes_every_size(change: Change, size: tuple[int, int]) -> None:
    for seed in range(4):
        image = noisy(size, seed)
        before = image.tobytes()
        first, again = (change(image, np.random.default_rng(seed)) for _ in range(2))
        assert first.mode == "RGB"
        assert 1 <= first.width <= image.width
        assert 1 <= first.height <= image.height
        assert first.tobytes() == again.tobytes()
        assert image.tobytes() == before  # the picture itself is left alone


@settings(max_examples=40)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=SEED)
def test_picture_views_are_rgb_of_bounded_size(width: int, height: int, seed: int) -> None:
    image = noisy((width, height))
    view = picture_view(image, np.random.default_rng(seed))
    assert view.mode == "RGB"
    assert 1 <= min(view.size)
    assert max(view.size) <= min(WORK_SIZE, max(image.size))
    assert view.tobytes() == picture_view(image, np.random.default_rng(seed)).tobytes()
    assert image.size == (width, height)
    file = io.BytesIO()
    view.save(file, "PNG")  # it is loaded, and whole


@pytest.mark.parametrize("name", ["cut", "mirror", "light", "coarsen", "set_on_canvas"])
def test_every_change_changes(name: str) -> None:
    change = next(change for change, _ in CHANGES if change.__name__ == name)
    image = noisy((60, 40))
    assert change(image, np.random.default_rng(0)).tobytes() != image.tobytes()


def test_a_cut_is_at_least_what_it_says() -> None:
    """Of noise: a part of the picture, at its own pixels; no side of less than 0.4."""
    change = next(change for change, _ in CHANGES if change.__name__ == "cut")
    image = noisy((60, 40))
    for seed in range(30):
        part = pixels_of(change(image, np.random.default_rng(seed)))
        assert part.shape[0] >= 0.4 * 40
        assert part.shape[1] >= 0.5 * 60 - 1
        windows = np.lib.stride_tricks.sliding_window_view(pixels_of(image), part.shape)
        assert (windows == part).all(axis=(3, 4, 5)).any()


def test_a_uniform_background_is_exchanged_and_the_object_stays() -> None:
    image = Image.new("RGB", (80, 60), (250, 250, 250))
    ImageDraw.Draw(image).rectangle((20, 15, 60, 45), fill=(180, 20, 30))
    view, before = pixels_of(exchange_background(image, np.random.default_rng(3))), pixels_of(image)
    inside = np.zeros((60, 80), np.bool_)
    inside[18:43, 23:58] = True  # the median filter rounds the edges
    np.testing.assert_array_equal(view[inside], before[inside])
    outside = np.ones((60, 80), np.bool_)
    outside[12:49, 17:64] = False
    assert (np.abs(view[outside].astype(int) - 250).max(axis=1) > 5).mean() > 0.9


def test_without_a_uniform_background_the_picture_stays() -> None:
    for image in (noisy((40, 30)), Image.new("RGB", (40, 30), (9, 9, 9))):  # nothing but object, nothing but ground
        assert exchange_background(image, np.random.default_rng(0)).tobytes() == image.tobytes()
