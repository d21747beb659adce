"""Model folders: where they are, and the space that their vectors belong to. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from item.errors import ModelError
from item.model.config import ItemConfig

if TYPE_CHECKING:
    from item.preprocessing.preprocessor import Preprocessor

TENSORS_FILE = "model.safetensors"
SAFE_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.bin", "README.md"]


def resolve_folder(name: str | Path) -> Path:
    """A local folder as it is; anything like `owner/name` from the Hugging Face hub (or its local cache)."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or isinstance(name, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"{name}: no such folder; give a model folder or a hub repository as owner/name")
    try:
        return Path(snapshot_download(name, allow_patterns=SAFE_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"{name}: neither a local folder nor to be had from the hub: {error}") from error


def space_of_tensors(
    config: ItemConfig, preprocessor: Preprocessor, tensors: Mapping[str, npt.NDArray[np.generic]]
) -> str:
    """The space of a model's vectors: sha256 (hex) of its architecture, tensors and preprocessing.

    Two vectors may be compared only if they belong to the same space.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(asdict(config), sort_keys=True).encode())
    digest.update(preprocessor.digest().encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} torch.{tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def space_of_folder(folder: Path, config: ItemConfig, preprocessor: Preprocessor) -> str:
    """As `space_of_tensors`, of the tensors in a folder, as they are in its file."""
    path = folder / TENSORS_FILE
    try:
        return space_of_tensors(config, preprocessor, load_file(path))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: damaged or no tensors file ({error}); restore it") from error


def check_agreement(config: ItemConfig, preprocessor: Preprocessor) -> None:
    """A model and a preprocessor of different folders do not fit together."""
    pairs = {
        "picture_size": (config.picture_size, preprocessor.config.picture_size),
        "max_words": (config.max_words, preprocessor.config.max_words),
        "vocab_size": (config.vocab_size, preprocessor.vocab_size),
    }
    for name, (models, preprocessors) in pairs.items():
        if models != preprocessors:
            raise ModelError(f"{name}: the model has {models}, its preprocessing {preprocessors}; restore the folder")
