"""The stem as an ONNX graph: pixels in, cells and pooled features out."""

from __future__ import annotations

import logging
import warnings

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from item.export.graph import OPSET
from item.model.encoder import ITEm


class CellsAndPooled(nn.Module):
    """A stem that gives out what the engine needs of it."""

    def __init__(self, model: ITEm) -> None:
        super().__init__()
        self.stem = model.stem

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(P, 3, S, S) uint8 -> (P, m, C) cells, (P, F) pooled."""
        features = self.stem(pixels)
        return self.stem.cells(features), self.stem.pooled(features)


def stem_graph(model: ITEm, metadata: dict[str, str]) -> onnx.ModelProto:
    """The stem of any timm model, as torch exports it, for any number of pictures."""
    size = model.config.picture_size
    pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own libraries
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            CellsAndPooled(model).eval(),
            (pixels,),
            input_names=["pixels"],
            output_names=["cells", "pooled"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("P")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    made = program.model_proto
    helper.set_model_props(made, metadata)
    return made
