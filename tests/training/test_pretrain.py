"""The program: trains, is interrupted, goes on bit for bit, alike with Ray, and says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from item.engine import load_engine
from item.model.stem import create_backbone
from item.preprocessing.preprocessor import Preprocessor
from training import pretrain as program
from training.loop import Trainer
from training.pretrain import main

TINY = """
model: {width: 32, num_layers: 2, num_heads: 4, mlp_width: 64, vocab_size: 200, max_words: 12, picture_size: 32,
        patch_size: 8, vector_width: 32}
start: {words: null, stem_weights: null}
optimiser: {lr: 1e-3}
run: {batch_size: 12, steps: 8, checkpoint_every: 3, validation_batches: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def train(config: Path, catalog: Path, output: Path, *more: str) -> int:
    return main(["--config", str(config), "--catalog", str(catalog), "--output", str(output), "--device", "cpu", *more])


def records(output: Path) -> list[dict[str, float]]:
    lines = (output / "run" / "losses.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "listings_per_s"} for line in lines]


def assert_same_model(a: Path, b: Path) -> None:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.keys() == second.keys()


@pytest.mark.parametrize(
    "more", [[], ["masking.late_layers=1", "masking.words=0.5"], ["model.attention=normalised_clipped"]]
)
def test_a_run_that_is_killed_goes_on_bit_for_bit(
    config: Path, catalog_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    assert train(config, catalog_folder, tmp_path / "whole", *more) == 0
    step = Trainer.train_step

    def killed(self: Trainer, masked: object) -> dict[str, object]:
        if self.step == 5:  # after the checkpoint of step 3
            raise KeyboardInterrupt
        return step(self, masked)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", killed)
        assert train(config, catalog_folder, tmp_path / "cut", *more) == 130
    assert len(records(tmp_path / "cut")) == 5
    assert train(config, catalog_folder, tmp_path / "cut", *more) == 0
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert [record["step"] for record in records(tmp_path / "cut")] == [*range(1, 9)]
    assert_same_model(tmp_path / "cut", tmp_path / "whole")
    engine = load_engine(tmp_path / "whole", "cpu")
    assert engine.vector_width == 32


@pytest.mark.parametrize("late", [[], ["masking.late_layers=1"]])
def test_training_lowers_every_loss(config: Path, catalog_folder: Path, tmp_path: Path, late: list[str]) -> None:
    options = ["run.steps=60", "run.batch_size=24", "model.dropout=0", *late]
    assert train(config, catalog_folder, tmp_path / "m", *options) == 0
    first, last = records(tmp_path / "m")[:5], records(tmp_path / "m")[-5:]
    for name in ("mlm", "mim", "gmlm", "gmim"):
        assert sum(r[name] for r in last) < 0.95 * sum(r[name] for r in first), name


@pytest.mark.parametrize("stem", [[], ["model.stem=test_efficientnet.r160_in1k", "model.picture_size=64"]])
def test_a_stem_from_scratch_learns(config: Path, catalog_folder: Path, tmp_path: Path, stem: list[str]) -> None:
    models = []
    for steps in (1, 3):
        assert train(config, catalog_folder, tmp_path / str(steps), *stem, f"run.steps={steps}") == 0
        models.append(load_file(tmp_path / str(steps) / "model.safetensors"))
    weights = [name for name in models[0] if name.startswith("stem.") and name.endswith("weight")]
    assert weights
    assert not any(torch.equal(models[0][name], models[1][name]) for name in weights)


def test_late_layers_are_thrown_away_and_the_attention_is_kept(
    config: Path, catalog_folder: Path, tmp_path: Path
) -> None:
    options = ["masking.late_layers=0", "objectives.mlm=0", "objectives.mim=0", "model.attention=clipped"]
    assert train(config, catalog_folder, tmp_path / "none", *options, "run.steps=2") == 0
    assert all(record["mlm"] == record["mim"] == 0 < record["gmlm"] for record in records(tmp_path / "none"))
    assert train(config, catalog_folder, tmp_path / "two", "masking.late_layers=2", "run.steps=2") == 0
    with_none, with_two = (load_file(tmp_path / name / "model.safetensors") for name in ("none", "two"))
    assert with_none.keys() == with_two.keys()
    assert [json.loads((tmp_path / n / "config.json").read_text())["attention"] for n in ("none", "two")] == [
        "clipped",
        "softmax",
    ]


def test_the_words_of_both_splits_can_be_asked(preprocessor: Preprocessor) -> None:
    train, val = (
        program.Split(listings=[], word_ids=[np.array(ids, dtype=np.int32) for ids in of_split] + [None])
        for of_split in ([[9, 7], [7, 30]], [[8, 9]])
    )
    sep = preprocessor.sep_id
    assert program.target_ids(train, val, preprocessor).tolist() == sorted({sep, 7, 8, 9, 30})
    assert program.target_ids(val, program.Split(listings=[], word_ids=[]), preprocessor).tolist() == sorted(
        {sep, 8, 9}
    )


def test_other_seeds_give_other_models(config: Path, catalog_folder: Path, tmp_path: Path) -> None:
    assert train(config, catalog_folder, tmp_path / "a", "run.steps=1") == 0
    assert train(config, catalog_folder, tmp_path / "b", "run.steps=1", "run.seed=1") == 0
    with pytest.raises(AssertionError):
        assert_same_model(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_ray_trains_alike(config: Path, catalog_folder: Path, tmp_path: Path) -> None:
    """One worker sees the batches of the plain loop; two workers share them, and go on from its checkpoint."""
    assert train(config, catalog_folder, tmp_path / "plain", "run.steps=4") == 0
    assert train(config, catalog_folder, tmp_path / "ray", "run.steps=4", "--workers", "2") == 0
    plain, ray = records(tmp_path / "plain"), records(tmp_path / "ray")
    assert [r["step"] for r in ray] == [1, 2, 3, 4]
    assert abs(plain[0]["loss"] - ray[0]["loss"]) < 1.0  # rank 0 reports its own half
    assert load_engine(tmp_path / "ray", "cpu").space != load_engine(tmp_path / "plain", "cpu").space


def test_frozen_stem_is_cached_with_masked_views(
    config: Path, catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stem weights from a file; features are computed once; the stem itself is not trained."""
    torch.manual_seed(0)
    weights = tmp_path / "stem.pt"
    torch.save(create_backbone("test_efficientnet.r160_in1k", 32).state_dict(), weights)
    stem = [
        "model.stem=test_efficientnet.r160_in1k",
        f"start.stem_weights={weights}",
        f"run.cache={tmp_path / 'cache'}",
    ]
    stem += ["model.picture_size=64"]
    assert train(config, catalog_folder, tmp_path / "a", *stem) == 0
    assert "stem features" in capsys.readouterr().err
    assert train(config, catalog_folder, tmp_path / "b", *stem, "run.steps=2") == 0
    assert "stem features" not in capsys.readouterr().err
    a, b = load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors")
    trained = [name for name in a if not torch.equal(a[name], b[name])]
    assert trained
    assert not any(name.startswith("stem.") for name in trained)
    assert train(config, catalog_folder, tmp_path / "c", *stem, "masking.views=0", "run.steps=1") == 0
    assert "leak" in capsys.readouterr().err


def test_unreadable_listings_are_left_out_and_written_down(
    config: Path, catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "catalog"
    shutil.copytree(catalog_folder, folder)
    (folder / "1.png").write_bytes(b"no picture")
    with (folder / "catalog.jsonl").open("a") as file:
        file.write('{"title": "no id"}\n')
    assert train(config, folder, tmp_path / "m", "run.steps=1") == 0
    refused = [json.loads(line) for line in (tmp_path / "m/run/refused.jsonl").read_text().splitlines()]
    assert [(r["line"], r["product_id"], r["field"]) for r in refused] == [(49, "", "product_id"), (2, "p1", "image")]
    assert "2 listings left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "tpu"], "device: 'tpu' is none of"),
        (["masking.late_layers=0"], "masking.late_layers: 0 leaves MLM and MIM nothing to read; set objectives.mlm=0"),
        (["model.num_heads=5"], "num_heads: 5 must divide width 32"),
        (["start.words=/no/such/folder"], "no such folder"),
        (["model.stem=no_such_model", "start.stem_weights=hub"], "timm has no model 'no_such_model'"),
        (["model.stem=test_efficientnet.r160_in1k", "start.stem_weights=/no/file"], "/no/file: no such file"),
        (["optimiser.lr=1e30", "optimiser.max_grad_norm=1e30"], "the loss is not finite"),
    ],
)
def test_what_cannot_be_trained_is_said(
    config: Path,
    catalog_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert train(config, catalog_folder, tmp_path / "m", *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "m" / "config.json").exists()


def test_a_missing_catalogue_and_a_missing_split_are_said(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, tmp_path / "none", tmp_path / "m") == 2
    assert "none" in capsys.readouterr().err
    (tmp_path / "catalog.jsonl").write_text('{"product_id": "a", "title": "mug", "split": "test"}\n')
    assert train(config, tmp_path, tmp_path / "m") == 2
    assert "0 listings in split 'train'" in capsys.readouterr().err


def test_another_configuration_does_not_go_on(
    config: Path, catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, catalog_folder, tmp_path / "m", "run.steps=2") == 0
    before = records(tmp_path / "m")
    assert train(config, catalog_folder, tmp_path / "m", "run.steps=3") == 2
    assert "--restart" in capsys.readouterr().err
    assert records(tmp_path / "m") == before
    assert train(config, catalog_folder, tmp_path / "m", "run.steps=3", "--restart") == 0
    assert len(records(tmp_path / "m")) == 3


def test_a_damaged_checkpoint_is_said(
    config: Path, catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, catalog_folder, tmp_path / "m", "run.steps=2") == 0
    folder = program.last_checkpoint(tmp_path / "m" / "run")
    assert folder is not None
    (folder / "tensors.pt").write_bytes(b"torn")
    assert train(config, catalog_folder, tmp_path / "m", "run.steps=2") == 2
    assert "damaged checkpoint" in capsys.readouterr().err
