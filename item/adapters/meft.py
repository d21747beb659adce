"""MEFT (arXiv 2306.00477): a pre-trained model made reversible, so that training keeps its last output alone.

    y1 = lambda x1 + F(x2)          y2 = beta x2 + G(y1)            both streams start as h_0
    x2 = (y2 - G(y1)) / beta        x1 = (y1 - F(x2)) / lambda      the inverse: backward rebuilds what entered a layer

    meft1   F: the layer, an adapter beside its feed-forward part   G: an adapter             scaled: x1   swapped
    meft2   F: an adapter            G: the layer, an adapter beside its feed-forward part    scaled: x2   swapped
    meft3   F: the attention part with an adapter   G: the feed-forward part with an adapter  scaled: both

An adapter is linear(D, r), GELU, linear(r, D); where streams are swapped, y2 is the next layer's x1 and y1 its x2. A
stream that is scaled is scaled by `scale`, the other by 1.

What differs from the paper:
- `scale` is 1/8, not 0.1: any power of two, so that scaling does not round.
- The streams are float64 numbers of fixed point: h_0, F and G come in the model's own precision and are rounded to
  multiples of 2^-k, with k such that all sums are exact (`fraction_bits`). The inverse is then the same to the bit, by
  construction, as long as no state reaches 2^`REACH_BITS`; one that does is refused. k is far beyond what float32
  holds of a state of order 1, and gradients take that rounding as the identity.
- The last states are those of the stream that the last layer is in (y1 of meft1, y2 of the others), not the mean of
  both: they are closer to what the pre-trained layers give. G of the last layer of meft1, which they do not depend on,
  is left out.
- Dropout draws from a seed of its own for each F and G, so that backward draws the same again.
- F and G run for `TOGETHER` listings at a time, forward as backward: a layer that is rebuilt holds the graph of those
  alone.

Shapes: B listings, T tokens, D width, L layers, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from item.adapters.layers import layers_run_by
from item.adapters.method import Method
from item.errors import ConfigError
from item.model.batch import Batch
from item.model.encoder import ITEm, Layer, initialise

Variant = Literal["meft1", "meft2", "meft3"]
REACH_BITS = 10  # no state may reach 2^10; a layer norm's outputs are below the root of the width
SIGNIFICAND_BITS = 53  # of a float64
LEAST_FRACTION_BITS = 20  # a float32 of order 1 has 23
TOGETHER = 8  # listings of which F or G holds a graph at one time


@dataclass(frozen=True, kw_only=True)
class MeftConfig:
    """variant: see above. rank: r. scale: lambda, beta or both, a power of two below 1 (published: 0.1)."""

    variant: Variant = "meft1"
    rank: int = 16
    scale: float = 0.125

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ConfigError(f"variant: {self.variant!r} is none of {', '.join(get_args(Variant))}")
        if self.rank < 1:
            raise ConfigError(f"rank: {self.rank} must be at least 1")
        if not 0 < self.scale < 1 or math.frexp(self.scale)[0] != 0.5:
            raise ConfigError(f"scale: {self.scale} must be a power of two below 1, or rebuilding rounds; take 0.125")

    @property
    def scales(self) -> tuple[float, float]:
        """lambda, beta."""
        return {"meft1": (self.scale, 1.0), "meft2": (1.0, self.scale), "meft3": (self.scale, self.scale)}[self.variant]

    @property
    def swapped(self) -> bool:
        """Whether the streams change places from layer to layer."""
        return self.variant != "meft3"


def fraction_bits(num_layers: int, scales: tuple[float, float], swapped: bool) -> int:
    """k: how many binary places F and G are rounded to, so that L layers' states below 2^REACH_BITS are exact.

    Each scaling by 2^-s moves a stream's last place s down; what is added has k places. Of the significand's bits,
    those above the point and the places that scaling takes are spoken for.
    """
    first, second = (-int(math.log2(scale)) for scale in scales)
    of_x1 = of_x2 = 0  # places beyond k
    for _ in range(num_layers):
        if swapped:
            of_x1, of_x2 = of_x2, of_x1
        of_x1, of_x2 = of_x1 + first, of_x2 + second
    return SIGNIFICAND_BITS - REACH_BITS - max(of_x1, of_x2)


class Bottleneck(nn.Module):
    """An adapter: linear(D, r), GELU, linear(r, D), started as BERT's linear layers. (..., D) -> (..., D)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))


def attention_part(layer: Layer, adapter: Callable[[Tensor], Tensor] | None, x: Tensor, bias: Tensor) -> Tensor:
    """The first half of a layer, with an adapter beside it where there is one. x: (B, T, D), bias: (B, 1, T, T)."""
    y = x + layer.dropout(layer.attention(x, bias))
    return layer.attention_norm(y if adapter is None else y + adapter(x))


def feed_forward_part(layer: Layer, adapter: Callable[[Tensor], Tensor], x: Tensor, _: Tensor) -> Tensor:
    """The second half of a layer with an adapter beside it. x: (B, T, D)."""
    return layer.mlp_norm(x + layer.dropout(layer.down(F.gelu(layer.up(x)))) + adapter(x))


def whole_layer(layer: Layer, adapter: Callable[[Tensor], Tensor], x: Tensor, bias: Tensor) -> Tensor:
    """A layer with an adapter beside its feed-forward part."""
    return feed_forward_part(layer, adapter, attention_part(layer, None, x, bias), bias)


def adapter_alone(adapter: Callable[[Tensor], Tensor], x: Tensor, _: Tensor) -> Tensor:
    """An adapter as F or G."""
    return adapter(x)


@dataclass(frozen=True, eq=False)
class Half:
    """F or G of one layer: `run(x, bias)`, and what in it is trained."""

    run: Callable[[Tensor, Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]

    @classmethod
    def of(cls, run: Callable[[Tensor, Tensor], Tensor], *modules: nn.Module) -> Half:
        """With the trained parameters of `modules`."""
        return cls(run, tuple(p for module in modules for p in module.parameters() if p.requires_grad))


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A reversible network of L layers.

    halves: F and G of each layer; None: 0. last: which stream the last states are, 0 (y1) or 1 (y2). places: k.
    dtype: of what enters F and G. precision: the precision that they compute in. seed: what dropout draws from; None:
    nothing is dropped. trained: whether gradients are wanted.
    """

    halves: Sequence[tuple[Half, Half | None]]
    scales: tuple[float, float]
    swapped: bool
    last: int
    places: int
    dtype: torch.dtype
    precision: Callable[[], torch.autocast]
    seed: int | None
    trained: bool

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained, in the order of the halves."""
        return [p for pair in self.halves for half in pair if half is not None for p in half.parameters]

    def round(self, x: Tensor) -> Tensor:
        """To float64 numbers with k binary places."""
        return x.double().mul(2.0**self.places).round_().mul_(2.0**-self.places)

    def run(self, index: int, which: int, x: Tensor, bias: Tensor, part: slice) -> tuple[Tensor, list[Tensor]]:
        """F (0) or G (1) of one layer for a part of x's listings: (B, T, D) float64 -> what it gives, (part, T, D), and
        the leaves of its graph: x, bias and parameters. Forward and backward both come here, so that both compute the
        same to the bit."""
        half = self.halves[index][which]
        assert half is not None
        x, bias = x[part], bias[part]
        x = x.detach().to(self.dtype).requires_grad_(self.trained)
        bias = bias.detach().requires_grad_(self.trained and bias.requires_grad)
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.trained))
            stack.enter_context(self.precision())
            if self.seed is not None:
                devices = [x.device] if x.is_cuda else []
                stack.enter_context(torch.random.fork_rng(devices))
                torch.manual_seed(self.seed + 2 * (index + len(self.halves) * part.start) + which)
            y = half.run(x, bias)
        return y, [x, bias, *half.parameters]

    def value(self, index: int, which: int, x: Tensor, bias: Tensor) -> Tensor:
        """What F or G adds to its stream, (B, T, D) float64 with k places; 0 where it is left out."""
        if self.halves[index][which] is None:
            return torch.zeros_like(x)
        value = torch.empty_like(x)
        for part in parts_of(x):
            value[part] = self.round(self.run(index, which, x, bias, part)[0].detach())
        return value

    def forward_layer(self, index: int, x1: Tensor, x2: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """x1, x2 -> y1, y2. Swaps first where streams are swapped: the first layer's are alike."""
        if self.swapped:
            x1, x2 = x2, x1
        y1 = self.scales[0] * x1 + self.value(index, 0, x2, bias)
        return y1, self.scales[1] * x2 + self.value(index, 1, y1, bias)

    def inverse_layer(self, index: int, y1: Tensor, y2: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """y1, y2 -> x1, x2, what entered the layer."""
        x2 = (y2 - self.value(index, 1, y1, bias)) / self.scales[1]
        x1 = (y1 - self.value(index, 0, x2, bias)) / self.scales[0]
        return (x2, x1) if self.swapped else (x1, x2)

    def streams(self, h: Tensor, biases: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """h_0: (B, T, D) -> the streams before the first layer and after each, (B, T, D) float64."""
        x1 = x2 = self.round(h.detach())
        yield x1, x2
        for index, bias in enumerate(biases):
            x1, x2 = self.forward_layer(index, x1, x2, bias)
            yield x1, x2

    def backward_layer(
        self, index: int, y: tuple[Tensor, Tensor], dy: tuple[Tensor, Tensor], bias: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[Tensor | None]]:
        """The streams after a layer and their gradients -> those before it, and the gradients of its bias (the sum over
        F and G) and parameters. As `inverse_layer`, with one graph at a time."""
        (y1, y2), (d1, d2) = y, dy
        of_biases: list[Tensor | None] = []
        of_parameters: list[list[Tensor | None]] = [[], []]

        def rebuild(which: int, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
            half = self.halves[index][which]
            if half is None:
                return torch.zeros_like(x), torch.zeros_like(x)
            value, of_x, of_bias = torch.empty_like(x), torch.empty_like(x), list[Tensor]()
            totals: list[Tensor | None] = [None] * len(half.parameters)
            for part in parts_of(x):
                out, leaves = self.run(index, which, x, bias, part)
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                found = torch.autograd.grad(out, wanted, d[part].to(out.dtype), allow_unused=True)
                gradients = dict(zip(map(id, wanted), found, strict=True))
                value[part] = self.round(out.detach())
                here, of_this_bias, *rest = (gradients.get(id(leaf)) for leaf in leaves)
                assert here is not None
                of_x[part] = here
                of_bias += [] if of_this_bias is None else [of_this_bias]
                totals = [plus(total, one) for total, one in zip(totals, rest, strict=True)]
            of_biases.extend([torch.cat(of_bias)] if of_bias else [])
            of_parameters[which] = totals
            return value, of_x

        value, d = rebuild(1, y1, d2)
        x2, d1 = (y2 - value) / self.scales[1], d1 + d
        value, d = rebuild(0, x2, d1)
        x1, d1, d2 = (y1 - value) / self.scales[0], self.scales[0] * d1, self.scales[1] * d2 + d
        if self.swapped:
            x1, x2, d1, d2 = x2, x1, d2, d1
        of_bias = reduce(plus, of_biases, None)
        return (x1, x2), (d1, d2), [of_bias, *of_parameters[0], *of_parameters[1]]


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients, None where there is neither."""
    return b if a is None else a if b is None else a + b


def parts_of(x: Tensor) -> list[slice]:
    """The B listings of x, `TOGETHER` at a time."""
    return [slice(start, min(start + TOGETHER, len(x))) for start in range(0, len(x), TOGETHER)]


class Reversible(torch.autograd.Function):
    """A network's last states, of which backward keeps the two last streams and nothing else of size (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, network: Network, h: Tensor, *tensors: Tensor) -> Tensor:
        """h: (B, T, D); tensors: the L layers' biases, (B, 1, T, T), then the network's parameters -> (B, T, D)."""
        biases = tensors[: len(network.halves)]
        reached = []
        for y1, y2 in network.streams(h, biases):
            reached.append(torch.maximum(y1.abs().amax(), y2.abs().amax()))
        refuse_far_states(torch.stack(reached).tolist())
        ctx.network = network
        ctx.save_for_backward(y1, y2, *biases)
        return (y1, y2)[network.last].to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        network: Network = ctx.network
        y1, y2, *biases = ctx.saved_tensors
        nothing = torch.zeros_like(y1)
        streams, gradients = (y1, y2), (d.double(), nothing) if network.last == 0 else (nothing, d.double())
        of_biases: list[Tensor | None] = []
        of_parameters: list[Tensor | None] = []
        for index in reversed(range(len(biases))):
            streams, gradients, (of_bias, *rest) = network.backward_layer(index, streams, gradients, biases[index])
            of_biases.insert(0, of_bias)
            of_parameters = rest + of_parameters
        x1, x2 = streams
        if not torch.equal(x1, x2):  # both have been h_0
            error = (x1 - x2).abs().max().item()
            raise ConfigError(
                f"layers: the first one's input was rebuilt {error:.3g} off; `Meft.check` names the layer"
            )
        return None, (gradients[0] + gradients[1]).to(d.dtype), *of_biases, *of_parameters


def refuse_far_states(reached: Sequence[float]) -> None:
    """ConfigError where a state is too far out for its sum to be exact. reached: the largest magnitude of h_0 and of
    each layer's output."""
    for number, size in enumerate(reached):
        if not size < 2**REACH_BITS:
            name = f"layers.{number - 1}" if number else "embeddings"
            raise ConfigError(
                f"{name}: a state reaches {size:.4g}; from {2**REACH_BITS} on a layer's input is not rebuilt exactly; "
                "train with a smaller learning rate, or by another method"
            )


class Meft(Method):
    """N adapters, each of which makes the model reversible. A fresh one is near the model, not the model itself, and
    none can be folded into it. ConfigError where L layers leave too few bits to round to.

    Listings of one adapter run together, one adapter after the other (`layers_run_by`).
    """

    config: MeftConfig

    def __init__(self, model: ITEm, config: MeftConfig, num_adapters: int = 1) -> None:
        super().__init__(model, config, num_adapters)
        L = model.config.num_layers
        self.places = fraction_bits(L, config.scales, config.swapped)
        if self.places < LEAST_FRACTION_BITS:
            raise ConfigError(
                f"scale: {config.scale} over {L} layers leaves {self.places} binary places, fewer than "
                f"{LEAST_FRACTION_BITS}; take a scale nearer to 1"
            )
        count = 2 * L - (config.variant == "meft1")
        make = partial(Bottleneck, model.config.width, config.rank)
        self.adapters = nn.ModuleList(nn.ModuleList(make() for _ in range(count)) for _ in range(num_adapters))
        self.adapters.to(model.gates)

    @property
    def num_stored(self) -> int:
        """All of one adapter."""
        return sum(parameter.numel() for parameter in self.adapters[0].parameters())

    def halves(self, row: int) -> list[tuple[Half, Half | None]]:
        """F and G of each layer with one adapter's parameters."""
        adapters = list(cast(nn.ModuleList, self.adapters[row]))
        layers = cast(list[Layer], list(self.model.layers))
        return [
            make_halves(self.config.variant, layer, *adapters[2 * index : 2 * index + 2])
            for index, layer in enumerate(layers)
        ]

    def network(self, row: int, device: torch.device) -> Network:
        """The reversible network of one adapter as it is now: in training or not, in the precision of the caller."""
        kind = device.type
        return Network(
            halves=self.halves(row),
            scales=self.config.scales,
            swapped=self.config.swapped,
            last=0 if self.config.variant == "meft1" else 1,
            places=self.places,
            dtype=self.model.gates.dtype,
            precision=partial(
                torch.autocast, kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
            ),
            seed=int(torch.randint(2**62, ())) if self.model.training else None,
            trained=torch.is_grad_enabled(),
        )

    def run(self, row: int, x: Tensor, mask: Tensor, is_text: Tensor) -> Tensor:
        """As `ITEm.run_layers`, by the reversible network of one adapter."""
        network = self.network(row, x.device)
        biases = self.model.attention_biases(mask, is_text)
        return cast(Tensor, Reversible.apply(network, x, *biases, *network.parameters))

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """Within, the layers are the reversible network of each listing's adapter. rows: (B,) int64; None: all 0."""
        with layers_run_by(self.model, self.run, rows):
            yield

    @torch.no_grad()
    def check(self, batch: Batch, row: int = 0) -> None:
        """Runs a batch forward and back, layer by layer; ConfigError names the layer whose input is not rebuilt to the
        bit, and by how much it is off."""

        def run(row: int, x: Tensor, mask: Tensor, is_text: Tensor) -> Tensor:
            network, biases = self.network(row, x.device), list(self.model.attention_biases(mask, is_text))
            streams = list(network.streams(x, biases))
            refuse_far_states([max(x1.abs().max().item(), x2.abs().max().item()) for x1, x2 in streams])
            for index in reversed(range(len(biases))):
                rebuilt = network.inverse_layer(index, *streams[index + 1], biases[index])
                error = max((a - b).abs().max().item() for a, b in zip(rebuilt, streams[index], strict=True))
                if error:
                    raise ConfigError(
                        f"layers.{index}: its input is rebuilt {error:.3g} off: it does not compute the same twice; "
                        "take its hooks away, ask torch for deterministic algorithms, or take another method"
                    )
            return streams[-1][network.last].to(x.dtype)

        with layers_run_by(self.model, run, torch.full((len(batch),), row)):
            self.model(batch)

    def fold(self, row: int = 0) -> dict[str, Tensor]:
        """ConfigError: a reversible network has two streams, the model has one."""
        raise ConfigError(f"method: {self.config.variant} cannot be folded into the model; road_1 and hiwi can")


def make_halves(
    variant: Variant, layer: Layer, first: nn.Module, second: nn.Module | None = None
) -> tuple[Half, Half | None]:
    """F and G of one layer, with its one or two adapters."""
    if variant == "meft1":
        f = Half.of(partial(whole_layer, layer, first), layer, first)
        return f, None if second is None else Half.of(partial(adapter_alone, second), second)
    assert second is not None
    if variant == "meft2":
        return (
            Half.of(partial(adapter_alone, first), first),
            Half.of(partial(whole_layer, layer, second), layer, second),
        )
    return (
        Half.of(partial(attention_part, layer, first), layer.attention, layer.attention_norm, first),
        Half.of(partial(feed_forward_part, layer, second), layer.up, layer.down, layer.mlp_norm, second),
    )
