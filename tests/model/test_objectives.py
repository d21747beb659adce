"""The five objectives against their oracle, and the property that makes the global ones global."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from item.catalog.listing import Listing
from item.model.config import AttentionKind, ItemConfig
from item.model.encoder import Encoded, ITEm, PatchMask
from item.model.objectives import (
    MaskedBatch,
    ObjectiveWeights,
    Pretraining,
    blank_cells,
    cut_cells,
    weighted_sum,
)
from item.preprocessing.preprocessor import Preprocessor
from tests.model import oracle
from training.config import MaskingOptions
from training.data import PretrainingData

# What MLM and MIM alone use.
FOR_TOKENS = ["mask_vector", *(f"word_head.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias"))]


def make_data(listings: list[Listing], preprocessor: Preprocessor, num_cells: int) -> PretrainingData:
    words = [preprocessor.words(listing) for listing in listings]
    return PretrainingData(listings, words, preprocessor, num_cells, MaskingOptions(mismatched=0.5), seed=0)


@pytest.fixture
def masked(listings: list[Listing], preprocessor: Preprocessor, tiny_model: ITEm) -> MaskedBatch:
    return make_data(listings, preprocessor, tiny_model.stem.num_cells).batch(0, 24)


def make_pretraining(model: ITEm, late_layers: int | None, target_ids: Tensor | None = None) -> Pretraining:
    torch.manual_seed(0)
    module = Pretraining(model, stem_is_frozen=False, late_layers=late_layers, target_ids=target_ids).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


@pytest.fixture
def pretraining(tiny_model: ITEm) -> Pretraining:
    return make_pretraining(tiny_model, None)


@pytest.mark.parametrize("late_layers", [None, 0, 2])
def test_losses_equal_the_oracle(tiny_model: ITEm, masked: MaskedBatch, late_layers: int | None) -> None:
    target_ids = torch.unique(masked.word_targets)
    assert len(target_ids) < tiny_model.config.vocab_size
    pretraining = make_pretraining(tiny_model, late_layers, target_ids)
    with torch.no_grad():
        losses = pretraining.double()(masked)
    w = oracle.weights_of(pretraining)
    encoder = {name.removeprefix("model."): value for name, value in w.items() if name.startswith("model.")}
    config = pretraining.model.config
    batch, vocabulary = masked.batch, encoder["embeddings.words.weight"][target_ids]
    assert batch.pixels is not None and masked.patch_targets is not None  # noqa: PT018
    owners = {int(row): i for i, row in enumerate(batch.picture_rows)}
    mlm: list[float] = []
    gmlm: list[float] = []
    mim: list[float] = []
    gmim: list[float] = []
    itm: list[float] = []
    for row in range(len(batch)):
        n = int(batch.word_mask[row].sum())
        ids, picture = batch.word_ids[row, :n].tolist(), owners.get(row)
        pixels = None if picture is None else batch.pixels[picture].numpy()
        cells = None if picture is None else masked.masked_patches[picture].numpy()
        x = oracle.embed(encoder, config, ids or None, pixels, cells, w["mask_vector"])
        hidden: list[int] = []
        if late_layers is not None:
            hidden += [1 + i for i in masked.hidden_words[row].nonzero().flatten().tolist()]
            hidden += [] if cells is None else [1 + n + int(j) for j in np.flatnonzero(cells)]
        H = oracle.encode(encoder, config, x, 1 + n, hidden)
        g = H[0]
        for i in range(late_layers or 0):
            H = oracle.layer(w, config, f"late_layers.{i}", H, np.zeros((len(H), len(H))))
        if ids and picture is not None:
            logits = oracle.linear(w, "matching", g)
            itm.append(oracle.cross_entropy(logits, int(masked.matched[row])))
        if not masked.matched[row]:
            continue
        for i in masked.masked_words[row].nonzero().flatten().tolist():
            target = target_ids.tolist().index(int(masked.word_targets[row, i]))
            own = oracle.prediction_head(w, "word_head", H[1 + i])
            asked = np.concatenate([g, encoder["embeddings.word_positions.weight"][i + 1]])
            u = oracle.linear(w, "global_word.1", oracle.prediction_head(w, "global_word.0", asked))
            mlm.append(oracle.cross_entropy(own @ vocabulary.T + w["word_bias"], target))
            gmlm.append(oracle.cross_entropy(u @ vocabulary.T + w["word_bias"], target))
        if picture is None or cells is None:
            continue
        whole = oracle.patches_of(masked.patch_targets[picture].numpy(), config.patch_size)
        for j in np.flatnonzero(cells):
            target = (whole[j] - whole[j].mean()) / np.sqrt(whole[j].var() + 1e-5 / 127.5**2)
            asked = np.concatenate([g, encoder["embeddings.patch_positions.weight"][j]])
            u = oracle.linear(w, "global_patch.1", oracle.prediction_head(w, "global_patch.0", asked))
            for state, errors in ((H[1 + n + j], mim), (u, gmim)):
                built = oracle.linear(w, "patch_head.1", oracle.prediction_head(w, "patch_head.0", state))
                errors.append(((built - target) ** 2).mean())
    expected = {"itm": itm, "mlm": mlm, "mim": mim, "gmlm": gmlm, "gmim": gmim}
    if late_layers == 0:
        assert losses.pop("mlm") == losses.pop("mim") == 0
    for name, loss in losses.items():
        assert len(expected[name]) > 3, name
        assert loss.item() == pytest.approx(np.mean(expected[name]), rel=1e-5), name


@pytest.mark.parametrize("late_layers", [None, 0, 2])
def test_global_objectives_read_nothing_but_g(tiny_model: ITEm, masked: MaskedBatch, late_layers: int | None) -> None:
    """The derivative with respect to the encoder's last states is exactly zero everywhere but at [CLS]."""
    pretraining = make_pretraining(tiny_model, late_layers)
    encoded = pretraining.model(masked.batch, PatchMask(masked=masked.masked_patches, vector=pretraining.mask_vector))

    def gradient(name: str) -> Tensor:
        states = encoded.states.detach().requires_grad_()
        detached = Encoded(states, encoded.word_mask, encoded.picture_rows, encoded.features)
        pretraining.losses(detached, masked)[name].backward()  # type: ignore[no-untyped-call]
        assert states.grad is not None
        return states.grad

    for name in ("gmlm", "gmim"):
        assert gradient(name)[:, 0].abs().max() > 0
        assert torch.count_nonzero(gradient(name)[:, 1:]) == 0
    for name in ("mlm", "mim") if late_layers != 0 else ():  # the same test can fail
        assert torch.count_nonzero(gradient(name)[:, 1:]) > 0
        assert (torch.count_nonzero(gradient(name)[:, 0]) == 0) == (late_layers is None)


@pytest.mark.parametrize("late_layers", [None, 0, 2])
@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_every_parameter_gets_a_gradient(
    tiny_config: ItemConfig,
    listings: list[Listing],
    preprocessor: Preprocessor,
    attention: AttentionKind,
    late_layers: int | None,
) -> None:
    torch.manual_seed(0)
    model = ITEm(replace(tiny_config, attention=attention))
    module = Pretraining(model, stem_is_frozen=False, late_layers=late_layers)
    module.model.vector.requires_grad_(False)  # read by no masked objective
    data = make_data(listings, preprocessor, module.model.stem.num_cells)
    for step in range(4):  # every position is masked at some time
        weighted_sum(module(data.batch(step, 48)), ObjectiveWeights()).backward()  # type: ignore[no-untyped-call]
    without = [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert without == (FOR_TOKENS if late_layers == 0 else [])


def test_each_objective_can_be_left_out(pretraining: Pretraining, masked: MaskedBatch) -> None:
    losses = pretraining(masked)
    whole = weighted_sum(losses, ObjectiveWeights())
    for name, loss in losses.items():
        rest = weighted_sum(losses, ObjectiveWeights(**{name: 0.0}))
        torch.testing.assert_close(whole - rest, loss)
        assert loss.item() > 0


def test_mismatched_pairs_are_left_out_of_the_masked_losses(pretraining: Pretraining, masked: MaskedBatch) -> None:
    assert 2 < (~masked.matched).sum() < len(masked.matched)
    changed = masked.word_targets.clone()
    changed[~masked.matched] = 7
    other = MaskedBatch(**{**{f: getattr(masked, f) for f in MaskedBatch.__slots__}, "word_targets": changed})
    before, after = pretraining(masked), pretraining(other)
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed[masked.matched] = 7
    assert pretraining(other)["mlm"] != before["mlm"]


@pytest.mark.parametrize("late_layers", [0, 2])
def test_the_encoder_sees_nothing_of_what_joins_later(tiny_model: ITEm, masked: MaskedBatch, late_layers: int) -> None:
    """What stands for masked words and cells changes MLM and MIM, but nothing that reads g."""
    pretraining = make_pretraining(tiny_model, late_layers)
    other_ids = masked.batch.word_ids.masked_fill(masked.hidden_words, 7)
    other = replace(masked, batch=replace(masked.batch, word_ids=other_ids))
    with torch.no_grad():
        before = pretraining(masked)
        pretraining.mask_vector.add_(1)
        after = pretraining(other)
    assert all(after[name] == before[name] for name in ("itm", "gmlm", "gmim"))
    assert all((after[name] == before[name]) == (late_layers == 0) for name in ("mlm", "mim"))


def test_words_alone_and_pictures_alone_train(
    pretraining: Pretraining, listings: list[Listing], preprocessor: Preprocessor
) -> None:
    m = pretraining.model.stem.num_cells
    no_pictures = [one for one in listings if not one.images]
    no_words = [one for one in listings if not one.title]
    words = pretraining(make_data(no_pictures, preprocessor, m).batch(0, 4))
    pictures = pretraining(make_data(no_words, preprocessor, m).batch(0, 4))
    assert [words[name].item() > 0 for name in ("itm", "mlm", "mim", "gmlm", "gmim")] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert [pictures[name].item() > 0 for name in ("itm", "mlm", "mim", "gmlm", "gmim")] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_blanked_cells_are_the_cells_that_are_asked() -> None:
    pixels = torch.randint(0, 100, (2, 3, 12, 12), dtype=torch.uint8)
    masked = torch.zeros(2, 9, dtype=torch.bool)
    masked[0, 5] = masked[1, 0] = True
    seen = cut_cells(blank_cells(pixels, masked), 3)
    assert (seen[masked] == 128).all()
    assert torch.equal(seen[~masked], cut_cells(pixels, 3)[~masked])
