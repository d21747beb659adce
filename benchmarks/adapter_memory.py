"""What training keeps in memory and how long a step takes: each method of adaptation against full fine-tuning.

    python -m benchmarks.adapter_memory --json benchmarks/results/adapter_memory.json --words BERT_FOLDER
    python -m benchmarks.adapter_memory --json FILE --quick                          a minute on two cores

One step of AdamW, over the whole model or over an adapter alone, on the same batch of 32 listings of 48 words, each way
in a process of its own. The layers have MiniLM's sizes, with the words of a BERT checkpoint or random weights: memory
does not depend on them. --quick: 16 listings.

`kept_*`: bytes that the forward pass keeps for backward, distinct storages seen by saved_tensors_hooks, the model's and
the method's own tensors left out. `step_*`: by how much the first step raises the process's peak resident memory
(activations, gradients, moments). `seconds_*`: of a step, the median of three. `peak_*`: of the whole process.
`meft_activation_share`, `meft_step_share`, `meft_time_ratio`: kept, step and seconds of meft1 (arXiv 2306.00477) over
full's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from benchmarks.report import CHECKOUT, Result, write_report
from item.adapters.meft import Variant
from item.adapters.methods import METHODS, make_method
from item.model.batch import Batch
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.model.starting import load_bert, start_words

WAYS = ("full", *METHODS, *(one for one in get_args(Variant) if one not in METHODS))
WORDS = 48
VOCABULARY = 30522
STEPS = 3  # timed, after the one that memory is measured in
KILOBYTE = 1024  # of ru_maxrss on Linux


class Kept:
    """A tensor that a graph keeps, for as long as the graph is there."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_for_backward(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that the graph of `forward`'s result keeps, but for the model's parameters and
    buffers. Graphs that are gone by then, as of a layer that backward runs again, do not count."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    packed: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        packed.add(kept := Kept(tensor.detach()))  # a node's own output would keep the node, and itself, for ever
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = forward()
    assert result.requires_grad
    storages = [kept.tensor.untyped_storage() for kept in packed]
    return sum({one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in own}.values())


def make_model(words: Path | None) -> ITEm:
    """`small` without a stem of its own, in training."""
    torch.manual_seed(0)
    config = ItemConfig(vocab_size=VOCABULARY, cls_id=101, sep_id=102, max_words=WORDS)
    model = ITEm(config)
    if words is not None:
        start_words(model, load_bert(words))
    else:
        for name, parameter in model.layers.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.02)  # HiWi starts from them
    return model.train()


def draw_batch(listings: int) -> Batch:
    """Listings of 48 words and the closing [SEP]."""
    ids = torch.randint(1000, VOCABULARY, (listings, WORDS + 1), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 102
    return Batch(word_ids=ids, word_mask=torch.ones_like(ids) > 0, picture_rows=torch.zeros(0, dtype=torch.int64))


def train_once(way: str, listings: int, words: Path | None) -> dict[str, float]:
    """One way, in this process: bytes kept, how far the first step raised the peak, seconds of a step."""
    model, batch = make_model(words), draw_batch(listings)
    method = None
    if way != "full":
        model.requires_grad_(False)
        method = make_method(way, model) if way in METHODS else make_method("meft1", model, variant=way)
    trained = list((model if method is None else method).parameters())
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def loss() -> Tensor:
        with method.applied() if method is not None else nullcontext():
            return model(batch).states.square().mean()

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    with torch.no_grad():
        model(draw_batch(1))  # what torch itself takes at its first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    kept = kept_for_backward(nn.ModuleList([model, *([] if method is None else [method])]), loss)
    return {
        "kept": kept,
        "step": (after - before) * KILOBYTE,
        "peak": after * KILOBYTE,
        "seconds": statistics.median(seconds),
    }


def in_a_fresh_process(way: str, listings: int, words: Path | None) -> dict[str, float]:
    """As `train_once`."""
    command = [sys.executable, "-m", "benchmarks.adapter_memory", "--way", way, "--listings", str(listings)]
    command += [] if words is None else ["--words", str(words)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(measured: dict[str, dict[str, float]], where: str) -> list[Result]:
    """The figures of each way, and MEFT's share of full fine-tuning's."""
    results = []
    for way, found in measured.items():
        against = "" if way == "full" else "full"
        for name in ("kept", "step", "peak"):
            size = found[name] / 2**20
            results.append(Result(metric=f"{name}_{way}", value=size, unit="MiB", against=against, where=where))
        results.append(Result(metric=f"seconds_{way}", value=found["seconds"], unit="s", against=against, where=where))
    shares = {"kept": "meft_activation_share", "step": "meft_step_share", "seconds": "meft_time_ratio"}
    for name, metric in shares.items():
        share = measured["meft1"][name] / measured["full"][name]
        results.append(Result(metric=metric, value=share, unit="ratio", against=f"{name}_full", where=where))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapter_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="half the listings")
    parser.add_argument("--listings", type=int, help="of the batch; default: 32, or 16 with --quick")
    parser.add_argument("--words", type=Path, help="a BERT checkpoint of MiniLM's sizes; default: random weights")
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process; prints JSON")
    arguments = parser.parse_args(argv)
    listings = arguments.listings or (16 if arguments.quick else 32)
    if arguments.way:
        print(json.dumps(train_once(arguments.way, listings, arguments.words)))
        return 0
    measured = {way: in_a_fresh_process(way, listings, arguments.words) for way in WAYS}
    start = "given words" if arguments.words else "random weights"
    results = compare(measured, f"MiniLM's sizes, {start}, {listings} x {WORDS} words")
    write_report("adapter_memory", results, ("torch",), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
