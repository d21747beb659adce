"""What a variant loses, on arrays small enough to check by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from item.catalog.listing import Listing
from item.engine import Engine, Vectors, load_engine
from item.export.calibration import shown_by
from item.export.loss import MIN_LISTINGS, MIN_OVERLAP, TIE, Loss, compare, keeps_space, measure_loss, overlap
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from item.preprocessing.preprocessor import Preprocessor

GOOD = Loss(listings=1000, cosine_mean=1.0, cosine_min=1.0, overlap_at_10=0.97, overlap_at_10_own=0.5, speed=None)


def on_circle(*degrees: float) -> Vectors:
    radians = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def unit_rows(seed: int, count: int) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_nothing_lost_where_vectors_are_the_same() -> None:
    vectors = unit_rows(0, 40)
    loss = compare(vectors, vectors)
    assert (loss.listings, loss.overlap_at_10, loss.overlap_at_10_own) == (40, 1, 1)
    assert loss.cosine_mean == pytest.approx(1)
    assert loss.cosine_min == pytest.approx(1)


def test_cosines_are_of_the_same_listing() -> None:
    full = on_circle(*range(0, 24, 2))
    variant = on_circle(*range(0, 22, 2), 22 + 60)
    loss = compare(variant, full)
    assert loss.cosine_min == pytest.approx(0.5, abs=1e-6)
    assert loss.cosine_mean == pytest.approx((11 + 0.5) / 12, abs=1e-6)


def test_turned_vectors_keep_their_own_neighbours_alone() -> None:
    """A variant in a turned space finds all in an index of its own, and little in the model's."""
    full = unit_rows(0, 60)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))
    loss = compare((full @ turn).astype(np.float32), full)
    assert loss.overlap_at_10_own == 1
    assert loss.overlap_at_10 < 0.6


def test_nothing_is_lost_where_cosines_are_just_so_far_apart() -> None:
    """In float32 a > b + c and a - b > c are not the same."""
    tenth = np.linspace(0.1, 0.9, 5000, dtype=np.float32)[:, None]
    same = tenth + np.array([TIE] * 9 + [0.0] + [-0.05] * 5, dtype=np.float32)
    assert overlap(same, same) == 1


def test_one_neighbour_of_ten_lost_is_a_tenth() -> None:
    expected = np.arange(40, dtype=np.float32).reshape(2, 20)  # the ten largest are the last ten
    found = expected.copy()
    assert overlap(found, expected) == 1
    found[1, 19], found[1, 0] = found[1, 0], found[1, 19]
    assert overlap(found, expected) == pytest.approx(0.95)
    assert overlap(-expected, expected) == 0


def test_which_of_equal_listings_comes_first_says_nothing() -> None:
    expected = np.zeros((1, 30), np.float32)
    expected[0, :5] = 1  # and 25 share the sixth place
    found = expected.copy()
    found[0, 25:] += 0.5
    assert overlap(found, expected) == 1
    found[0, 4] = -1
    assert overlap(found, expected) == pytest.approx(0.9)  # one that is equal to the sixth is not the fifth
    expected[0, 5:] = np.linspace(0.1, 0.5, 25)
    assert overlap(found, expected) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, False),
        ({"words": GOOD}, True),
        ({"words": GOOD, "picture": GOOD, "both": GOOD}, True),
        ({"words": GOOD, "picture": replace(GOOD, overlap_at_10=MIN_OVERLAP - 1e-6)}, False),
        ({"words": replace(GOOD, listings=MIN_LISTINGS - 1), "picture": GOOD}, False),
        ({"words": replace(GOOD, overlap_at_10=0.5, overlap_at_10_own=1.0)}, False),
    ],
)
def test_a_space_is_kept_where_every_modality_is(losses: dict[Modality, Loss], expected: bool) -> None:
    assert keeps_space(losses) is expected


def test_a_listing_is_shown_by_what_it_has_whole() -> None:
    words, pixels = np.zeros(2, np.int32), np.zeros((3, 2, 2), np.uint8)
    listings = [
        Prepared(word_ids=words),
        Prepared(pixels=pixels),
        Prepared(word_ids=words, pixels=pixels),
        Prepared(word_ids=words),
    ]
    parts = {
        modality: [(one.word_ids is not None, one.pixels is not None) for one in shown_by(listings, modality)]
        for modality in MODALITIES
    }
    assert parts == {"words": [(True, False)] * 3, "picture": [(False, True)] * 2, "both": [(True, True)]}


def test_the_loss_is_by_modalities_that_eleven_listings_have(
    model_folder: Path, preprocessor: Preprocessor, listings: list[Listing]
) -> None:
    engine = load_engine(model_folder, "cpu", variant="torch")
    whole = [one for one in map(preprocessor, listings) if one.word_ids is not None and one.pixels is not None]
    some = [*whole[:10], *(Prepared(word_ids=one.word_ids) for one in whole[10:15])]
    assert {modality: loss.listings for modality, loss in measure_loss(engine, engine, some).items()} == {"words": 15}
    losses = measure_loss(engine, engine, whole[:11])
    assert {modality: loss.listings for modality, loss in losses.items()} == dict.fromkeys(MODALITIES, 11)
    assert all(loss.overlap_at_10 == loss.overlap_at_10_own == 1 for loss in losses.values())
    assert all(loss.cosine_min == pytest.approx(1, abs=1e-5) for loss in losses.values())


def test_the_speed_is_full_precisions_time_over_the_variants(
    model_folder: Path, preprocessor: Preprocessor, listings: list[Listing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only the engines move, a second a listing and three; by the median of the chunks."""
    clock = 0.0
    monkeypatch.setattr("item.export.loss.time", SimpleNamespace(perf_counter=lambda: clock))
    monkeypatch.setattr("item.export.loss.CHUNK", 4)
    engine = load_engine(model_folder, "cpu", variant="torch")

    def taking(seconds: float) -> Engine:
        def encode(prepared: Sequence[Prepared]) -> Vectors:
            nonlocal clock
            clock += seconds * len(prepared) if clock else 100.0  # the first run of all is slow
            return engine.encode_prepared(prepared)

        return cast(Engine, SimpleNamespace(encode_prepared=encode))

    whole = [one for one in map(preprocessor, listings) if one.word_ids is not None and one.pixels is not None]
    losses = measure_loss(taking(1.0), taking(3.0), whole[:12])
    assert {modality: loss.speed for modality, loss in losses.items()} == dict.fromkeys(MODALITIES, 3.0)
