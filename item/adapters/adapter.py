"""RoAd adapters (arXiv 2409.00119) as a server holds them, in numpy alone.

    z = R h = R1 * h + R2 * rot(h)      rot(h) = (-h_2, h_1, -h_4, h_3, ...)      eq. 4

h is the output of a linear layer, bias included; R has one 2x2 block for each pair of adjacent elements:

    R_i = [[a11 cos t11, -a12 sin t12], [a21 sin t21, a22 cos t22]]              eq. 2; alpha = 1, theta = 0: R = I

road_1 has one alpha and one theta for each block, road_2 one for each row of it, road_4 all four. They lie in the order
of HF PEFT with group_size=2: one after another for road_1 and road_2; a11 a22 a12 a21 of each block for road_4.

Shapes: S outputs of all linear layers of the encoder, S / 2 blocks, A adapters.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from item.adapters.head import Heads
from item.errors import ConfigError, ModelError
from item.model.config import ItemConfig

Array = npt.NDArray[Any]

LINEARS = ("query", "key", "value", "output", "up", "down")  # of each layer, in the order of S
VALUES = {"road_1": 1, "road_2": 2, "road_4": 4}  # variant -> alphas of one block, and as many thetas


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """One adapter of a model folder.

    method: "road_1", "road_2" or "road_4". model_space: of the model that it was made for.
    category: the path that it is for; (): any.
    r1, r2: (S,) float32; 1 and 0 where a layer is not adapted. num_parameters: values that it stores.
    digest: sha256 (hex) of what it does. heads: the head of its category, where it has one.
    """

    name: str
    method: str
    model_space: str
    category: tuple[str, ...]
    r1: Array
    r2: Array
    num_parameters: int
    digest: str
    heads: Heads | None = None

    @property
    def blocks(self) -> Array:
        """(S / 2,) bool: the blocks that are not the identity."""
        changed = (self.r1 != 1) | (self.r2 != 0)
        return changed.reshape(-1, 2).any(axis=1)

    def space(self, of_engine: str) -> str:
        """The space (hex) of the vectors that an engine of space `of_engine` makes with this adapter."""
        return hashlib.sha256(f"{of_engine} {self.digest}".encode()).hexdigest()


def linears_of(config: ItemConfig) -> dict[str, slice]:
    """The encoder's linear layers in the order of S: name of the module -> its outputs among the S."""
    slices, start = {}, 0
    for index in range(config.num_layers):
        for linear in LINEARS:
            width = config.mlp_width if linear == "up" else config.width
            block = "" if linear in ("up", "down") else "attention."
            slices[f"layers.{index}.{block}{linear}"] = slice(start, start + width)
            start += width
    return slices


def num_rotations(config: ItemConfig) -> int:
    """S = L (5 D + mlp_width), the outputs of all linear layers."""
    return config.num_layers * (5 * config.width + config.mlp_width)


def check_widths(config: ItemConfig) -> None:
    """ConfigError where outputs cannot be paired."""
    for name in ("width", "mlp_width"):
        if getattr(config, name) % 2:
            raise ConfigError(f"{name}: {getattr(config, name)} is odd; RoAd rotates pairs, use an even one")


def check_variant(method: str) -> None:
    """ConfigError where there is no such variant of RoAd."""
    if method not in VALUES:
        raise ConfigError(f"method: {method!r} is none of {', '.join(VALUES)}")


def rotations(method: str, alpha: Array, theta: Array) -> tuple[Array, Array]:
    """R1 and R2, (..., S) each, of alpha and theta, (..., S / 2 * VALUES[method]) each."""
    check_variant(method)
    if method == "road_4":
        blocks = (*alpha.shape[:-1], -1, 2, 2)
        alpha, theta = alpha.reshape(blocks), theta.reshape(blocks)
        r1, r2 = alpha[..., 0, :] * np.cos(theta[..., 0, :]), alpha[..., 1, :] * np.sin(theta[..., 1, :])
        return r1.reshape(*r1.shape[:-2], -1), r2.reshape(*r2.shape[:-2], -1)
    r1, r2 = alpha * np.cos(theta), alpha * np.sin(theta)
    return (r1.repeat(2, axis=-1), r2.repeat(2, axis=-1)) if method == "road_1" else (r1, r2)


def digest_of(method: str, r1: Array, r2: Array) -> str:
    """sha256 (hex) of an adapter's rotations."""
    digest = hashlib.sha256(f"{method} {len(r1)}".encode())
    for r in (r1, r2):
        digest.update(np.ascontiguousarray(r, dtype="<f4").data)
    return digest.hexdigest()


def compose(a: Adapter, b: Adapter) -> Adapter:
    """Both adapters at once, as the paper composes: each rotates blocks of its own, which are orthogonal subspaces.

    Raises:
        ModelError: they were made for different models, or both rotate the same block.
    """
    if a.model_space != b.model_space:
        raise ModelError(
            f"adapters {a.name!r} and {b.name!r} were made for different models "
            f"(spaces {a.model_space[:12]} and {b.model_space[:12]}); train them on the same model"
        )
    if shared := int((a.blocks & b.blocks).sum()):
        raise ModelError(
            f"adapters {a.name!r} and {b.name!r} rotate {shared} blocks in common; train each on blocks of its own"
        )
    of_b = b.blocks.repeat(2)
    r1, r2 = np.where(of_b, b.r1, a.r1), np.where(of_b, b.r2, a.r2)
    method = max(a.method, b.method)  # each variant contains those of a lower number
    return Adapter(
        name=f"{a.name}+{b.name}",
        method=method,
        model_space=a.model_space,
        category=a.category if a.category == b.category else (),
        r1=r1,
        r2=r2,
        num_parameters=a.num_parameters + b.num_parameters,
        digest=digest_of(method, r1, r2),
    )
