"""Linear layers of a graph in 8 bits (item.quantisation.int8)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from item.export.graph import CONTRIB, Array, GraphBuilder
from item.quantisation.int8 import Int8Linear


class QuantisedLinears:
    """Writes each linear layer as it was fitted; see `item.export.encoder.Linear`."""

    def __init__(self, fitted: Mapping[str, Int8Linear]) -> None:
        self.fitted = fitted

    def __call__(self, graph: GraphBuilder, x: str, name: str, weight: Array, bias: Array) -> str:
        """The same layer in 8 bits; weight and bias are those of the fit."""
        fitted = self.fitted[name]
        scale = graph.constant(f"{name}.input_scale", np.array(fitted.input_scale))
        zero = graph.constant(f"{name}.input_zero", np.array(fitted.input_zero))
        smoothed = x
        if fitted.smoothing is not None:
            smoothed = graph("Mul", x, graph.constant(f"{name}.unsmoothing", 1 / fitted.smoothing))
        y = graph(
            "MatMulIntegerToFloat",
            graph("QuantizeLinear", smoothed, scale, zero),
            graph.constant(f"{name}.weight", fitted.weight),
            scale,
            graph.constant(f"{name}.weight_scale", fitted.weight_scale),
            zero,
            "",
            graph.constant(f"{name}.bias", fitted.bias),
            name=name,
            domain=CONTRIB,
        )
        if not len(fitted.outliers):
            return str(y)
        apart = graph("Gather", x, graph.constant(f"{name}.outliers", fitted.outliers), axis=1)
        return str(graph("Gemm", apart, graph.constant(f"{name}.outlier_weight", fitted.outlier_weight), y))
