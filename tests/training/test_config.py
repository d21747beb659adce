"""Configurations: what is read, and what each wrong value answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from item.errors import ConfigError
from training.config import PretrainConfig, load_config

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_survive_saving(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config != PretrainConfig()
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_overrides_win_and_keep_their_types() -> None:
    config = load_config(CONFIGS[0], ["optimiser.lr=1e-4", "run.steps=7", "start.words=null", "run.train_stem=true"])
    assert (config.optimiser.lr, config.run.steps, config.start.words, config.run.train_stem) == (1e-4, 7, None, True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.wdith=3", "model.wdith: no such setting; did you mean width"),
        ("modle.width=3", "modle: no such setting; did you mean model"),
        ("optimiser.lr=fast", "optimiser.lr: .*'fast'"),
        ("optimiser.lr=0", "optimiser.lr: 0.0 must be above 0"),
        ("masking.words=1.5", "masking.words: 1.5 must be between 0 and 1"),
        ("masking.late_layers=-1", "masking.late_layers: -1 must not be negative"),
        ("model.attention=linear", "model.attention: .*'linear'"),
        ("objectives.itm=-1", "objectives.itm: weight -1.0"),
        ("run.batch_size=1", "run.batch_size: 1 must be at least 2"),
        ("run.precision=float8", "run.precision: .*'float8'"),
        ("start.picture_weight=1", "start.picture_weight: 1.0"),
        ("run=3", "run: .*3"),
        ("run.epochs.x=3", "epochs is a value, not a section"),
        ("run.epochs", "not of the form section.key=value"),
        ("run.epochs=[", "not YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS[0], [override])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match=r"holds list, not sections"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("model: {width: [1")
    with pytest.raises(ConfigError, match=r"is not YAML"):
        load_config(tmp_path / "torn.yaml")


def test_all_objectives_off_is_refused() -> None:
    off = [f"objectives.{name}=0" for name in ("itm", "mlm", "mim", "gmlm", "gmim")]
    with pytest.raises(ConfigError, match="nothing to learn"):
        load_config(CONFIGS[0], off)


def test_what_starts_from_weights_has_its_own_rate() -> None:
    config = load_config(CONFIGS[0], ["model.stem=resnet18", "start.words=w", "start.stem_weights=s"])
    started = ["model.layers.0.up.weight", "model.embeddings.words.weight", "model.stem.backbone.conv1.weight"]
    new = ["model.embeddings.patches.weight", "mask_vector", "word_head.0.weight", "model.gates"]
    assert [config.starts(name) for name in started + new] == [True] * 3 + [False] * 4
    scratch = load_config(CONFIGS[0], ["start.words=null", "start.stem_weights=null"])
    assert not any(scratch.starts(name) for name in started + new)
