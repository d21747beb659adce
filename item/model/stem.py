"""Stems: from pixels to the cells v_1..v_m that the encoder reads, and to one pooled vector a picture.

Every stem offers `forward(pixels) -> features` (as it lays them out, cacheable), `cells(features) -> (P, m, C)` and
`pooled(features) -> (P, F)`. Cell j covers the j-th square of the picture, row by row.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from item.errors import ConfigError, ModelError
from item.model.config import ItemConfig


class Stem(Protocol):
    """What the encoder needs of a stem; `sees_neighbours` says whether a cell's features depend on other cells."""

    cell_width: int
    num_cells: int
    pooled_width: int
    sees_neighbours: bool

    def __call__(self, pixels: Tensor) -> Tensor: ...
    def cells(self, features: Tensor) -> Tensor: ...
    def pooled(self, features: Tensor) -> Tensor: ...
    def eval(self) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...


class PictureStem(nn.Module):
    """The part that all stems share: uint8 pixels are normalised on the device they are used on."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ItemConfig) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(P, 3, S, S) uint8 -> float; pixels already floating are taken as normalised."""
        return pixels if pixels.is_floating_point() else (pixels - self.mean) / self.std


class PatchStem(PictureStem):
    """Disjoint patches through one linear map: from scratch, or a timm model's own patch embedding."""

    sees_neighbours = False

    def __init__(self, config: ItemConfig, embedding: nn.Module) -> None:
        super().__init__(config)
        self.embedding = embedding
        with torch.no_grad():
            _, self.num_cells, self.cell_width = self(example_pixels(config)).shape
        self.pooled_width = self.cell_width

    def forward(self, pixels: Tensor) -> Tensor:
        """(P, 3, S, S) -> (P, m, C)."""
        patches = cast(Tensor, self.embedding(self.normalise(pixels)))
        return patches if patches.ndim == 3 else patches.flatten(1, 2)  # some models keep (P, h, w, C)

    def cells(self, features: Tensor) -> Tensor:
        return features

    def pooled(self, features: Tensor) -> Tensor:
        return features.mean(1)


class TimmStem(PictureStem):
    """The feature grid of a timm model: convolutional (P, C, h, w) or (P, h, w, C), or tokens (P, prefix + m, C)."""

    sees_neighbours = True

    def __init__(self, config: ItemConfig, backbone: nn.Module) -> None:
        super().__init__(config)
        self.backbone: Any = backbone.eval().to(memory_format=torch.channels_last)  # 5 times faster on CPUs
        self.channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        self.num_prefix_tokens: int = getattr(backbone, "num_prefix_tokens", 0)
        with torch.no_grad():
            features = self(example_pixels(config))
            _, self.num_cells, self.cell_width = self.cells(features).shape
            self.pooled_width = self.pooled(features).shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(
            Tensor, self.backbone.forward_features(self.normalise(pixels).contiguous(memory_format=torch.channels_last))
        )

    def cells(self, features: Tensor) -> Tensor:
        """The stem's features -> (P, m, C), row by row."""
        if features.ndim == 3:
            return features[:, self.num_prefix_tokens :]
        return (features if self.channels_last else features.permute(0, 2, 3, 1)).flatten(1, 2)

    def pooled(self, features: Tensor) -> Tensor:
        """The stem's features -> (P, F), by the model's own pooling."""
        return cast(Tensor, self.backbone.forward_head(features, pre_logits=True))


def example_pixels(config: ItemConfig) -> Tensor:
    """One grey picture, to learn a stem's shapes from."""
    return torch.zeros(1, 3, config.picture_size, config.picture_size)


def make_stem(config: ItemConfig) -> Stem:
    """The stem a configuration asks for, with random weights."""
    if config.stem is None:
        embedding = PatchEmbed(config.picture_size, config.patch_size, embed_dim=config.width)
        return PatchStem(config, embedding).eval()
    backbone = create_backbone(config.stem, config.picture_size)
    if config.stem_part == "grid":
        return TimmStem(config, backbone).eval()
    if not isinstance(embedding := getattr(backbone, "patch_embed", None), PatchEmbed):
        raise ConfigError(f"stem_part: {config.stem} has no patch embedding of its own; set stem_part to 'grid'")
    return PatchStem(config, embedding).eval()


def create_backbone(name: str, picture_size: int, **pretrained: Any) -> nn.Module:
    """A timm model without its classifier; models of a fixed input size are built for `picture_size`."""
    base_name = timm_name(name)
    fixed = timm.get_pretrained_cfg(base_name)
    size = {"img_size": picture_size} if fixed is not None and fixed.fixed_input_size else {}
    try:
        return cast(nn.Module, timm.create_model(base_name, num_classes=0, **size, **pretrained))
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"stem: {name} cannot be built for pictures of {picture_size} px: {error}") from error


def timm_name(name: str) -> str:
    """A timm model's name without its hub prefix; ModelError where timm has none of that name."""
    base_name = name.removeprefix("timm/")
    if not timm.is_model(base_name):
        near = ", ".join(timm.list_models(f"*{base_name.split('_')[0]}*")[:5]) or "timm.list_models() has them all"
        raise ModelError(f"stem: timm has no model {name!r}; near: {near}")
    return base_name


def grid_side(num_cells: int) -> int:
    """The side of a square grid of cells."""
    side = math.isqrt(num_cells)
    if side * side != num_cells:
        raise ConfigError(f"stem: its {num_cells} cells form no square grid; choose another picture_size or stem")
    return side
