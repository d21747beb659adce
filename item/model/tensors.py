"""Tensors of models on torch: written, read, loaded strictly, and their space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from item.errors import ModelError
from item.model.folder import space_of_tensors

if TYPE_CHECKING:
    from item.model.encoder import ITEm
    from item.preprocessing.preprocessor import Preprocessor


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
    """The space of a model's vectors; see `item.model.folder.space_of_tensors`."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    return space_of_tensors(model.config, preprocessor, tensors)
