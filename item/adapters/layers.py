"""The layers of a model run another way for a while: what methods need that are more than hooks on linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from item.model.encoder import ITEm

Run = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@contextmanager
def layers_run_by(model: ITEm, run: Run, rows: Tensor | None = None) -> Iterator[None]:
    """Within, `run(row, x, mask, is_text)` takes the place of `model.run_layers` for the listings of each adapter row.

    rows: (B,) int64, each listing's adapter; None: 0 for all. Listings of one adapter run together, one adapter after
    the other: the cost grows with the number of adapters in a batch.
    """

    def run_layers(x: Tensor, mask: Tensor, is_text: Tensor) -> Tensor:
        present = [0] if rows is None else torch.unique(rows).tolist()
        if rows is None or len(present) == 1:
            return run(present[0], x, mask, is_text)
        of_row = [(rows == row).nonzero().squeeze(1) for row in present]
        is_text = is_text.expand_as(mask)
        parts = [run(row, x[at], mask[at], is_text[at]) for row, at in zip(present, of_row, strict=True)]
        return torch.cat(parts)[torch.cat(of_row).argsort()]

    before = model.__dict__.get("run_layers")
    model.__dict__["run_layers"] = run_layers
    try:
        yield
    finally:
        del model.__dict__["run_layers"]
        if before is not None:
            model.__dict__["run_layers"] = before
