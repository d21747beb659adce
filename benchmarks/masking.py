"""Mask more, mask later, and attention without outliers: what a step costs, and what comes of it.

    python -m benchmarks.masking --json FILE --quick                                 about a minute on two cores
    python -m benchmarks.masking --json benchmarks/results/masking.json --catalog C --words BERT_FOLDER \\
        --stem-weights tf_efficientnet_lite0.safetensors                             about half an hour

`late_step_*`: the processor time of a step whose masked tokens join for 2, 1 or 0 late layers over the plain step's,
over the share of the layers' work that it is accounted for, (kept L + late) / L. Every variant takes the same batches
in turn, and the figures are medians.
`loss_*`: validation losses after the same listings, on the same masks; `plain_15` is the plain step that masks 15% of
the words instead of half.
`max_*` and `kurtosis_*`: activations of each layer's feed-forward output over listings of the train split, for the
kinds of attention; `plain` is softmax, `start` the same before the first step.

Two shapes: `tiny` from scratch, with patches of its own, and `small`, continued from the starting weights that are
given, over a frozen stem's cached features. With --quick, and without starting weights, `tiny` alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.report import CHECKOUT, Result, write_report
from benchmarks.training import draw_shop
from item.catalog.reader import Catalog, read_catalog
from item.evaluation.activations import feed_forward_activations
from item.model.objectives import OBJECTIVES, MaskedBatch
from training.config import load_config
from training.loop import Trainer
from training.pretrain import Run, prefetched, prepare_run

HALF = ("masking.words=0.5", "masking.patches=0.5")
LATE = {"late_2": 2, "late_1": 1, "late_0": 0}
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "plain_15": ("masking.words=0.15",),
    "late_2": ("masking.late_layers=2",),
    "late_1": ("masking.late_layers=1",),
    "late_0": ("masking.late_layers=0", "objectives.mlm=0", "objectives.mim=0"),
    "clipped": ("model.attention=clipped",),
    "normalised_clipped": ("model.attention=normalised_clipped",),
}
ATTENTION = ("plain", "clipped", "normalised_clipped")
ACTIVATION_ROWS = 256  # listings


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One configuration, how many steps it is trained for and how often a step is timed."""

    config: str
    overrides: tuple[str, ...]
    steps: int
    repeats: int


SMALL = Shape(config="small", overrides=("run.batch_size=32",), steps=16, repeats=3)
TINY = Shape(config="tiny", overrides=(), steps=300, repeats=20)
QUICK = Shape(config="tiny", overrides=(), steps=10, repeats=4)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A variant after its steps."""

    made_ready: Run
    trainer: Trainer
    results: list[Result]


def train_variant(shape: Shape, name: str, catalog: Catalog, folder: Path, masks: list[MaskedBatch]) -> Trained:
    """Trains a variant and measures it on `masks`, which the first variant's own fill."""
    overrides = (*shape.overrides, *HALF, f"run.steps={shape.steps}", f"run.cache={folder / 'features'}")
    config = load_config(CHECKOUT / f"training/configs/{shape.config}.yaml", (*overrides, *VARIANTS[name]))
    (folder / name / "run").mkdir(parents=True)
    made_ready = prepare_run(config, catalog, folder / name, torch.device("cpu"))
    masks[:] = masks or made_ready.validation
    trainer = made_ready.trainer(made_ready.pretraining)
    results = []
    if name == "plain":
        results += activation_results(shape, made_ready, "start")
    for masked in prefetched(made_ready.train, range(shape.steps), config.run.batch_size):
        trainer.train_step(masked)
    results += loss_results(shape, trainer, name, masks)
    if name in ATTENTION:
        results += activation_results(shape, made_ready, name)
    return Trained(made_ready=made_ready, trainer=trainer, results=results)


@torch.no_grad()
def loss_results(shape: Shape, trainer: Trainer, name: str, masks: list[MaskedBatch]) -> list[Result]:
    """The validation loss of each objective that the variant has."""
    trainer.pretraining.eval()
    losses = [trainer.losses(trainer.pretraining, masked) for masked in masks]
    means = {objective: statistics.mean(one[objective].item() for one in losses) for objective in OBJECTIVES}
    where = f"{shape.config}, {shape.steps} steps"
    return [
        Result(metric=f"loss_{objective}_{name}", value=mean, unit="loss", against="loss of plain", where=where)
        for objective, mean in means.items()
        if mean
    ]


def activation_results(shape: Shape, made_ready: Run, name: str) -> list[Result]:
    """Largest value and kurtosis of every layer."""
    model = made_ready.pretraining.model.eval()
    results = []
    for layer, one in enumerate(feed_forward_activations(model, made_ready.train.whole_batches(ACTIVATION_ROWS))):
        where = f"{shape.config}, layer {layer}, {0 if name == 'start' else shape.steps} steps"
        results += [
            Result(metric=f"max_{name}", value=one.max_abs, unit="activation", where=where),
            Result(metric=f"kurtosis_{name}", value=one.kurtosis, unit="kurtosis", where=where),
        ]
    return results


def step_shares(shape: Shape, trained: dict[str, Trained]) -> dict[str, float]:
    """The processor time of a step of each variant over the plain one's; the median over batches."""
    plain, trainers = trained["plain"].made_ready, {name: one.trainer for name, one in trained.items()}
    for trainer in trainers.values():
        trainer.step = 0
    shares: dict[str, list[float]] = {name: [] for name in trainers}
    for repeat in range(shape.repeats + 1):
        masked, times = plain.train.batch(repeat, plain.config.run.batch_size), {}
        for name, trainer in trainers.items():
            since = time.process_time()
            trainer.train_step(masked)
            times[name] = time.process_time() - since
        for name in trainers if repeat else ():  # the first warms up
            shares[name].append(times[name] / times["plain"])
    return {name: statistics.median(values) for name, values in shares.items()}


def kept_share(shape: Shape, made_ready: Run) -> float:
    """The share of the tokens that enter the encoder where masked ones do not, in the batches that are timed."""
    kept = there = 0
    for repeat in range(1, shape.repeats + 1):
        masked = made_ready.train.batch(repeat, made_ready.config.run.batch_size)
        present = made_ready.pretraining.model.present(masked.batch)
        there += int(present.sum())
        kept += int((present & ~made_ready.pretraining.hidden(masked)).sum())
    return kept / there


def step_results(shape: Shape, trained: dict[str, Trained]) -> list[Result]:
    """What a step of each variant costs beside the plain one, and beside what it is accounted for."""
    plain, shares, results = trained["plain"].made_ready, step_shares(shape, trained), []
    kept, L = kept_share(shape, plain), plain.config.model.num_layers
    where = f"{shape.config}, {plain.config.run.batch_size} listings, {kept:.3f} of the tokens kept"
    for name, late in LATE.items():
        accounted = (kept * L + late) / L
        results += [
            Result(metric=f"step_{name}", value=shares[name], unit="ratio", against="step of plain", where=where),
            Result(metric=f"accounted_{name}", value=accounted, unit="ratio", against="layers of plain", where=where),
            Result(
                metric=f"late_step_{name}",
                value=shares[name] / accounted,
                unit="ratio",
                against=f"accounted_{name}",
                where=where,
            ),
        ]
    return results + [
        Result(metric=f"step_{name}", value=shares[name], unit="ratio", against="step of softmax", where=where)
        for name in ATTENTION[1:]
    ]


def measure(shape: Shape, catalog: Catalog, folder: Path) -> list[Result]:
    """Trains every variant, then times a step of each in turn."""
    masks: list[MaskedBatch] = []
    trained = {name: train_variant(shape, name, catalog, folder, masks) for name in VARIANTS}
    return [result for one in trained.values() for result in one.results] + step_results(shape, trained)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.masking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="`tiny` alone, a few steps")
    parser.add_argument("--catalog", type=Path, help="a catalogue; default: a sample shop is drawn")
    parser.add_argument("--words", type=Path, help="a BERT checkpoint of MiniLM's sizes that `small` starts from")
    parser.add_argument("--stem-weights", type=Path, help="weights of the stem of `small`, in timm's layout")
    arguments = parser.parse_args(argv)
    if (arguments.words is None) != (arguments.stem_weights is None):
        parser.error("--words and --stem-weights: give both, or neither")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        catalog = read_catalog(arguments.catalog or draw_shop(folder / "shop", 100 if arguments.quick else 260))
        shapes = [QUICK if arguments.quick else TINY]
        if arguments.words and not arguments.quick:
            start = (f"start.words={arguments.words}", f"start.stem_weights={arguments.stem_weights}")
            shapes.append(replace(SMALL, overrides=(*SMALL.overrides, *start)))
        results = []
        for number, shape in enumerate(shapes):
            results += measure(shape, catalog, folder / str(number))
    write_report("masking", results, ("torch", "timm"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
