"""Runs a model on torch: on a GPU compiled, in full or half precision; on the CPU as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from item.engine.interface import Vectors
from item.model.batch import collate
from item.model.encoder import ITEm
from item.preprocessing.prepared import Prepared

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRunner:
    """`ITEm.embed` on batches padded to their longest; see `item.engine.interface.Runner`.

    Args:
        precision: "float32", or "bf16" or "fp16" of the stem and the layers; the vector head stays in float32.
    """

    packed = False
    token_budget = 4096  # enough to fill the cores, small enough for the caches

    def __init__(self, model: ITEm, device: torch.device, precision: str = "float32") -> None:
        self.model = model.to(device).eval()
        self.device, self.precision = device, PRECISIONS[precision]
        self.vector_width, self.num_cells = model.config.vector_width, model.stem.num_cells
        self.name = f"torch {device.type} {precision}"
        if device.type == "cuda":
            self.token_budget = 32_768
            self.model.run_layers = torch.compile(self.model.run_layers, dynamic=True)  # type: ignore[method-assign]
            self.name += " compiled"

    @classmethod
    def load(cls, folder: Path, device: str, precision: str, num_threads: int | None) -> TorchRunner:
        """The full-precision tensors of a folder; ModelError says what is wrong with them."""
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        return cls(ITEm.from_pretrained(folder), torch.device(device), precision)

    @torch.inference_mode()
    def run(self, prepared: Sequence[Prepared]) -> Vectors:
        """(N, D) float32 of unit norm; see `item.engine.interface.Runner`."""
        batch = collate(prepared).to(self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            encoded = self.model.encode(batch)
        return np.asarray(self.model.vectors(encoded, batch).cpu().numpy())
