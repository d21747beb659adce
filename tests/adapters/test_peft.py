"""HF PEFT reads what we write and we read what it writes, with the same vectors. Needs peft; no extra installs it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from item.adapters.adapter import LINEARS, VALUES
from item.adapters.bank import Bank
from item.adapters.files import import_adapter, our_name, read_values, write_adapter
from item.adapters.road import Road, RoadConfig, Rotator
from item.errors import ModelError
from item.model.batch import Batch
from item.model.encoder import ITEm
from item.model.starting import Bert, start_words
from tests.adapters.conftest import disturb

peft = pytest.importorskip("peft", reason="needs peft: pip install peft", exc_type=ImportError)
# It asks transformers for what transformers has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
VARIANTS = sorted(VALUES)
SPACE = "5" * 64
TARGETS = list(LINEARS)


def states(model: ITEm, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch).g


def with_bank(model: ITEm, folder: Path, name: str, batch: Batch) -> Tensor:
    """[CLS]'s states with an adapter of a folder, through the tables that a server has."""
    made = Bank(folder, model.config, SPACE).rotations([name] * len(batch))
    r1, r2 = (torch.from_numpy(r[made.rows]) for r in (made.r1, made.r2))
    with Rotator(model).applied(r1, r2):
        return states(model, batch)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", [LINEARS, ("value", "layers.0.up")])
def test_peft_loads_what_we_write(
    model: ITEm, batch: Batch, tmp_path: Path, variant: str, targets: tuple[str, ...]
) -> None:
    method = Road(model, RoadConfig(variant=variant, targets=targets), 2)
    disturb(method)
    values = method.values(1)
    place = write_adapter(tmp_path, "ours", values, method=variant, config=model.config, model_space=SPACE)
    with method.applied(torch.ones(len(batch), dtype=torch.int64)):
        expected = states(model, batch)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), place).get_base_model()
    torch.testing.assert_close(states(theirs, batch), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(with_bank(model, tmp_path, "ours", batch), expected, atol=2e-6, rtol=0)
    assert (expected - states(model, batch)).abs().max() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_we_load_what_peft_writes(model: ITEm, batch: Batch, tmp_path: Path, variant: str) -> None:
    config = peft.RoadConfig(variant=variant, group_size=2, target_modules=TARGETS, init_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    theirs.save_pretrained(tmp_path / "peft")
    import_adapter(tmp_path / "peft", tmp_path, "theirs", config=model.config, model_space=SPACE)
    expected = states(theirs.get_base_model().eval(), batch)
    torch.testing.assert_close(with_bank(model, tmp_path, "theirs", batch), expected, atol=2e-6, rtol=0)
    method = Road(model, RoadConfig(variant=variant))
    method.set_values(read_values(tmp_path / "adapters" / "theirs")[1])
    with method.applied():
        torch.testing.assert_close(states(model, batch), expected, atol=2e-6, rtol=0)
    assert (expected - states(model, batch)).abs().max() > 0.1


def test_pefts_usual_pairing_is_refused(model: ITEm, tmp_path: Path) -> None:
    config = peft.RoadConfig(group_size=32, target_modules=TARGETS)
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path / "peft")
    with pytest.raises(ModelError, match="group_size 32 pairs other elements than ours"):
        import_adapter(tmp_path / "peft", tmp_path, "theirs", config=model.config, model_space=SPACE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_of_a_bert_turns_our_layers_alike(model: ITEm, tmp_path: Path, variant: str) -> None:
    """Trained by PEFT on transformers' BERT, served on the encoder that started from the same weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    shape = model.config
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.width,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=shape.mlp_width,
            max_position_embeddings=shape.max_words + 2,
            initializer_range=0.3,
        ),
        add_pooling_layer=False,
    ).eval()
    start_words(model, Bert(folder=tmp_path, sizes={}, tensors=dict(bert.state_dict())))
    config: Any = peft.RoadConfig(variant=variant, group_size=2, target_modules="all-linear", init_weights=False)
    theirs = peft.get_peft_model(bert, config).eval()
    theirs.save_pretrained(tmp_path / "peft")
    modules = read_values(tmp_path / "peft")[1]
    assert {our_name(module) for module in modules} == set(Road(model, RoadConfig()).places)
    import_adapter(tmp_path / "peft", tmp_path, "theirs", config=shape, model_space=SPACE)
    ids = torch.randint(5, shape.vocab_size, (4, 9), generator=torch.Generator().manual_seed(4))
    words = Batch(
        word_ids=ids,
        word_mask=torch.ones(4, 9, dtype=torch.bool),
        pixels=None,
        features=None,
        picture_rows=torch.empty(0, dtype=torch.int64),
    )
    with_cls = torch.cat([torch.full((4, 1), shape.cls_id), ids], dim=1)
    with torch.no_grad():
        expected = theirs(input_ids=with_cls).last_hidden_state[:, 0]
    torch.testing.assert_close(with_bank(model, tmp_path, "theirs", words), expected, atol=2e-5, rtol=0)
    assert (expected - states(model, words)).abs().max() > 0.1
