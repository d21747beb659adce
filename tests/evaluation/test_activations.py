"""Activation figures: as numpy computes them over one listing at a time, however they are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from item.catalog.listing import Listing
from item.evaluation.activations import Moments, feed_forward_activations
from item.model.batch import collate
from item.model.encoder import ITEm
from item.preprocessing.preprocessor import Preprocessor
from tests.model import oracle


def test_figures_equal_numpys_listing_by_listing(
    tiny_model: ITEm, listings: list[Listing], preprocessor: Preprocessor
) -> None:
    prepared = [preprocessor(listing) for listing in listings]
    batches = [collate(prepared[start : start + 16]) for start in (0, 16, 32)]
    assert any(not tiny_model.present(batch).all() for batch in batches)
    outputs: list[list[np.ndarray]] = [[], []]
    w, config = oracle.weights_of(tiny_model), tiny_model.config
    for one in prepared:
        ids = None if one.word_ids is None else one.word_ids.tolist()
        x = oracle.embed(w, config, ids, one.pixels)
        is_text = np.arange(len(x)) < 1 + len(ids or [])
        for i in range(config.num_layers):
            gate = w["gates"][i] * np.outer(is_text, ~is_text)
            attended = oracle.attended(w, config, f"layers.{i}", x, gate)
            outputs[i].append(oracle.feed_forward(w, f"layers.{i}", attended).ravel())
            x = oracle.layer(w, config, f"layers.{i}", x, gate)
    figures = feed_forward_activations(tiny_model, iter(batches))
    for found, values in zip(figures, map(np.concatenate, outputs), strict=True):
        centred = values - values.mean()
        assert found.max_abs == pytest.approx(np.abs(values).max(), rel=1e-5)
        assert found.kurtosis == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2, rel=1e-4)
    assert figures[0] != figures[1]
    assert not any(module._forward_hooks for module in tiny_model.modules())


def test_kurtosis_of_known_distributions() -> None:
    """3 of a normal one and 1.8 of a uniform one, wherever and however wide; one value far out gives far more."""
    generator = torch.Generator().manual_seed(0)
    for x, expected in ((torch.randn(200_000, generator=generator), 3.0), (torch.rand(200_000), 1.8)):
        moments = Moments()
        for part in torch.split(5 + 4 * x, 30_000):
            moments.add(part)
        assert moments.result().kurtosis == pytest.approx(expected, rel=0.03)
    moments.add(torch.tensor([[900.0]]))
    assert moments.result().max_abs == 900
    assert moments.result().kurtosis > 100
