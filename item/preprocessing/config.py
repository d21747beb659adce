"""The settings of preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from item.errors import ConfigError

# Pillow refuses pictures above twice its warning limit by itself.
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)


@dataclass(frozen=True, kw_only=True)
class PreprocessorConfig:
    """What is kept of the words and the picture of a listing. Part of the digest, so of a model's space.

    Args:
        max_words: word ids kept, without the closing [SEP].
        picture_size: side of the square that the encoder sees, in pixels.
        background: R, G, B in 0..255, behind transparent pixels and around pictures that are no squares.
        max_picture_bytes: larger files are refused unread.
        max_picture_pixels: pictures of more (width times height) are refused before they are decoded.
    """

    max_words: int = 48
    picture_size: int = 192
    background: tuple[int, int, int] = (255, 255, 255)
    max_picture_bytes: int = 20 * 2**20
    max_picture_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        bounds = {
            "max_words": 2**16,
            "picture_size": 2**14,
            "max_picture_bytes": 2**31,
            "max_picture_pixels": _MAX_PIXELS,
        }
        for name, highest in bounds.items():
            value = getattr(self, name)
            if not _is_whole(value) or not 1 <= value <= highest:
                raise ConfigError(f"{name}: {value!r} is no whole number from 1 to {highest:,}")
        if not _are_three(self.background) or not all(_is_whole(v) and 0 <= v <= 255 for v in self.background):
            raise ConfigError(f"background: {self.background!r} are not three whole numbers from 0 to 255")


def _are_three(values: object) -> bool:
    return isinstance(values, tuple) and len(values) == 3


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
