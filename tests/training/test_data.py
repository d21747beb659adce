"""The order and the batches: pure functions of seed, step and worker; what is masked, and what is exchanged."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from item.catalog.listing import Listing
from item.model.objectives import MaskedBatch, cut_cells
from item.preprocessing.preprocessor import Preprocessor
from training.config import MaskingOptions
from training.data import PretrainingData
from training.order import rows_of_step


@given(n=st.integers(2, 40), seed=st.integers(0, 5), batch=st.integers(1, 50), workers=st.integers(1, 4))
def test_every_epoch_sees_every_row_once(n: int, seed: int, batch: int, workers: int) -> None:
    steps = -(-3 * n // batch)
    stream = []
    for step in range(steps):
        shares = [rows_of_step(n, seed, step, batch, rank, workers) for rank in range(workers)]
        merged = [shares[i % workers][i // workers] for i in range(batch)]
        assert merged == rows_of_step(n, seed, step, batch, 0, 1)
        stream += merged
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_order_depends_on_seed_and_epoch() -> None:
    assert rows_of_step(30, 0, 0, 30, 0, 1) != rows_of_step(30, 1, 0, 30, 0, 1)
    assert rows_of_step(30, 0, 0, 30, 0, 1) != rows_of_step(30, 0, 1, 30, 0, 1)


@pytest.fixture
def data(listings: list[Listing], preprocessor: Preprocessor) -> PretrainingData:
    words = [preprocessor.words(listing) for listing in listings]
    return PretrainingData(listings, words, preprocessor, 16, MaskingOptions(), seed=3)


def tensors_of(masked: MaskedBatch) -> list[torch.Tensor | None]:
    batch = masked.batch
    parts = [batch.word_ids, batch.word_mask, batch.picture_rows, batch.pixels, batch.features, masked.matched]
    parts += [masked.hidden_words]
    return [*parts, masked.masked_words, masked.word_targets, masked.masked_patches, masked.patch_targets]


def same(a: MaskedBatch, b: MaskedBatch) -> bool:
    pairs = zip(tensors_of(a), tensors_of(b), strict=True)
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def test_a_batch_is_a_function_of_its_step(data: PretrainingData) -> None:
    late = data.batch(5, 16)
    elsewhere = pickle.loads(pickle.dumps(data))  # as a worker gets it
    assert same(late, elsewhere.batch(5, 16))
    assert not same(late, data.batch(6, 16))
    assert not same(data.batch(5, 16, 0, 2), data.batch(5, 16, 1, 2))


def test_berts_masking_rule(data: PretrainingData) -> None:
    tokens, fates, asked, expected = data.preprocessor, np.zeros(3), 0, 0
    for step in range(150):
        masked = data.batch(step, 48)
        ids, targets, chosen = masked.batch.word_ids, masked.word_targets, masked.masked_words
        assert torch.equal(ids[~chosen], targets[~chosen])
        assert not (chosen & (targets == tokens.sep_id)).any()
        assert not (chosen & ~masked.batch.word_mask).any()
        is_mask = ids[chosen] == tokens.mask_id
        is_same = ids[chosen] == targets[chosen]
        fates += [int(is_mask.sum()), int((~is_mask & ~is_same).sum()), int(is_same.sum())]
        asked += int(chosen.sum())
        words = (masked.batch.word_mask & (targets != tokens.sep_id)).sum(1).tolist()
        expected += sum(max(1, round(0.15 * count)) for count in words if count)
    np.testing.assert_allclose(fates / asked, [0.8, 0.1, 0.1], atol=0.02)
    assert asked == expected


def test_listings_of_one_length_hide_equally_many_words(listings: list[Listing], preprocessor: Preprocessor) -> None:
    """All but those of which another word was drawn that happens to be [MASK]; independent fates give two in three."""
    words = [preprocessor.words(listing) for listing in listings]
    data = PretrainingData(listings, words, preprocessor, 16, MaskingOptions(words=0.6), seed=3)
    even = []
    for step in range(20):
        masked = data.batch(step, 48)
        asked, hidden = masked.masked_words.sum(1), masked.hidden_words.sum(1)
        even += ((hidden - 0.8 * asked).abs() < 1)[asked > 3].tolist()
        assert torch.equal(masked.hidden_words, masked.masked_words & (masked.batch.word_ids == preprocessor.mask_id))
    assert np.mean(even) > 0.99


def test_exchanged_pictures_are_hard_and_of_other_products(data: PretrainingData, listings: list[Listing]) -> None:
    exchanged = 0
    for step in range(20):
        rng = np.random.default_rng(step)
        rows = rows_of_step(len(listings), 3, step, 24, 0, 1)
        picture_of, matched = data.draw_pairs(rows, rng)
        for row, other, is_matched in zip(rows, picture_of, matched, strict=True):
            if is_matched:
                assert other == (row if listings[row].images else None)
            else:
                assert other is not None
                assert listings[other].category == listings[row].category
                assert listings[other].group_id != listings[row].group_id
                exchanged += 1
    assert 60 < exchanged < 140  # a quarter of those that have both, about


def test_the_encoder_never_gets_a_masked_pixel(data: PretrainingData) -> None:
    masked = data.batch(0, 24)
    assert masked.batch.pixels is not None
    assert masked.patch_targets is not None
    seen, whole = cut_cells(masked.batch.pixels, 4), cut_cells(masked.patch_targets, 4)
    assert (seen[masked.masked_patches] == 128).all()
    assert torch.equal(seen[~masked.masked_patches], whole[~masked.masked_patches])
    assert masked.masked_patches.sum(1).tolist() == [round(0.4 * 16)] * len(whole)
