"""HiWi (arXiv 2305.16742): the adapter is applied to pre-trained parameters, not to hidden states.

    b <- b + f(b A) C        for the biases b of the feed-forward layers, up and down

After training the new biases are stored and A and C thrown away: the folded model is the base's graph, operation for
operation, and 5 D values a layer (mlp_width 4 D) are all that is stored, whatever the rank.

Ours: f is GELU; A starts so that b A is normal with variance 1 however large b is; C starts at 0, so that a fresh
adapter is the identity. The paper's other form, for the weights in place of the biases, would store whole matrices.

Shapes: N adapters, d outputs of a linear layer (its bias is (d,)), r rank, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.adapters.method import Adapted, Method, in_place
from item.errors import ConfigError
from item.model.encoder import ITEm

FEED_FORWARD = ("up", "down")


@dataclass(frozen=True, kw_only=True)
class HiwiConfig:
    """rank: r of A and C, in training only."""

    rank: int = 64

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank: {self.rank} must be at least 1")


def change_of_bias(b: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """b: (d,), A: (..., d, r), C: (..., r, d) -> f(b A) C, (..., d)."""
    return (F.gelu(b @ A)[..., None, :] @ C).squeeze(-2)


class Raised(Adapted):
    """A linear layer with `added`, (d,) or (B, 1, d), on its outputs. (B, T, in) -> (B, T, d)."""

    added: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.added


class HiWi(Method):
    """N adapters of the feed-forward biases. A: L x 2 tensors (N, d, r), C: (N, r, d), up before down of each layer.

    ConfigError where a bias is 0 throughout: f(0 A) C is 0, so that its adapter could never learn.
    """

    def __init__(self, model: ITEm, config: HiwiConfig, num_adapters: int = 1) -> None:
        super().__init__(model, config, num_adapters)
        r = config.rank
        self.linears = {
            f"layers.{index}.{name}": cast(nn.Linear, getattr(layer, name))
            for index, layer in enumerate(model.layers)
            for name in FEED_FORWARD
        }
        for name, linear in self.linears.items():
            if not linear.bias.any():
                raise ConfigError(f"{name}.bias: is 0 throughout, HiWi has nothing to start from; take another method")
        self.raised = {name: Raised() for name in self.linears}
        biases = [linear.bias.detach() for linear in self.linears.values()]
        self.A = nn.ParameterList(torch.randn(num_adapters, len(b), r).to(b) / b.norm() for b in biases)
        self.C = nn.ParameterList(b.new_zeros(num_adapters, r, len(b)) for b in biases)

    def changes(self) -> Iterator[tuple[str, nn.Linear, Tensor]]:
        """Each linear layer's name, itself, and what is added to its bias, (N, d)."""
        for (name, linear), A, C in zip(self.linears.items(), self.A, self.C, strict=True):
            yield name, linear, change_of_bias(linear.bias.detach(), A, C)

    @property
    def num_stored(self) -> int:
        """5 D L: the new biases."""
        return sum(len(linear.bias) for linear in self.linears.values())

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """Within, the feed-forward layers have the biases of each listing's adapter. rows: (B,) int64; None: all 0."""
        for name, _, change in self.changes():
            self.raised[name].added = change[0] if rows is None else change[rows][:, None]
        try:
            with in_place(self.model, self.raised):
                yield
        finally:
            for module in self.raised.values():
                del module.added

    @torch.no_grad()
    def fold(self, row: int = 0) -> dict[str, Tensor]:
        """The model's tensors with the biases of one adapter: the base's names and shapes."""
        tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for name, linear, change in self.changes():
            tensors[f"{name}.bias"] = linear.bias + change[row]
        return tensors
