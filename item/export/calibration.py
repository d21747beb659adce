"""What enters the linear layers on a sample of listings: what static scales are fitted to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from item.export.graph import Array
from item.model.batch import collate
from item.model.encoder import ITEm, Layer
from item.preprocessing.prepared import Prepared

ROWS = 2048  # of each layer's inputs that are kept, drawn at random from all tokens
LISTINGS = 32  # of one run


def as_all_kinds(one: Prepared) -> list[Prepared]:
    """A listing by its words, by its picture and by both, as far as it has them."""
    if one.word_ids is None or one.pixels is None:
        return [one]
    return [replace(one, pixels=None), replace(one, word_ids=None), one]


def linear_inputs(model: ITEm) -> dict[str, nn.Module]:
    """The linear layers of the graph by name (item.export.encoder); query stands for query, key and value."""
    named: dict[str, nn.Module] = {}
    for index, layer in enumerate(cast(list[Layer], model.layers)):
        named[f"layers.{index}.qkv"] = layer.attention.query
        named[f"layers.{index}.output"] = layer.attention.output
        named[f"layers.{index}.up"] = layer.up
        named[f"layers.{index}.down"] = layer.down
    return named


@torch.inference_mode()
def collect_inputs(model: ITEm, prepared: Sequence[Prepared]) -> dict[str, Array]:
    """name -> (rows, in) float32, a sample of what enters each linear layer: some tokens of each run, no padding."""
    generator = np.random.default_rng(0)
    kept: dict[str, list[Array]] = defaultdict(list)
    drawn = torch.zeros(0, dtype=torch.int64)

    def keep(name: str, x: Tensor) -> None:
        kept[name].append(x.flatten(0, 1)[drawn].numpy())

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
        for name, module in linear_inputs(model).items()
    ]
    try:
        for start in range(0, len(prepared), LISTINGS):
            chunk = prepared[start : start + LISTINGS]
            batch = collate(chunk)
            there = np.flatnonzero(model.present(batch).numpy())
            share = -(-ROWS * len(chunk) // len(prepared))
            drawn = torch.from_numpy(generator.choice(there, min(len(there), share), replace=False))
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: np.concatenate(parts) for name, parts in kept.items()}
