"""What 8-bit layers lose with each kind of attention: softmax, clipped and normalised clipped softmax.

    python -m benchmarks.attention --json FILE --quick                               about a minute on two cores
    python -m benchmarks.attention --json benchmarks/results/attention.json --catalog C --words BERT_FOLDER \\
        --stem-weights tf_efficientnet_lite0.safetensors                             about half an hour

Each kind is trained for the same steps on the same batches, and its layers are then put into 8 bits in two ways:
`plain`, with one static range from the least to the largest activation, as the literature's W8A8 has it (arXiv
2402.12102), and `fitted`, as `deploy.export --variant int8` does it (item.quantisation.int8).

`loss_*`: validation loss of the masked words in full precision. `lost_*`: by how much it grows in 8 bits.
`error_*`: the share of the last states' variance that 8 bits get wrong. `normalised_vs_softmax_*`: the error of
normalised clipped attention over softmax's. `max_*`, `kurtosis_*`: the worst layer's feed-forward output.

Two shapes: `tiny` from scratch, and `small`, continued from the starting weights that are given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.masking import ATTENTION, HALF, QUICK, SMALL, TINY, VARIANTS, Shape
from benchmarks.report import CHECKOUT, Result, write_report
from benchmarks.training import draw_shop
from item.catalog.reader import Catalog, read_catalog
from item.evaluation.activations import feed_forward_activations
from item.export.calibration import ROWS
from item.export.graph import Array
from item.model.encoder import ITEm, Layer
from item.model.objectives import MaskedBatch
from item.quantisation.int8 import Int8Linear, fit_linear, input_range, quantise_weight
from training.config import load_config
from training.loop import Trainer
from training.pretrain import Run, prefetched, prepare_run

CALIBRATION_ROWS = 256  # listings
Fit = Callable[[Array, Array, Array], Int8Linear]


def plain_linear(x: Array, weight: Array, bias: Array) -> Int8Linear:
    """W8A8 without anything else: one range over all activations, no smoothing, no outliers apart."""
    scale, zero = input_range(x, 0.0)
    quantised, weight_scale = quantise_weight(np.ascontiguousarray(weight.T))
    none = np.zeros(0, np.int64)
    return Int8Linear(
        input_scale=scale,
        input_zero=zero,
        smoothing=None,
        weight=quantised,
        weight_scale=weight_scale,
        bias=bias,
        outliers=none,
        outlier_weight=np.zeros((0, len(bias)), np.float32),
    )


FITS: dict[str, Fit] = {"plain": plain_linear, "fitted": fit_linear}


def linears_of(model: ITEm) -> list[nn.Linear]:
    """All linear layers of the layers."""
    layers = cast(list[Layer], model.layers)
    return [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]


@torch.inference_mode()
def inputs_of(made_ready: Run) -> dict[nn.Linear, Array]:
    """A sample of what enters each linear layer, from the train split."""
    model = made_ready.pretraining.model.eval()
    kept: dict[nn.Linear, list[Array]] = {linear: [] for linear in linears_of(model)}
    generator, there = torch.Generator().manual_seed(0), torch.zeros(0, dtype=torch.int64)

    def keep(linear: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        kept[linear].append(inputs[0].flatten(0, 1)[there].numpy())

    handles = [linear.register_forward_pre_hook(keep) for linear in kept]
    for batch in made_ready.train.whole_batches(CALIBRATION_ROWS):
        present = model.present(batch).flatten().nonzero().squeeze(1)
        share = max(1, ROWS * len(batch) // CALIBRATION_ROWS)
        there = present[torch.randperm(len(present), generator=generator)[:share]]
        model(batch)
    for handle in handles:
        handle.remove()
    return {linear: np.concatenate(parts) for linear, parts in kept.items()}


@contextmanager
def in_8_bits(inputs: dict[nn.Linear, Array], fit: Fit) -> Iterator[None]:
    """The linear layers compute in 8 bits inside."""
    handles = []
    for linear, x in inputs.items():
        fitted = fit(x, linear.weight.detach().numpy(), linear.bias.detach().numpy())

        def compute(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor, fitted: Int8Linear = fitted) -> Tensor:
            x = inputs[0]
            return torch.from_numpy(fitted(x.flatten(0, 1).numpy())).view(*x.shape[:-1], -1)

        handles.append(linear.register_forward_hook(compute))
    yield
    for handle in handles:
        handle.remove()


@torch.inference_mode()
def word_loss(trainer: Trainer, masks: Sequence[MaskedBatch]) -> float:
    """The mean validation loss of the masked words."""
    trainer.pretraining.eval()
    return float(np.mean([trainer.losses(trainer.pretraining, masked)["mlm"].item() for masked in masks]))


@torch.inference_mode()
def states(model: ITEm, masks: Sequence[MaskedBatch]) -> Tensor:
    """(N, D), the last states of the validation listings' tokens."""
    return torch.cat([model(masked.batch).states[model.present(masked.batch)] for masked in masks])


def measure(shape: Shape, catalog: Catalog, folder: Path) -> list[Result]:
    """Trains each kind and compares."""
    results, errors = [], {}
    masks: list[MaskedBatch] = []
    where = f"{shape.config}, {shape.steps} steps"
    for name in ATTENTION:
        overrides = (*shape.overrides, *HALF, f"run.steps={shape.steps}", f"run.cache={folder / 'features'}")
        config = load_config(CHECKOUT / f"training/configs/{shape.config}.yaml", (*overrides, *VARIANTS[name]))
        (folder / name / "run").mkdir(parents=True)
        made_ready = prepare_run(config, catalog, folder / name, torch.device("cpu"))
        masks[:] = masks or made_ready.validation
        trainer = made_ready.trainer(made_ready.pretraining)
        for masked in prefetched(made_ready.train, range(shape.steps), config.run.batch_size):
            trainer.train_step(masked)
        model = made_ready.pretraining.model.eval()
        loss, exact = word_loss(trainer, masks), states(model, masks)
        reach = feed_forward_activations(model, made_ready.train.whole_batches(CALIBRATION_ROWS))
        results += [
            Result(metric=f"loss_{name}", value=loss, unit="loss", where=where),
            Result(metric=f"max_{name}", value=max(one.max_abs for one in reach), unit="activation", where=where),
            Result(metric=f"kurtosis_{name}", value=max(one.kurtosis for one in reach), unit="kurtosis", where=where),
        ]
        inputs = inputs_of(made_ready)
        for how, fit in FITS.items():
            with in_8_bits(inputs, fit):
                lost, found = word_loss(trainer, masks) - loss, states(model, masks)
            error = ((found - exact).square().sum() / (exact - exact.mean(0)).square().sum()).item()
            errors[name, how] = error
            results += [
                Result(metric=f"lost_{name}_{how}", value=lost, unit="loss", against=f"loss_{name}", where=where),
                Result(metric=f"error_{name}_{how}", value=error, unit="share of variance", where=where),
            ]
    return results + [
        Result(
            metric=f"normalised_vs_softmax_{how}",
            value=errors["normalised_clipped", how] / errors["plain", how],
            unit="ratio",
            against=f"error_plain_{how}",
            where=where,
        )
        for how in FITS
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
        shapes = [QUICK if arguments.quick else replace(TINY, steps=1000)]
        if arguments.words and not arguments.quick:
            start = (f"start.words={arguments.words}", f"start.stem_weights={arguments.stem_weights}")
            shapes.append(replace(SMALL, steps=40, overrides=(*SMALL.overrides, *start)))
        results = []
        for number, shape in enumerate(shapes):
            results += measure(shape, catalog, folder / str(number))
    write_report("attention", results, ("torch", "timm"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
