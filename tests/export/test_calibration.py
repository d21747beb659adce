"""What is kept of the linear layers' inputs: those of tokens that are there, the same ones in every layer."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch

from item.catalog.listing import Listing
from item.export.calibration import collect_inputs
from item.model.batch import collate
from item.model.encoder import ITEm, Layer
from item.preprocessing.preprocessor import Preprocessor


def sorted_rows(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.T[::-1])]


def test_all_tokens_of_a_few_listings_are_kept(
    tiny_model: ITEm, listings: list[Listing], preprocessor: Preprocessor
) -> None:
    """Those that attention reads and those that the MLP reads, of listings of unlike length, and no padding."""
    prepared = [preprocessor(listing) for listing in listings[:8]]
    inputs = collect_inputs(tiny_model, prepared)
    batch = collate(prepared)
    present = tiny_model.present(batch)
    assert not present.all()
    with torch.no_grad():
        x = tiny_model.embed_tokens(batch, tiny_model.stem_features(batch), None)
        is_text = (torch.arange(x.shape[1]) < 1 + batch.word_ids.shape[1])[None]
        for index, bias in enumerate(tiny_model.attention_biases(present, is_text)):
            layer = cast(Layer, tiny_model.layers[index])
            middle = layer.attention_norm(x + layer.attention(x, bias))
            hidden = torch.nn.functional.gelu(layer.up(middle))
            for name, expected in (("qkv", x), ("up", middle), ("down", hidden)):
                kept = inputs[f"layers.{index}.{name}"]
                np.testing.assert_allclose(sorted_rows(kept), sorted_rows(expected[present].numpy()), atol=1e-5)
            x = layer(x, bias)
    assert sorted(inputs) == sorted(f"layers.{i}.{name}" for i in range(2) for name in ("qkv", "output", "up", "down"))


def test_a_row_is_the_same_token_in_every_layer(
    tiny_model: ITEm, listings: list[Listing], preprocessor: Preprocessor
) -> None:
    inputs = collect_inputs(tiny_model, [preprocessor(listing) for listing in listings[:8]])
    layer = cast(Layer, tiny_model.layers[0])
    with torch.no_grad():
        x, mixed = (torch.from_numpy(inputs[f"layers.0.{name}"]) for name in ("qkv", "output"))
        middle = layer.attention_norm(x + layer.attention.output(mixed))
    np.testing.assert_allclose(inputs["layers.0.up"], middle.numpy(), atol=1e-5)


def test_a_large_sample_is_cut(
    tiny_model: ITEm, listings: list[Listing], preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To about as many rows as are wanted, of early and of late listings, and always to the same ones."""
    prepared = [preprocessor(listing) for listing in listings]
    monkeypatch.setattr("item.export.calibration.ROWS", 100)
    inputs, again = collect_inputs(tiny_model, prepared), collect_inputs(tiny_model, prepared)
    assert {len(rows) for rows in inputs.values()} <= {100, 101}
    assert all(np.array_equal(rows, again[name]) for name, rows in inputs.items())
    late = collect_inputs(tiny_model, [*prepared[:32], *prepared[:16]])
    assert not np.array_equal(late["layers.0.qkv"], inputs["layers.0.qkv"])
