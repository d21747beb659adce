"""RoAd (arXiv 2409.00119): pairs of a linear layer's outputs are rotated and scaled.

    z = R h = R1 * h + R2 * rot(h)      rot(h) = (-h_2, h_1, -h_4, h_3, ...)      eq. 4
    W' = R W,  b' = R b                 merged: exactly the same layer

item.adapters.adapter has eq. 2, the three variants and the order of alpha and theta. In a batch of mixed adapters, each
listing takes its own R1 and R2 out of tables of all adapters: one gather for all layers, in training as in inference.

A pair of outputs is one complex number z: rot(h) is i z, and RoAd_1 is the product with alpha e^(i theta). Without
compilation that is a quarter of the passes over h, or one.

What differs from the paper:
- The product is taken in the parameters' precision (float32) and rounded to the layer's: in bfloat16 a scale of 1.003
  would be 1.
- An adapter may be restricted to some of each layer's blocks (`Road.restrict`), so that adapters on disjoint blocks,
  which the paper composes, are trained in one run with others.

Shapes: N adapters, P values of alpha and as many of theta, S outputs of the adapted linear layers, B listings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from item.adapters.adapter import LINEARS, VALUES, Array, check_variant, check_widths, linears_of
from item.adapters.files import Values
from item.adapters.method import Adapted, Method, in_place
from item.errors import ConfigError
from item.model.config import ItemConfig
from item.model.encoder import ITEm


@dataclass(frozen=True, kw_only=True)
class RoadConfig:
    """variant: "road_1", "road_2" or "road_4".

    targets: the linear layers that are adapted: names of `LINEARS` for those of every layer, or one by its whole name
        ("layers.0.attention.query").
    """

    variant: str = "road_1"
    targets: tuple[str, ...] = LINEARS

    def __post_init__(self) -> None:
        check_variant(self.variant)


def rotations(variant: str, alpha: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """R1 and R2, (..., S) each, of alpha and theta, (..., S / 2 * VALUES[variant]) each."""
    if variant == "road_4":  # a11 a22 a12 a21 of each block
        alpha, theta = (value.view(*value.shape[:-1], -1, 2, 2) for value in (alpha, theta))
        r1, r2 = alpha[..., 0, :] * theta[..., 0, :].cos(), alpha[..., 1, :] * theta[..., 1, :].sin()
        return r1.flatten(-2), r2.flatten(-2)
    r1, r2 = alpha * theta.cos(), alpha * theta.sin()
    return (r1.repeat_interleave(2, -1), r2.repeat_interleave(2, -1)) if variant == "road_1" else (r1, r2)


def rotate(h: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """R1 * h + R2 * rot(h) over the last dimension, in the dtype of h. r1, r2: broadcast with h."""
    scaled = h * r1
    if torch.compiler.is_compiling():  # all of it becomes one pass, and complex numbers would not
        turned = torch.stack([-h[..., 1::2], h[..., 0::2]], dim=-1).flatten(-2)
    else:
        turned = times(h.to(scaled.dtype), 1j)
    return torch.addcmul(scaled, turned, r2).to(h.dtype)


def times(h: Tensor, factor: Tensor | complex) -> Tensor:
    """Each pair of h, (..., S), as one complex number, times a factor, which broadcasts with (..., S / 2)."""
    z = torch.view_as_complex(h.contiguous().view(*h.shape[:-1], -1, 2))
    return torch.view_as_real(z * factor).flatten(-2)


def merge(weight: Tensor, bias: Tensor, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
    """R W and R b, new tensors. weight: (out, in); bias, r1, r2: (out,)."""
    return rotate(weight.T, r1, r2).T.contiguous(), rotate(bias, r1, r2)


class Rotated(Adapted):
    """A linear layer and the rotation of its outputs. (B, T, in) -> (B, T, out)."""

    def __init__(self, rotator: Rotator, place: slice) -> None:
        super().__init__()
        self.rotator, self.place = rotator, place

    def forward(self, x: Tensor) -> Tensor:
        h, place = self.linear(x), self.place
        if self.rotator.factors is not None and not torch.compiler.is_compiling():
            factors = self.rotator.factors[:, None, place.start // 2 : place.stop // 2]
            return times(h.to(torch.promote_types(h.dtype, factors.real.dtype)), factors).to(h.dtype)
        r1, r2 = self.rotator.tables
        return rotate(h, r1[:, None, place], r2[:, None, place])


class Rotator:
    """Rotates the outputs of a model's linear layers for a while.

    places: name of the module -> its columns of R1 and R2; None: all S of item.adapters.adapter.linears_of. Compiled
    layers run with any tables: those of a call are inputs of the compiled graph.
    """

    def __init__(self, model: ITEm, places: Mapping[str, slice] | None = None) -> None:
        self.model = model
        places = linears_of(model.config) if places is None else places
        self.modules = {name: Rotated(self, place) for name, place in places.items()}
        self.tables: tuple[Tensor, Tensor]
        self.factors: Tensor | None = None

    @contextmanager
    def applied(self, r1: Tensor, r2: Tensor, paired: bool = False) -> Iterator[None]:
        """Within, the outputs are rotated. r1, r2: (B, S), a row for each listing of the batch, or (1, S) for all.

        paired: whether both are equal within each pair, as RoAd_1's are: one complex product is then all there is.
        """
        self.tables = r1, r2
        self.factors = torch.complex(r1[:, ::2], r2[:, ::2]) if paired else None
        try:
            with in_place(self.model, self.modules):
                yield
        finally:
            del self.tables
            self.factors = None


class Road(Method):
    """N adapters. alpha, theta: (N, P) float32, all adapted layers one after another. blocks: (N, S / 2) bool, those
    that an adapter may rotate.

    ConfigError where a target is no linear layer, or outputs cannot be paired.
    """

    config: RoadConfig
    blocks: Tensor

    def __init__(self, model: ITEm, config: RoadConfig, num_adapters: int = 1) -> None:
        super().__init__(model, config, num_adapters)
        check_widths(model.config)
        self.places = places_of(model.config, config.targets)
        self.rotator = Rotator(model, self.places)
        num_blocks = max(place.stop for place in self.places.values()) // 2
        shape, device = (num_adapters, num_blocks * VALUES[config.variant]), model.gates.device
        self.alpha = nn.Parameter(torch.ones(shape, device=device))
        self.theta = nn.Parameter(torch.zeros(shape, device=device))
        self.register_buffer("blocks", torch.ones(num_adapters, num_blocks, dtype=torch.bool, device=device))

    def restrict(self, row: int, start: float, stop: float) -> None:
        """Lets an adapter rotate a share of each layer's blocks only: (0, 0.5) the first half, (0.5, 1) the other."""
        if not 0 <= start < stop <= 1:
            raise ConfigError(f"blocks: from {start} to {stop} is no share of them; give 0 <= start < stop <= 1")
        self.blocks[row] = False
        for place in self.places.values():
            first, count = place.start // 2, (place.stop - place.start) // 2
            self.blocks[row, first + round(start * count) : first + round(stop * count)] = True

    def parameters_within(self) -> tuple[Tensor, Tensor]:
        """alpha and theta, (N, P) each, as the identity has them outside an adapter's blocks."""
        free = self.blocks.repeat_interleave(VALUES[self.config.variant], dim=1)
        return torch.where(free, self.alpha, 1.0), torch.where(free, self.theta, 0.0)

    def tables(self) -> tuple[Tensor, Tensor]:
        """R1 and R2 of all adapters, (N, S) each."""
        return rotations(self.config.variant, *self.parameters_within())

    @property
    def num_stored(self) -> int:
        """2 P: road_1 on all linear layers 9 D L, where mlp_width is 4 D."""
        return 2 * self.alpha.shape[1]

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """Within, the outputs are rotated by each listing's adapter. rows: (B,) int64; None: all 0."""
        r1, r2 = (table[:1] if rows is None else table[rows] for table in self.tables())
        with self.rotator.applied(r1, r2, paired=self.config.variant == "road_1"):
            yield

    @torch.no_grad()
    def fold(self, row: int = 0) -> dict[str, Tensor]:
        """The model's tensors with one adapter merged, exactly: the base's names and shapes."""
        return self.merge_into({name: tensor.clone() for name, tensor in self.model.state_dict().items()}, row)

    @torch.no_grad()
    def merge_into(self, tensors: dict[str, Tensor], row: int) -> dict[str, Tensor]:
        """A model's tensors with one adapter merged; those of the adapted layers are new."""
        r1, r2 = (table[row] for table in self.tables())
        merged = dict(tensors)
        for name, place in self.places.items():
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            merged[f"{name}.weight"], merged[f"{name}.bias"] = merge(weight, bias, r1[place], r2[place])
        return merged

    @torch.no_grad()
    def values(self, row: int = 0) -> dict[str, tuple[Array, Array]]:
        """One adapter as `item.adapters.files.write_adapter` takes it: module -> its alpha and its theta, float32."""
        alpha, theta = (value[row].float().cpu().numpy() for value in self.parameters_within())
        return {name: (alpha[place], theta[place]) for name, place in self.parameter_places().items()}

    @torch.no_grad()
    def set_values(self, values: Values, row: int = 0) -> None:
        """Continues from an adapter as it was written; ConfigError where it adapts other layers."""
        if faults := sorted(values.keys() ^ self.places.keys()):
            raise ConfigError(f"targets: the adapter and this method do not both adapt {faults[0]}; choose the same")
        for name, place in self.parameter_places().items():
            for parameter, value in zip((self.alpha, self.theta), values[name], strict=True):
                parameter[row, place] = torch.from_numpy(value).to(parameter)

    def parameter_places(self) -> dict[str, slice]:
        """As `places`, among the P."""
        per_block = VALUES[self.config.variant]
        return {
            name: slice(place.start // 2 * per_block, place.stop // 2 * per_block)
            for name, place in self.places.items()
        }


def places_of(config: ItemConfig, targets: tuple[str, ...]) -> dict[str, slice]:
    """The modules that `targets` name, in the order of the encoder's: name -> its outputs among theirs."""
    linears = linears_of(config)
    if unknown := [target for target in targets if target not in LINEARS and target not in linears]:
        raise ConfigError(
            f"targets: {unknown[0]!r} is none of {', '.join(LINEARS)}, and no module as {next(iter(linears))}"
        )
    places, start = {}, 0
    for name, outputs in linears.items():
        if name in targets or name.rsplit(".", 1)[1] in targets:
            stop = start + outputs.stop - outputs.start
            places[name] = slice(start, stop)
            start = stop
    if not places:
        raise ConfigError(f"targets: none are named; choose of {', '.join(LINEARS)}")
    return places
