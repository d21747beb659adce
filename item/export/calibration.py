"""What enters the linear layers on a sample of listings: what static scales are fitted to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from item.export.graph import Array
from item.model.batch import collate
from item.model.encoder import ITEm, Layer
from item.preprocessing.prepared import Modality, Prepared

ROWS = 4096  # of each layer's inputs that are kept, drawn at random from all tokens
LISTINGS = 32  # of one run


def shown_by(prepared: Sequence[Prepared], modality: Modality) -> list[Prepared]:
    """The listings by one modality; those that lack something of it are left out."""

    def has_all(one: Prepared) -> bool:
        has_words, has_picture = one.word_ids is not None, one.pixels is not None
        return {"words": has_words, "picture": has_picture, "both": has_words and has_picture}[modality]

    return [kept for one in prepared if has_all(one) and (kept := one.only(modality)) is not None]


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
    """name -> (rows, in) float32, a sample of what enters each linear layer: as many tokens of each run, no padding.

    Runs are of listings in their order: kinds that follow each other have equal shares, whatever their lengths.
    """
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
