"""Another view of a listing: the picture as a second shop might show it, the words as a second seller might type them.

Alignment learns from pairs of views what of a listing is the product and what is only its presentation. A view is a
pure function of the listing and of the random generator that draws it.
"""

from __future__ import annotations

import io
import string
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from item.catalog.listing import Listing

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

WORK_SIZE = 256  # pixels of the longer side: views are drawn on pictures of this size
UNIFORM_TOLERANCE = 18  # grey levels around the border's median that still count as background
SHARE_OF_BACKGROUND = (0.15, 0.97)  # of the picture, where there is a background to exchange
MAX_DESCRIPTION = 120  # words of the description that a view draws from
DECORATIONS = ("***", "!!!", "###", "❤️")


def listing_view(listing: Listing, rng: np.random.Generator) -> Listing:
    """The listing with its words as another seller might have typed them; what is not there stays away.

    Words are dropped, misspelt, put in another order; the description is a passage of itself or left out.
    """
    often = rng.random(5)
    drop = rng.uniform(0, 0.5) if often[0] < 0.5 else 0.0
    slips = rng.uniform(0, 0.5) if often[1] < 0.4 else 0.0
    shuffled = bool(often[2] < 0.3)
    title = retype(listing.title.split(), rng, drop, slips, shuffled)
    passage = draw_passage(listing.description.split()[:MAX_DESCRIPTION], rng)
    if often[3] < 0.25 and title:
        passage = []
    description = retype(passage, rng, drop, slips, shuffled)
    if often[4] < 0.15 and title:
        mark = DECORATIONS[int(rng.integers(len(DECORATIONS)))]
        title = [mark, *(word.upper() for word in title), mark]
    return replace(listing, title=" ".join(title), description=" ".join(description))


def draw_passage(words: list[str], rng: np.random.Generator) -> list[str]:
    """A run of at least a fifth of the words."""
    length = int(rng.uniform(0.2, 1) * len(words)) + 1
    start = int(rng.integers(0, max(1, len(words) - length + 1)))
    return words[start : start + length]


def retype(words: list[str], rng: np.random.Generator, drop: float, slips: float, shuffled: bool) -> list[str]:
    """The words with a share dropped (one stays), a share misspelt, and their order lost if asked."""
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= drop] or words[:1]
    if shuffled:
        kept = [kept[i] for i in rng.permutation(len(kept))]
    return [misspell(word, rng) if rng.random() < slips else word for word in kept]


def misspell(word: str, rng: np.random.Generator) -> str:
    """One slip of a finger: letters exchanged, left out, doubled, replaced."""
    if len(word) < 3:
        return word
    i = int(rng.integers(len(word) - 1))
    letter = string.ascii_lowercase[int(rng.integers(26))]
    slips = (
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        word[:i] + word[i + 1 :],
        word[:i] + word[i] + word[i:],
        word[:i] + letter + word[i + 1 :],
    )
    return slips[int(rng.integers(len(slips)))]


def picture_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An RGB picture in another setting, cut, mirrored, lit, coarsened or set on a canvas; at most 256 px a side."""
    view = image.copy()
    view.thumbnail((WORK_SIZE, WORK_SIZE))
    for change, probability in CHANGES:
        if rng.random() < probability:
            view = change(view, rng)
    return view


def exchange_background(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another background, where the picture has a uniform one."""
    pixels = np.asarray(image).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    near = np.abs(pixels - np.median(border, axis=0)).max(axis=2) <= UNIFORM_TOLERANCE
    if not SHARE_OF_BACKGROUND[0] < near.mean() < SHARE_OF_BACKGROUND[1]:
        return image
    smooth = Image.fromarray(near.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(3))
    return Image.composite(draw_canvas(image.size, rng), image, smooth)


def cut(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of at least half of the width and two fifths of the height; of a side of up to 8 px all."""
    scale = rng.uniform(0.5, 1.0)
    width = min(image.width, max(8, int(image.width * scale)))
    height = min(image.height, max(8, int(image.height * scale * rng.uniform(0.85, 1.0))))
    left, top = (int(rng.uniform(0, free + 1)) for free in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right exchanged."""
    return ImageOps.mirror(image)


def light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another brightness, contrast and saturation."""
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(0.55, 1.5))
    return image


def coarsen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A smaller or blurred original, mostly through a strong JPEG compression."""
    if rng.random() < 0.6:
        scale = rng.uniform(0.1, 0.5)
        small = (max(8, int(image.width * scale)), max(8, int(image.height * scale)))
        image = image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BICUBIC)
    else:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    if rng.random() < 0.7:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(5, 50)))
        image = Image.open(file).convert("RGB")
    return image


def set_on_canvas(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture smaller, somewhere on a coloured canvas of its size."""
    scale = rng.uniform(0.3, 0.8)
    small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    canvas = draw_canvas(image.size, rng)
    left, top = (int(rng.integers(free + 1)) for free in (image.width - small.width, image.height - small.height))
    canvas.paste(small, (left, top))
    return canvas


def draw_canvas(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A colour, or one fading into another from left to right or top to bottom, with a little noise."""
    width, height = size
    first, last = rng.integers(0, 256, (2, 3)).astype(np.float32)
    if rng.random() < 0.4:
        last = first
    if rng.random() < 0.5:
        fade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    else:
        fade = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    noise: npt.NDArray[np.float64] = rng.normal(0, rng.uniform(0, 15), (height, width, 1))
    return Image.fromarray(np.clip(first + (last - first) * fade + noise, 0, 255).astype(np.uint8))


CHANGES: tuple[tuple[Change, float], ...] = (
    (exchange_background, 0.3),
    (cut, 0.5),
    (mirror, 0.5),
    (light, 0.5),
    (coarsen, 0.3),
    (set_on_canvas, 0.3),
)
