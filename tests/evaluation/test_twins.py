from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from item.catalog.listing import Listing, Picture
from item.errors import PictureError
from item.evaluation.twins import HASH_SIDE, MAX_BITS, folded_title, near_twins, picture_hash
from item.preprocessing.config import PreprocessorConfig

LIMITS = PreprocessorConfig()


def photograph(
    seed: int, change: Callable[[Image.Image], Image.Image] = lambda image: image, quality: int = 90
) -> Picture:
    """Smooth random blobs, so that shrinking and compressing change little."""
    blobs = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = change(Image.fromarray(blobs).resize((160, 160), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Picture(data=file.getvalue())


def of(picture: Picture) -> Listing:
    return Listing(images=(picture,))


def test_the_same_photograph_again_is_a_twin_and_another_is_none() -> None:
    train = [of(photograph(0)), Listing(title="no picture")]
    again = photograph(0, lambda image: image.resize((120, 120)), quality=60)
    brighter = photograph(0, lambda image: image.point(lambda value: 20 + 0.9 * value))
    mirrored = photograph(0, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    asked = [of(picture) for picture in (again, brighter, mirrored, photograph(1))]
    assert near_twins(asked, train, LIMITS).tolist() == [True, True, False, False]
    assert again.data != photograph(0).data


def test_hash_is_whether_each_cell_is_brighter_than_the_one_before() -> None:
    cells = np.random.default_rng(0).integers(0, 256, (HASH_SIDE, HASH_SIDE + 1), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(cells.repeat(4, axis=0).repeat(4, axis=1)).save(file, "PNG")
    expected = [row[i + 1] > row[i] for row in cells.tolist() for i in range(HASH_SIDE)]
    assert picture_hash(of(Picture(data=file.getvalue())), LIMITS).tolist() == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("num_bits", [MAX_BITS, MAX_BITS + 1])
def test_the_threshold(num_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"a": np.zeros(HASH_SIDE**2, bool), "b": np.arange(HASH_SIDE**2) < num_bits}
    monkeypatch.setattr("item.evaluation.twins.picture_hash", lambda listing, _: hashes[listing.product_id])
    a, b = (Listing(product_id=name) for name in hashes)
    assert near_twins([a], [b], LIMITS).tolist() == [num_bits <= MAX_BITS]


@given(st.text(), st.sampled_from([str.upper, str.title, lambda title: f"  {title}!", lambda title: f"({title}) - "]))
def test_case_punctuation_and_whitespace_of_titles_do_not_count(title: str, change: Callable[[str], str]) -> None:
    twin = Listing(title=change(title.replace("ß", "ss")))
    expected = bool(folded_title(twin)) and folded_title(twin) == folded_title(Listing(title=title))
    assert near_twins([twin], [Listing(title=title)], LIMITS).tolist() == [expected]


def test_titles() -> None:
    train = [Listing(title="Red  T-Shirt, M"), Listing(title="?!")]
    asked = [Listing(title=title) for title in ("red t shirt m", "red t shirt l", "", "...", "RED_T_SHIRT (M)")]
    assert near_twins(asked, train, LIMITS).tolist() == [True, False, False, False, True]
    assert near_twins(asked, [], LIMITS).tolist() == [False] * 5
    assert near_twins([], train, LIMITS).tolist() == []


def test_unreadable_pictures_are_said() -> None:
    with pytest.raises(PictureError):
        near_twins([of(Picture(data=b"none"))], [], LIMITS)
