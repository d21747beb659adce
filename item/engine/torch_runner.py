"""Runs a model on torch: on a GPU compiled, in full or half precision; on the CPU as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from item.adapters.bank import Rotations
from item.adapters.road import Rotator
from item.engine.interface import Outputs, Vectors
from item.model.batch import Batch, collate
from item.model.encoder import Encoded, ITEm
from item.preprocessing.prepared import MODALITIES, Modality, Prepared

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
        self.vector_width, self.features_width = model.config.vector_width, model.vector.features_width
        self.words_width, self.text_reads_cells = len(model.vector.words.mean), model.text_reads_cells
        self.modalities_are_apart = model.modalities_are_apart
        self.num_cells = model.stem.num_cells
        self.rotator = Rotator(self.model)
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
    def run(self, prepared: Sequence[Prepared], rotations: Rotations | None = None) -> Outputs:
        """See `item.engine.interface.Runner`."""
        encoded, batch = self.encode(prepared, rotations)
        made = self.model.vectors(encoded, batch), self.model.features(encoded, batch)
        return Outputs(*(np.asarray(one.cpu().numpy()) for one in made))

    @torch.inference_mode()
    def run_modalities(self, prepared: Sequence[Prepared]) -> dict[Modality, Vectors]:
        """See `item.engine.interface.Runner`."""
        encoded, batch = self.encode(prepared, None)
        return {modality: self.model.vectors(encoded, batch, modality).cpu().numpy() for modality in MODALITIES}

    def encode(self, prepared: Sequence[Prepared], rotations: Rotations | None) -> tuple[Encoded, Batch]:
        """The last states, in the runner's precision, and the batch that they are of."""
        batch = collate(prepared).to(self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            encoded = self.model.encode(batch) if rotations is None else self.encode_adapted(batch, rotations)
        return encoded, batch

    def encode_adapted(self, batch: Batch, rotations: Rotations) -> Encoded:
        """The last states of listings that each have their own adapter."""
        r1, r2 = (torch.from_numpy(r[rotations.rows]).to(self.device) for r in (rotations.r1, rotations.r2))
        with self.rotator.applied(r1, r2, rotations.paired):
            return self.model.encode(batch)
