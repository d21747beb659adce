"""The encoder's configuration: what `config.json` of a model folder holds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from item.errors import ConfigError, ModelError

StemPart = Literal["grid", "patch_embed"]
AttentionKind = Literal["softmax", "clipped", "normalised_clipped"]
CONFIG_FILE = "config.json"
FORMAT = 6  # of the model folder; a folder of another format is refused


@dataclass(frozen=True, kw_only=True)
class ItemConfig:
    """Shapes of one ITEm encoder (arXiv 2311.02084; BERT's names in brackets).

    width: D [hidden_size]; num_layers: L; num_heads: H; mlp_width [intermediate_size].
    max_words: the most word tokens a listing has between [CLS] and the closing [SEP].
    stem: the timm model that turns pixels into cells; None: patches of `patch_size` pixels, learned from scratch.
    stem_part: the timm model's feature grid, or only its own patch embedding.
    vector_width: V, dimensions of a listing's vector.
    category_levels: how many categories the vector head knows at each level, the widest level first; (): none.
    attention: what the layers attend with (item.model.attention).
    """

    vocab_size: int
    cls_id: int
    sep_id: int
    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    mlp_width: int = 1536
    max_words: int = 48
    picture_size: int = 192
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    stem: str | None = None
    stem_part: StemPart = "grid"
    patch_size: int = 16
    vector_width: int = 384
    category_levels: tuple[int, ...] = ()
    attention: AttentionKind = "softmax"
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        counts = ("vocab_size", "width", "num_layers", "num_heads", "mlp_width", "max_words", "picture_size")
        for name in (*counts, "patch_size", "vector_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if any(count < 1 for count in self.category_levels):
            raise ConfigError(f"category_levels: {self.category_levels} must hold counts of at least 1")
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads: {self.num_heads} must divide width {self.width}")
        if self.stem is None and self.picture_size % self.patch_size:
            raise ConfigError(f"patch_size: {self.patch_size} must divide picture_size {self.picture_size}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: {self.dropout} must be in [0, 1)")
        for name in ("cls_id", "sep_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ConfigError(f"{name}: {getattr(self, name)} is outside the vocabulary of {self.vocab_size}")
        for name, kinds in (("stem_part", get_args(StemPart)), ("attention", get_args(AttentionKind))):
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is none of {', '.join(kinds)}")

    def save(self, folder: Path) -> None:
        """Writes `config.json`."""
        text = json.dumps({"model_type": "item", "format": FORMAT, **dataclasses.asdict(self)}, indent=2)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ItemConfig:
        """Reads `config.json`; ModelError where it is missing, damaged, or of another kind or format."""
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise ModelError(f"{folder}: no {CONFIG_FILE}; a model folder is what training.pretrain writes to --output")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            kind, version = values.pop("model_type", None), values.pop("format", None)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ModelError(f"{path}: not a JSON object ({error}); restore the file or train again") from error
        if kind != "item":
            raise ModelError(f"{path}: model_type {kind!r} is not an ITEm model; give other models as starting weights")
        if version != FORMAT:
            raise ModelError(f"{path}: format {version!r} is not the {FORMAT} that this version reads; make it again")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ModelError(f"{path}: unknown keys {', '.join(unknown)}; was it written by a newer version?")
        try:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**values)
        except (TypeError, ConfigError) as error:
            raise ModelError(f"{path}: {error}") from error
