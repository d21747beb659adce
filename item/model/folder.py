"""Model folders: where they are, their tensors, and the space that their vectors belong to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from item.errors import ModelError

if TYPE_CHECKING:
    from item.model.encoder import ITEm
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


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file beside and renames it."""
    beside = path.with_suffix(".tmp")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, beside)
    beside.chmod(0o644)  # the library makes it private, and a server often runs as another user
    beside.replace(path)


def read_tensors(path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file, or of a torch file of bare tensors. Never executes code from the file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{path}: damaged or no tensors file ({error}); restore it") from error
    except Exception as error:  # pickle's errors have no base of their own
        raise ModelError(f"{path}: holds more than tensors, refused ({error}); save it as safetensors") from error
    return dict(loaded)


def load_tensors(module: nn.Module, path: Path) -> None:
    """Strictly loads a safetensors file; ModelError names what is missing, left over, or of another shape."""
    tensors, expected = read_tensors(path), module.state_dict()
    faults = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    faults += [f"left over {name}" for name in tensors.keys() - expected.keys()]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(f"{path}: does not match its config.json: {', '.join(sorted(faults)[:3])}{more}")
    module.load_state_dict(tensors)


def space_of(model: ITEm, preprocessor: Preprocessor) -> str:
    """The space of a model's vectors: sha256 (hex) of its architecture, tensors and preprocessing.

    Two vectors may be compared only if they belong to the same space.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(asdict(model.config), sort_keys=True).encode())
    digest.update(preprocessor.digest().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
