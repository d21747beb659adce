"""The cache of a frozen stem's features: no leak through the stem, and an interrupted computation goes on."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from item.catalog.listing import Listing, Picture
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from training import features as module
from training.features import FeatureCache, cache_features


@pytest.fixture
def grid_model(tiny_config: ItemConfig) -> ITEm:
    torch.manual_seed(0)
    config = replace(tiny_config, stem="test_efficientnet.r160_in1k", picture_size=128)
    return ITEm(config).eval()


def listing(pixels: np.ndarray) -> Listing:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Listing(product_id="a", images=(Picture(data=file.getvalue()),))


def test_masked_pixels_never_reach_the_views(grid_model: ITEm, preprocessor: Preprocessor, tmp_path: Path) -> None:
    """Two pictures that differ in masked cells alone have the same masked views, and other whole features."""
    reader = Preprocessor(PreprocessorConfig(max_words=12, picture_size=128), preprocessor.tokenizer)
    plain = np.full((128, 128, 3), 200, np.uint8)
    cache = cache_features(tmp_path, grid_model, reader, [listing(plain)], 0.4, 1, 0)
    masked = cache.read("mask0", [0])[0]
    side = int(len(masked) ** 0.5)
    assert side == 4
    other, cell = plain.copy(), 128 // side
    for j in masked.nonzero().flatten().tolist():
        other[j // side * cell : (j // side + 1) * cell, j % side * cell : (j % side + 1) * cell] = (250, 10, 10)
    changed = cache_features(tmp_path, grid_model, reader, [listing(other)], 0.4, 1, 0)
    assert torch.equal(changed.read("mask0", [0])[0], masked)
    assert torch.equal(changed.read("view0", [0]), cache.read("view0", [0]))
    assert not torch.equal(changed.read("whole", [0]), cache.read("whole", [0]))


def test_an_interrupted_cache_goes_on(
    grid_model: ITEm,
    preprocessor: Preprocessor,
    listings: list[Listing],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Preprocessor(PreprocessorConfig(max_words=12, picture_size=128), preprocessor.tokenizer)
    monkeypatch.setattr(module, "CHUNK", 10)
    arguments = (grid_model, reader, listings, 0.4, 2, 0)
    whole = cache_features(tmp_path / "whole", *arguments)
    compute = module.compute
    calls: list[object] = []

    def killed(*values: object) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(values)
        compute(*values)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(module, "compute", killed)
        with pytest.raises(KeyboardInterrupt):
            cache_features(tmp_path / "cut", *arguments)
    [partial] = (tmp_path / "cut").iterdir()
    assert json.loads((partial / "done.json").read_text()) == 20
    cut = cache_features(tmp_path / "cut", *arguments)
    rows = list(range(len(listings)))
    for name in ("whole", "view0", "view1", "mask0", "mask1"):
        assert torch.equal(cut.read(name, rows), whole.read(name, rows)), name
    assert not torch.equal(whole.read("mask0", rows), whole.read("mask1", rows))


def test_another_picture_or_stem_has_another_cache(
    grid_model: ITEm, preprocessor: Preprocessor, listings: list[Listing], tmp_path: Path
) -> None:
    reader = Preprocessor(PreprocessorConfig(max_words=12, picture_size=128), preprocessor.tokenizer)

    def folder(rows: list[Listing], rate: float = 0.4) -> Path:
        cache: FeatureCache = cache_features(tmp_path, grid_model, reader, rows, rate, 0, 0)
        return cache.folder

    first = folder(listings[:3])
    assert folder(listings[:3]) == first
    assert folder(listings[1:4]) != first
    assert folder(listings[:3], rate=0.5) != first
    with torch.no_grad():
        next(grid_model.stem.backbone.parameters()).add_(1)  # type: ignore[attr-defined]
    assert folder(listings[:3]) != first
