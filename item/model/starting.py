"""Starting weights: any BERT checkpoint for the layers and words, any timm model for the stem."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from item.errors import ModelError
from item.model.encoder import GATE_CLOSED, ITEm
from item.model.folder import resolve_folder
from item.model.stem import create_backbone, timm_name
from item.model.tensors import read_tensors

# Our names of a layer's modules -> BERT's.
LAYER_NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


@dataclass(frozen=True, kw_only=True)
class Bert:
    """A BERT checkpoint: its folder (for the tokenizer), its sizes as ItemConfig's fields, its tensors."""

    folder: Path
    sizes: dict[str, int | float]
    tensors: dict[str, Tensor]


def load_bert(name: str | Path) -> Bert:
    """Reads a BERT checkpoint of the Hugging Face layout, from a folder or the hub; ModelError if it is none."""
    folder = resolve_folder(name)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no readable config.json ({error}); give a BERT checkpoint's folder") from error
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in expected.items():
        if (found := config.get(key, value if key == "position_embedding_type" else None)) != value:
            raise ModelError(f"{folder}: {key} is {found!r}; the layers load BERT checkpoints with {key} {value!r}")
    files = [path for path in (folder / "model.safetensors", folder / "pytorch_model.bin") if path.is_file()]
    if not files:
        raise ModelError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")
    tensors = {name.removeprefix("bert."): tensor.float() for name, tensor in read_tensors(files[0]).items()}
    try:
        sizes = {
            "vocab_size": config["vocab_size"],
            "width": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_width": config["intermediate_size"],
            "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        }
    except KeyError as error:
        raise ModelError(f"{folder}/config.json: no {error}; give a BERT checkpoint's folder") from error
    return Bert(folder=folder, sizes=sizes, tensors=tensors)


@torch.no_grad()
def start_words(model: ITEm, bert: Bert) -> None:
    """Copies a BERT checkpoint into the layers and word embeddings, and closes the gates from words to pictures.

    The word positions of BERT beyond `max_words` are left out; both types start as BERT's first and second.
    """
    embeddings, positions = model.embeddings, model.embeddings.word_positions.weight
    copies: list[tuple[str, Tensor]] = [
        ("embeddings.word_embeddings.weight", embeddings.words.weight),
        ("embeddings.token_type_embeddings.weight", embeddings.types.weight),
        ("embeddings.LayerNorm.weight", embeddings.norm.weight),
        ("embeddings.LayerNorm.bias", embeddings.norm.bias),
    ]
    for index, layer in enumerate(model.layers):
        for ours, theirs in LAYER_NAMES.items():
            module = layer.get_submodule(ours)
            copies += [(f"encoder.layer.{index}.{theirs}.{part}", getattr(module, part)) for part in ("weight", "bias")]
    for name, target in copies:
        source = tensor_of(bert, name)
        if source.shape != target.shape:
            raise ModelError(f"{bert.folder}: {name} is {tuple(source.shape)}, the model needs {tuple(target.shape)}")
        target.copy_(source)
    available = tensor_of(bert, "embeddings.position_embeddings.weight")
    if len(available) < len(positions):
        raise ModelError(f"max_words: {len(positions) - 2} is more than {bert.folder} has: {len(available) - 2}")
    positions.copy_(available[: len(positions)])
    model.gates.fill_(GATE_CLOSED)


def tensor_of(bert: Bert, name: str) -> Tensor:
    """One tensor of the checkpoint; old checkpoints call a norm's weight and bias gamma and beta."""
    older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    for candidate in (name, older):
        if candidate in bert.tensors:
            return bert.tensors[candidate]
    raise ModelError(f"{bert.folder}: no tensor {name}; give a whole BERT checkpoint")


def start_stem(model: ITEm, weights: str | Path | None) -> None:
    """Loads the stem's pretrained weights: from a local file in timm's layout, or (None) from the hub by timm."""
    config = model.config
    assert config.stem is not None
    overlay = {} if weights is None else {"file": str(weights)}
    if weights is not None and not Path(weights).is_file():
        raise ModelError(f"stem_weights: {weights}: no such file")
    try:
        backbone = create_backbone(config.stem, config.picture_size, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, OSError, KeyError) as error:  # what timm, safetensors and the hub raise
        source = weights or f"the hub, for {config.stem}"
        raise ModelError(f"stem_weights: {source}: cannot be loaded: {error}") from error
    holder: Any = model.stem
    if config.stem_part == "grid":
        holder.backbone.load_state_dict(backbone.state_dict())
    else:
        holder.embedding.load_state_dict(backbone.get_submodule("patch_embed").state_dict())


def stem_statistics(name: str) -> dict[str, Any]:
    """The mean and std that a timm model's pictures are normalised with, as ItemConfig's fields."""
    fixed = timm.get_pretrained_cfg(timm_name(name))
    if fixed is None:
        return {}
    return {"mean": tuple(fixed.mean), "std": tuple(fixed.std)}
