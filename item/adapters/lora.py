"""LoRA (arXiv 2106.09685), the usual yardstick, and RoAd on top of it.

    h = W x + b + s B A x       s = alpha / rank; B starts at 0: a fresh adapter is the identity
    z = R h                     with RoAd (item.adapters.road), which then rotates LoRA's share too (ours)
    W' = R (W + s B A),  b' = R b

In a batch of mixed adapters each listing takes its own A and B: one batched product for all listings.

Shapes: N adapters, r rank, B listings, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from item.adapters.adapter import LINEARS
from item.adapters.method import Adapted, Method, in_place
from item.adapters.road import Road, RoadConfig, places_of
from item.errors import ConfigError
from item.model.encoder import ITEm


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """rank: r. alpha: of s = alpha / rank. targets: as in `RoadConfig`."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = LINEARS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank: {self.rank} must be at least 1")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / self.rank


class WithProduct(Adapted):
    """A linear layer and the product that is added to its outputs. (B, T, in) -> (B, T, out)."""

    lora: Lora

    def __init__(self, lora: Lora, index: int) -> None:
        super().__init__()
        self.__dict__["lora"], self.index = lora, index

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.lora.matrices(self.index)
        product = x.to(A.dtype) @ A.mT @ B.mT
        h = self.linear(x)
        return (h + self.lora.config.scale * product).to(h.dtype)


class Lora(Method):
    """N adapters. A: for each adapted layer (N, r, in), B: (N, out, r), float32."""

    config: LoraConfig

    def __init__(self, model: ITEm, config: LoraConfig, num_adapters: int = 1) -> None:
        super().__init__(model, config, num_adapters)
        self.names = list(places_of(model.config, config.targets))
        shapes = [cast(nn.Linear, model.get_submodule(name)).weight.shape for name in self.names]
        N, r, device = num_adapters, config.rank, model.gates.device
        self.A = nn.ParameterList(torch.empty(N, r, inputs, device=device) for _, inputs in shapes)
        self.B = nn.ParameterList(torch.zeros(N, outputs, r, device=device) for outputs, _ in shapes)
        self.rows: Tensor | None = None
        self.products = {name: WithProduct(self, index) for index, name in enumerate(self.names)}
        for A in self.A:
            nn.init.uniform_(A, -1 / math.sqrt(A.shape[2]), 1 / math.sqrt(A.shape[2]))

    @property
    def num_stored(self) -> int:
        """r (in + out) of each adapted layer."""
        return sum(parameter[0].numel() for parameter in self.parameters())

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """Within, each listing's product is added to the outputs. rows: (B,) int64; None: all 0."""
        self.rows = rows
        with in_place(self.model, self.products):
            yield

    def matrices(self, index: int) -> tuple[Tensor, Tensor]:
        """A and B of one layer as the batch needs them: (B, r, in) and (B, out, r), or one for all."""
        A, B = self.A[index], self.B[index]
        return (A[0], B[0]) if self.rows is None else (A[self.rows], B[self.rows])

    @torch.no_grad()
    def fold(self, row: int = 0) -> dict[str, Tensor]:
        """The model's tensors with one adapter merged: the base's names and shapes."""
        tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for name, A, B in zip(self.names, self.A, self.B, strict=True):
            weight = tensors[f"{name}.weight"]
            tensors[f"{name}.weight"] = (weight + self.config.scale * B[row] @ A[row]).to(weight.dtype)
        return tensors


@dataclass(frozen=True, kw_only=True)
class RoadLoraConfig(LoraConfig):
    """variant: RoAd's. Both adapt the same layers."""

    variant: str = "road_1"


class RoadLora(Method):
    """N adapters of LoRA, each rotated by one of RoAd."""

    config: RoadLoraConfig

    def __init__(self, model: ITEm, config: RoadLoraConfig, num_adapters: int = 1) -> None:
        super().__init__(model, config, num_adapters)
        self.lora = Lora(model, config, num_adapters)
        self.road = Road(model, RoadConfig(variant=config.variant, targets=config.targets), num_adapters)

    @property
    def num_stored(self) -> int:
        """Of both."""
        return self.road.num_stored + self.lora.num_stored

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """Within, LoRA's products are added and the sums rotated. rows: (B,) int64; None: all 0."""
        with self.lora.applied(rows), self.road.applied(rows):  # RoAd takes the places of LoRA's modules
            yield

    def fold(self, row: int = 0) -> dict[str, Tensor]:
        """The model's tensors with one adapter merged: the base's names and shapes."""
        return self.road.merge_into(self.lora.fold(row), row)
