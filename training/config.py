"""The configuration of a pre-training run: one YAML file, dotted overrides, every value checked at the border."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from item.errors import ConfigError
from item.model.config import AttentionKind
from item.model.objectives import ObjectiveWeights

Precision = Literal["float32", "bfloat16"]
HUB = "hub"
# What a BERT checkpoint sets, by prefix: item.model.starting.start_words.
STARTED_BY_WORDS = (
    "model.layers.",
    "model.embeddings.words.",
    "model.embeddings.word_positions.",
    "model.embeddings.types.",
    "model.embeddings.norm.",
)


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """ConfigError naming the field and the value where `condition` does not hold."""
    if not condition:
        raise ConfigError(f"{name}: {value!r} {rule}")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The encoder's sizes; see item.model.config.ItemConfig. `vocab_size`: of a vocabulary trained on the catalogue,
    used where `start.words` brings none."""

    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    mlp_width: int = 1536
    vocab_size: int = 8000
    max_words: int = 48
    picture_size: int = 192
    stem: str | None = None
    stem_part: Literal["grid", "patch_embed"] = "grid"
    patch_size: int = 16
    vector_width: int = 384
    attention: AttentionKind = "softmax"
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Starting weights.

    words: a BERT checkpoint, as a folder or a hub repository; None: layers and vocabulary from scratch.
    stem_weights: of `model.stem`, a file in timm's layout, or "hub" (timm fetches them); None: from scratch.
    picture_weight: the picture's share of the cosine of two listings that have both.
    """

    words: str | None = None
    stem_weights: str | None = HUB
    picture_weight: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.picture_weight < 1, "start.picture_weight", self.picture_weight, "must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class MaskingOptions:
    """What is hidden: shares of the words, of the cells, and of the listings whose picture is exchanged for ITM.

    views: behind a frozen stem, how many masked views of each picture are computed and cached, with the masked pixels
    blanked before the stem; 0 masks the cached features instead, of which neighbouring cells have seen a part.
    late_layers: mask later (arXiv 2211.04898): [MASK] and masked cells enter only so many layers, after the encoder,
    which are thrown away; 0: none at all, for GMLM, GMIM and ITM alone; None: they enter every layer of the encoder.
    """

    words: float = 0.15
    patches: float = 0.4
    mismatched: float = 0.25
    views: int = 2
    late_layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("words", "patches", "mismatched"):
            value = getattr(self, name)
            require(0 < value < 1, f"masking.{name}", value, "must be between 0 and 1")
        require(self.views >= 0, "masking.views", self.views, "must not be negative")
        late = self.late_layers
        require(late is None or late >= 0, "masking.late_layers", late, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """AdamW with a linear warm-up and a linear decay to 0.

    lr: of what starts from scratch, the heads among it. start_lr: of what has starting weights; a high rate makes them
    forget what they knew. gate_lr: of the gates from words to pictures.
    """

    lr: float = 5e-4
    start_lr: float = 2e-5
    gate_lr: float = 5e-2
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "start_lr", "gate_lr", "max_grad_norm"):
            require(getattr(self, name) > 0, f"optimiser.{name}", getattr(self, name), "must be above 0")
        require(self.weight_decay >= 0, "optimiser.weight_decay", self.weight_decay, "must not be negative")
        require(0 <= self.warmup < 1, "optimiser.warmup", self.warmup, "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The run. `batch_size`: listings a step, over all workers. `epochs`: passes over the training split; `steps`
    overrides it. `train_stem`: whether a pretrained stem learns too; one from scratch always does. `cache`: where a
    frozen stem's features are kept; None: in the output's own run folder."""

    seed: int = 0
    batch_size: int = 96
    epochs: float = 10.0
    steps: int | None = None
    precision: Precision = "float32"
    train_stem: bool = False
    checkpoint_every: int = 50
    validation_batches: int = 4
    log_every: int = 1
    cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "checkpoint_every", "log_every"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "must be at least 1")
        require(
            self.batch_size >= 2, "run.batch_size", self.batch_size, "must be at least 2: ITM needs another listing"
        )
        require(self.epochs > 0, "run.epochs", self.epochs, "must be above 0")
        require(self.steps is None or self.steps >= 1, "run.steps", self.steps, "must be at least 1")
        require(self.validation_batches >= 0, "run.validation_batches", self.validation_batches, "must not be negative")

    def num_steps(self, num_rows: int) -> int:
        """Steps of the whole run over `num_rows` training listings."""
        return self.steps or max(1, round(self.epochs * num_rows / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """Alignment of the vector (`training.align`).

    views: drawn views of each listing; None: as many as `pictures` allows, 1 to 8.
    pictures: about how many pictures pass through the stem, views among them: the time that a run takes.
    max_listings: of the training split that are learned from, drawn with the run's seed.
    steps, batch_size: of the towers, at most; the best step on held-out listings is kept. 0: their closed
    form alone.
    categories, groups: whether the labels that the catalogue has are learned from.
    spelling: whether the vector may read how words are spelled.
    """

    views: int | None = None
    pictures: int = 30_000
    max_listings: int = 10_000
    steps: int = 1000
    batch_size: int = 512
    lr: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    categories: bool = True
    groups: bool = True
    spelling: bool = True

    def __post_init__(self) -> None:
        require(self.views is None or 1 <= self.views <= 64, "align.views", self.views, "must be from 1 to 64")
        for name in ("pictures", "max_listings"):
            require(getattr(self, name) >= 1, f"align.{name}", getattr(self, name), "must be at least 1")
        require(self.steps >= 0, "align.steps", self.steps, "must not be negative")
        require(self.batch_size >= 2, "align.batch_size", self.batch_size, "must be at least 2")
        require(self.lr > 0, "align.lr", self.lr, "must be above 0")
        require(self.weight_decay >= 0, "align.weight_decay", self.weight_decay, "must not be negative")
        require(0 <= self.dropout < 1, "align.dropout", self.dropout, "must be in [0, 1)")

    def num_views(self, num_listings: int) -> int:
        """K for so many listings."""
        return self.views or min(8, max(1, self.pictures // max(1, num_listings) - 1))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that decides what a run computes."""

    model: ModelOptions = field(default_factory=ModelOptions)
    start: StartOptions = field(default_factory=StartOptions)
    objectives: ObjectiveWeights = field(default_factory=ObjectiveWeights)
    masking: MaskingOptions = field(default_factory=MaskingOptions)
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    run: RunOptions = field(default_factory=RunOptions)
    align: AlignOptions = field(default_factory=AlignOptions)

    def __post_init__(self) -> None:
        asks_tokens = bool(self.objectives.mlm or self.objectives.mim)
        way_out = "leaves MLM and MIM nothing to read; set objectives.mlm=0 objectives.mim=0, or at least 1"
        require(self.masking.late_layers != 0 or not asks_tokens, "masking.late_layers", 0, way_out)

    def starts(self, name: str) -> bool:
        """Whether a parameter of `item.model.objectives.Pretraining` has starting weights."""
        if name.startswith("model.stem."):
            return self.model.stem is not None and self.start.stem_weights is not None
        return self.start.words is not None and name.startswith(STARTED_BY_WORDS)

    @property
    def trains_stem(self) -> bool:
        """Whether the stem learns: because it is asked to, or because it starts from scratch."""
        return self.run.train_stem or self.model.stem is None or self.start.stem_weights is None

    def save(self, path: Path) -> None:
        """Writes the resolved configuration as YAML."""
        path.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False), encoding="utf-8")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Reads a YAML file and applies overrides like `optimiser.lr=1e-4`; ConfigError names each fault."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"config: {path} cannot be read ({error.strerror}); see training/configs/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config: {path} holds {type(values).__name__}, not sections like model and run")
    for override in overrides:
        apply_override(values, override)
    return parse_config(values)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets one dotted key of nested values, in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override: {override!r} is not of the form section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override: {override!r}: {section} is a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override: {override!r}: the value is not YAML: {error}") from error


def parse_config(values: dict[str, Any]) -> PretrainConfig:
    """Nested values -> configuration; unknown keys and wrong types are errors that name the dotted key."""
    refuse_unknown_keys(PretrainConfig, values, "")
    try:
        return TypeAdapter(PretrainConfig).validate_python(values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key, cause = ".".join(str(part) for part in fault["loc"]), fault.get("ctx", {}).get("error")
            faults.append(
                str(cause) if isinstance(cause, ConfigError) else f"{key}: {fault['msg']} ({fault['input']!r})"
            )
        raise ConfigError("; ".join(faults)) from error


def refuse_unknown_keys(section: type, values: dict[str, Any], prefix: str) -> None:
    """ConfigError for a key that no dataclass field has, with the nearest that one has."""
    types = get_type_hints(section)
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(types)}"
            raise ConfigError(f"{prefix}{key}: no such setting; {hint}")
        if dataclasses.is_dataclass(types[key]) and isinstance(value, dict):
            refuse_unknown_keys(types[key], value, f"{prefix}{key}.")
