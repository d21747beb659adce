"""Chooses and loads the engine of a model folder. The implementations are imported when they are chosen."""

from __future__ import annotations

from pathlib import Path

from item.engine.interface import Engine


def load_engine(folder: str | Path, device: str = "auto", num_threads: int | None = None) -> Engine:
    """Loads a model folder for inference.

    Args:
        folder: a model folder, or a hub repository as owner/name.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        num_threads: threads of one encoding on the CPU; None leaves the process's setting.

    Raises:
        ModelError: the folder cannot be loaded.
        ConfigError: there is no such device.
    """
    from item.engine.torch_engine import TorchEngine

    return TorchEngine.load(folder, device, num_threads)
