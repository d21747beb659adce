"""Adapters: what a batch costs in which listings have adapters of their own, against the same encoder without.

    python -m benchmarks.adapters --json FILE --quick                       the smallest shape alone, under a minute
    python -m benchmarks.adapters --json benchmarks/results/adapters.json   small and base

32 listings of 48 tokens of words, and of mixed lengths, with 1, 4, 16 and 32 different adapters on all linear layers.
Ours: RoAd_1 in the engine (float32, for `small` in 8 bits too) and, for `small`, in torch as it is and compiled. The
peers, on the same torch model in the same run, where `peft` can be imported (it is in no extra; PYTHONPATH=FOLDER after
`pip install peft --no-deps --target FOLDER`): its RoAd (group_size=2) and its LoRA of rank 8 with `adapter_names`.
`mixed_vs_base_WIDTH`: the speed with adapters over the same runtime's without; `WIDTH`: the slowest number of adapters
in the engine. `within_1_to_32`: how much more the slowest number of adapters takes than the fastest. `engine_vs_*` and
`eager_vs_*`: how many times as long the peer takes. Weights are random, which speed does not depend on. Runs take
turns; each is compared with the base of its own turn, and figures are medians over the turns.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.encoder import SEP_ID, VOCABULARY, random_model, rounds
from benchmarks.report import Result, write_report
from item.adapters.adapter import LINEARS, num_rotations
from item.adapters.bank import Rotations
from item.adapters.lora import Lora, LoraConfig
from item.adapters.method import Method
from item.adapters.road import Road, RoadConfig
from item.engine.onnx_runner import OnnxRunner
from item.engine.variant import ADAPTED_FILE, LAYERS_FILE, STEM_FILE, VECTOR_FILE
from item.export.encoder import LayersGraph, Linear, float_linear, vector_graph
from item.export.files import write_graphs
from item.export.quantised import QuantisedLinears
from item.export.stem import stem_graph
from item.export.variants import fit_layers
from item.model.batch import Batch, collate
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.prepared import Prepared

LISTINGS, COUNTS = 32, (1, 4, 16, 32)
SHORTEST, LONGEST = 12, 48  # tokens of a listing
RANK = 8  # of LoRA
PACKAGES = ("torch", "onnxruntime", "peft")

Call = Callable[[], object]


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


def engines(model: ITEm, shape: str, folder: Path) -> Iterator[tuple[str, OnnxRunner]]:
    """Runners of a model's graphs."""
    stem, linears = stem_graph(model, {}), {"fp32": float_linear}
    if shape == "small":
        linears["int8"] = QuantisedLinears(fit_layers(model, drawn([SHORTEST, LONGEST] * 16)))
    linear: Linear
    for name, linear in linears.items():
        place = folder / f"{shape}-{name}"
        place.mkdir()
        graphs = {
            STEM_FILE: copy.deepcopy(stem),
            LAYERS_FILE: LayersGraph(model, linear).build({}),
            ADAPTED_FILE: LayersGraph(model, linear, adapters=True).build({}),
            VECTOR_FILE: vector_graph(model, {}),
        }
        write_graphs(place, graphs)
        yield name, OnnxRunner(place, name, model.config)


@torch.inference_mode()
def states(model: Any, batch: Batch, **more: Any) -> torch.Tensor:
    """The layers' last states in torch."""
    return model(batch, **more).states


@torch.inference_mode()
def with_method(method: Method, batch: Batch, rows: torch.Tensor) -> torch.Tensor:
    """As `states`, with adapters of ours."""
    with method.applied(rows):
        return method.model(batch).states


def in_torch(model: ITEm, batch: Batch) -> dict[str, list[Call]]:
    """Without adapters, and with each number of them: our methods."""
    calls: dict[str, list[Call]] = {"base": [partial(states, model, batch)]}
    dealt = [torch.arange(LISTINGS) % count for count in COUNTS]
    calls["road"] = [partial(with_method, Road(model, RoadConfig(), max(COUNTS)), batch, rows) for rows in dealt]
    lora = Lora(model, LoraConfig(rank=RANK), max(COUNTS))
    calls["lora"] = [partial(with_method, lora, batch, rows) for rows in dealt]
    return calls


def peers(model: ITEm, batch: Batch) -> dict[str, list[Call]]:
    """PEFT's mixed batches; none where it is not installed."""
    if find_spec("peft") is None:
        print("peft cannot be imported: no peers")
        return {}
    import peft  # type: ignore[import-not-found]  # in no environment of ours

    targets = list(LINEARS)
    configs = {
        "peft road": peft.RoadConfig(variant="road_1", group_size=2, target_modules=targets, init_weights=False),
        "peft lora": peft.LoraConfig(r=RANK, target_modules=targets, init_lora_weights=False),
    }
    calls = dict[str, list[Call]]()
    for name, config in configs.items():
        theirs = peft.get_peft_model(copy.deepcopy(model), config, adapter_name="0")
        for number in range(1, max(COUNTS)):
            theirs.add_adapter(str(number), config)
        theirs.eval()
        names = [[str(row % count) for row in range(LISTINGS)] for count in COUNTS]
        calls[name] = [partial(states, theirs, batch, adapter_names=one) for one in names]
    return calls


def ratios(name: str, width: int, base: float, times: Sequence[float], where: str) -> list[Result]:
    """One system against the same without adapters."""
    against = "the same without adapters"
    each = [
        Result(
            metric=f"{name}_vs_base_{width}",
            value=base / taken,
            unit="ratio",
            against=against,
            where=f"{where}, {count} adapters",
        )
        for count, taken in zip(COUNTS, times, strict=True)
    ]
    spread = max(times) / min(times) - 1
    return [*each, Result(metric="within_1_to_32", value=spread, unit="share", where=f"{where}, {name}")]


def in_turns(repeats: int, *calls: Call) -> list[float]:
    """Seconds of each call, the first of which is the base: its median, and what that is times the median ratio to the
    base of the same turn, which a machine that gets slower for a while does not change."""
    times = rounds(repeats, *calls)
    return [float(one) for one in np.median(times[:, 0]) * np.median(times / times[:, :1], axis=0)]


def measure(shape: str, repeats: int, folder: Path, compiles: bool) -> list[Result]:
    """All systems of one shape."""
    model = random_model(shape)
    width = model.config.width
    lengths = {"equal": [LONGEST] * LISTINGS, "mixed": np.linspace(SHORTEST, LONGEST, LISTINGS).astype(int).tolist()}
    banks = [rotations(model.config, count) for count in COUNTS]
    results, engine = list[Result](), list[float]()
    for name, runner in engines(model, shape, folder):
        for kind, tokens in lengths.items():
            prepared = drawn(tokens)
            runs = [partial(runner.run, prepared), *(partial(runner.run, prepared, bank) for bank in banks)]
            base, *times = in_turns(repeats, *runs)
            where = f"{shape}, engine {name}, {kind} lengths"
            results.append(Result(metric="base_ms", value=1e3 * base, unit="ms", where=where))
            results += ratios("mixed", width, base, times, where)
            if (name, kind) == ("fp32", "equal"):
                engine = times
                metric, slowest = f"mixed_vs_base_{width}", base / max(times)
                results.append(Result(metric=metric, value=slowest, unit="ratio", where=f"{where}, least"))
    if shape == "base":  # its torch runs take a quarter of an hour
        return results
    batch = collate(drawn(lengths["equal"]))
    calls = {**in_torch(model, batch), **peers(model, batch)}
    flat = in_turns(max(3, repeats // 3), *(call for some in calls.values() for call in some))
    taken = {name: [flat.pop(0) for _ in some] for name, some in calls.items()}
    (base,) = taken.pop("base")
    where = f"{shape}, torch, equal lengths"
    results.append(Result(metric="base_ms", value=1e3 * base, unit="ms", where=where))
    for name, times in taken.items():
        results += ratios(name.replace(" ", "_"), width, base, times, where)
        if name.startswith("peft"):
            for ours, of_ours in (("engine", engine), ("eager", taken["road"])):
                results += [
                    Result(
                        metric=f"{ours}_vs_{name.replace(' ', '_')}",
                        value=theirs / mine,
                        unit="times",
                        where=f"{shape}, equal lengths, {count} adapters",
                    )
                    for count, theirs, mine in zip(COUNTS, times, of_ours, strict=True)
                ]
    return results + (compiled(model, batch, repeats, shape) if compiles else [])


def compiled(model: ITEm, batch: Batch, repeats: int, shape: str) -> list[Result]:
    """Ours and the base with the layers compiled."""
    fast = copy.deepcopy(model)
    fast.run_layers = torch.compile(fast.run_layers)  # type: ignore[method-assign]
    road = Road(fast, RoadConfig(), max(COUNTS))
    dealt = [torch.arange(LISTINGS) % count for count in COUNTS]
    calls = [partial(states, fast, batch), *(partial(with_method, road, batch, rows) for rows in dealt)]
    base, *times = in_turns(repeats, *calls)
    where = f"{shape}, torch compiled, equal lengths"
    return ratios("mixed", model.config.width, base, times, where)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="`tiny` alone, few repeats, nothing compiled")
    arguments = parser.parse_args(argv)
    shapes = ("tiny",) if arguments.quick else ("small", "base")
    results = list[Result]()
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes:
            repeats = 3 if arguments.quick else 25 if shape == "small" else 5
            results += measure(shape, repeats, Path(folder), compiles=shape == "small")
    packages = PACKAGES if find_spec("peft") else PACKAGES[:2]
    write_report("adapters", results, packages, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
