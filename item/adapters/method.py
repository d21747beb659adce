"""What every method of adaptation is: parameters beside one model, and the model running with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from item.model.encoder import ITEm


class Method(nn.Module, ABC):
    """N adapters of one model. The model is not a part of it: its parameters and tensors are not among this module's.

    config: the method's own. num_adapters: N, the rows that a batch's listings may name.
    """

    model: ITEm
    config: Any

    def __init__(self, model: ITEm, config: Any, num_adapters: int = 1) -> None:
        super().__init__()
        self.__dict__["model"] = model  # beside the module, not a part of it
        self.config = config
        self.num_adapters = num_adapters

    @property
    @abstractmethod
    def num_stored(self) -> int:
        """Values stored for one adapter."""

    @abstractmethod
    def applied(self, rows: Tensor | None = None) -> AbstractContextManager[None]:
        """Within, the model runs with adapter rows[i] for listing i of the batch. rows: (B,) int64; None: all 0."""

    @abstractmethod
    def fold(self, row: int = 0) -> dict[str, Tensor]:
        """The model's tensors with one adapter merged, all new; ConfigError where a method cannot."""


class Adapted(nn.Module):
    """Stands in the place of a linear layer for a while, with its parameters under its names.

    A module and not a forward hook: what torch.compile has compiled before does not see a hook that comes later.
    """

    linear: nn.Module  # whose place it takes

    def take(self, linear: nn.Module) -> None:
        """Takes a linear layer's parameters; the layer itself is beside the module, not a part of it."""
        self.weight, self.bias = linear.weight, linear.bias
        self.__dict__["linear"] = linear


@contextmanager
def in_place(model: ITEm, modules: Mapping[str, Adapted]) -> Iterator[None]:
    """Within, modules stand in the places of the model's linear layers (or of what stands there). modules: name -> what
    takes its place. Not for two threads at once, nor twice with the same modules."""
    before = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            module.take(before[name])
            model.set_submodule(name, module)
        yield
    finally:
        for name, linear in before.items():
            model.set_submodule(name, linear)
