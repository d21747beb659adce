"""Whether 8-bit products saturate on processors without VNNI: the worst activations, against exact sums.

    python -m benchmarks.saturation --json FILE                                        seconds; on this processor
    qemu-x86_64 -cpu Haswell .venv/bin/python -m benchmarks.saturation --json FILE     on an emulated one without VNNI

(qemu-x86_64 is in Debian's package qemu-user.) `difference_bounded`: of ONNX Runtime's product with the weights of
item.quantisation.int8, over the largest exact value; `difference_plain`: with the usual symmetric 8 bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.report import Result, write_report
from item.engine.onnx_runner import session_options
from item.export.graph import Array, GraphBuilder
from item.export.quantised import QuantisedLinears
from item.quantisation.int8 import MAX_ACTIVATION, MAX_WEIGHT, Int8Linear, pair_sums, quantise_weight

IN, OUT, ROWS = 384, 96, 40


def as_layer(weight: Array, scale: Array) -> Int8Linear:
    """A layer that takes its activations as they are."""
    return Int8Linear(
        input_scale=np.float32(1),
        input_zero=np.uint8(0),
        smoothing=None,
        weight=weight,
        weight_scale=scale,
        bias=np.zeros(OUT, np.float32),
        outliers=np.zeros(0, np.int64),
        outlier_weight=np.zeros((0, OUT), np.float32),
    )


def run(layer: Int8Linear, x: Array) -> Array:
    """(N, OUT), by ONNX Runtime."""
    graph = GraphBuilder()
    y = QuantisedLinears({"layer": layer})(graph, graph.input("x", "float", ["N", IN]), "layer", x, x)
    graph.output(y, "y", ["N", OUT])
    session = onnxruntime.InferenceSession(graph.model("layer", {}).SerializeToString(), session_options(1))
    return np.asarray(session.run(None, {"x": x})[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.saturation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    arguments = parser.parse_args(argv)
    weight = np.random.default_rng(0).standard_normal((IN, OUT)).astype(np.float32)
    scale = (np.abs(weight).max(0) / MAX_WEIGHT).astype(np.float32)
    layers = {
        "bounded": as_layer(*quantise_weight(weight)),
        "plain": as_layer(np.rint(weight / scale).astype(np.int8), scale),
    }
    # Row 0 is the largest everywhere, row j where column j is positive: its worst.
    x = np.where(weight.T[:ROWS] > 0, MAX_ACTIVATION, 0).astype(np.float32)
    x[0] = MAX_ACTIVATION
    results = []
    for name, layer in layers.items():
        exact = (x.astype(np.int64) @ layer.weight.astype(np.int64)) * layer.weight_scale.astype(np.float64)
        difference = float(np.abs(run(layer, x) - exact).max() / np.abs(exact).max())
        where = f"worst pair of weights {pair_sums(layer.weight)}"
        results.append(
            Result(metric=f"difference_{name}", value=difference, unit="share", against="exact sums", where=where)
        )
    write_report("saturation", results, ("onnxruntime",), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
