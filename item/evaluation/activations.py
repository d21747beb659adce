"""How far the activations reach: what 8-bit numbers have to hold, and lose where a few values are far from the rest.

Measured where transformers have their outliers, at the output of each layer's feed-forward network, before it is added
to the residual (arXiv 2402.12102 and the work it builds on report the same two figures).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from item.model.batch import Batch
from item.model.encoder import ITEm


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """One layer's values, over all listings, tokens and dimensions.

    max_abs: the largest absolute value. kurtosis: the fourth central moment over the squared variance; a normal
    distribution has 3, whatever its scale, and few values far out give hundreds.
    """

    max_abs: float
    kurtosis: float


class Moments:
    """The first four power sums of a stream of values, in float64, and the largest absolute value."""

    def __init__(self) -> None:
        self.count, self.max_abs = 0, 0.0
        self.sums = torch.zeros(4, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Any shape; floating."""
        x = values.double().flatten()
        self.count += x.numel()
        self.max_abs = max(self.max_abs, x.abs().max().item())
        self.sums += torch.stack([(x**power).sum() for power in (1, 2, 3, 4)]).cpu()

    def result(self) -> Activations:
        """Of what was added so far; the values must not all be equal."""
        m1, m2, m3, m4 = (self.sums / self.count).tolist()
        variance = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return Activations(max_abs=self.max_abs, kurtosis=fourth / variance**2)


@torch.inference_mode()
def feed_forward_activations(model: ITEm, batches: Iterable[Batch]) -> list[Activations]:
    """The figures of each layer, first to last, over the tokens that are there: no padding, no absent cells.

    `model` should be in evaluation mode; a batch is forgotten before the next is read.
    """
    moments = [Moments() for _ in model.layers]
    with watched([layer.get_submodule("down") for layer in model.layers]) as outputs:
        for batch in batches:
            present = model.present(batch)
            model(batch)
            for of_layer, output in zip(moments, outputs, strict=True):
                of_layer.add(output[present])
            outputs.clear()
    return [of_layer.result() for of_layer in moments]


@contextmanager
def watched(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that each call of one of the modules appends its output to."""
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for module in modules
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
