"""Adapters: what a batch in which every listing has its own costs, against the same engine without adapters.

    python -m benchmarks.adapters --json FILE --quick                       the smallest shape alone
    python -m benchmarks.adapters --json benchmarks/results/adapters.json   small and base

32 listings of words, of one length and of mixed lengths, with 1, 4, 16 and 32 different RoAd_1 adapters on all linear
layers. `mixed_vs_base_WIDTH`: the speed of the engine with adapters over its speed without; in float32, in 8 bits, and
in torch, eager (against torch without adapters). `within_1_to_32`: the slowest over the fastest number of adapters, as
a share above 1. Weights are random, which speed does not depend on. Runs alternate, and figures are medians.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.encoder import SEP_ID, VOCABULARY, alternate, random_model
from benchmarks.report import Result, write_report
from item.adapters.adapter import num_rotations
from item.adapters.bank import Rotations
from item.engine.interface import Runner
from item.engine.onnx_runner import OnnxRunner
from item.engine.torch_runner import TorchRunner
from item.engine.variant import ADAPTED_FILE, LAYERS_FILE, STEM_FILE, VECTOR_FILE
from item.export.encoder import LayersGraph, Linear, float_linear, vector_graph
from item.export.files import write_graphs
from item.export.quantised import QuantisedLinears
from item.export.stem import stem_graph
from item.export.variants import fit_layers
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.prepared import Prepared

LISTINGS, COUNTS = 32, (1, 4, 16, 32)
SHORTEST, EQUAL, LONGEST = 20, 34, 48  # tokens of a listing
PACKAGES = ("torch", "onnxruntime")


def drawn(lengths: Sequence[int]) -> list[Prepared]:
    """Words of so many tokens each, [CLS] and [SEP] included."""
    generator = np.random.default_rng(0)
    words = (generator.integers(1000, VOCABULARY, length - 2) for length in lengths)
    return [Prepared(word_ids=np.append(ids, SEP_ID).astype(np.int32)) for ids in words]


def rotations(config: ItemConfig, count: int) -> Rotations:
    """Different adapters of RoAd_1, dealt to the listings in turn."""
    generator = np.random.default_rng(0)
    shape = 1 + count, num_rotations(config) // 2
    alpha, theta = generator.normal(1, 0.1, shape), generator.normal(0, 0.1, shape)
    r1, r2 = (r.repeat(2, axis=1).astype(np.float32) for r in (alpha * np.cos(theta), alpha * np.sin(theta)))
    return Rotations(r1=r1, r2=r2, rows=1 + np.arange(LISTINGS) % count, paired=True)


def onnx_runner(model: ITEm, folder: Path, linear: Linear) -> OnnxRunner:
    """A runner of a model's graphs, with adapters."""
    folder.mkdir()
    graphs = {
        STEM_FILE: stem_graph(model, {}),
        LAYERS_FILE: LayersGraph(model, linear).build({}),
        ADAPTED_FILE: LayersGraph(model, linear, adapters=True).build({}),
        VECTOR_FILE: vector_graph(model, {}),
    }
    write_graphs(folder, graphs)
    return OnnxRunner(folder, folder.name, model.config)


def measure(shape: str, repeats: int, folder: Path) -> list[Result]:
    """All runners of one shape."""
    model = random_model(shape)
    mixed = np.linspace(SHORTEST, LONGEST, LISTINGS).astype(int).tolist()
    kinds = {"equal lengths": drawn([EQUAL] * LISTINGS), "mixed lengths": drawn(mixed)}
    int8 = QuantisedLinears(fit_layers(model, kinds["mixed lengths"]))
    runners: dict[str, Runner] = {
        "fp32": onnx_runner(model, folder / f"{shape}-fp32", float_linear),
        "int8": onnx_runner(model, folder / f"{shape}-int8", int8),
        "torch eager": TorchRunner(model, torch.device("cpu")),
    }
    banks = [rotations(model.config, count) for count in COUNTS]
    width, results = model.config.width, []
    for name, runner in runners.items():
        for kind, prepared in kinds.items():
            calls = [partial(runner.run, prepared), *(partial(runner.run, prepared, bank) for bank in banks)]
            base, *times = alternate(repeats, *calls)
            where = f"{shape}, {name}, {kind}, batch {LISTINGS}"
            results.append(Result(metric="base", value=1e3 * base, unit="ms", where=where))
            results += [
                Result(
                    metric=f"mixed_vs_base_{width}",
                    value=base / taken,
                    unit="ratio",
                    against="the same without adapters",
                    where=f"{where}, {count} adapters",
                )
                for count, taken in zip(COUNTS, times, strict=True)
            ]
            spread = max(times) / min(times) - 1
            results.append(Result(metric="within_1_to_32", value=spread, unit="share", where=where))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="`tiny` alone, few repeats")
    arguments = parser.parse_args(argv)
    shapes = ("tiny",) if arguments.quick else ("small", "base")
    with tempfile.TemporaryDirectory() as folder:
        results = [one for shape in shapes for one in measure(shape, 5 if arguments.quick else 15, Path(folder))]
    write_report("adapters", results, PACKAGES, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
