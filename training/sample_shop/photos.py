"""How the sample shop's sellers photograph a product: background, place, light, noise and file format differ."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from training.sample_shop.sketch import Colour, lighter

Background = Literal["plain", "gradient", "room", "transparent"]
PictureFamily = Literal["crop", "flip_light", "background", "small_on_canvas", "jpeg_blur"]

ASPECTS = (1.0, 1.0, 0.75, 1.34, 0.67, 1.6)  # width to height
TONES: tuple[Colour, ...] = (
    *((255, 255, 255), (246, 246, 244), (232, 236, 240), (222, 214, 200), (206, 220, 226), (228, 208, 206)),
    *((200, 212, 190), (176, 164, 150), (158, 176, 190), (120, 126, 136), (196, 188, 212), (238, 226, 190)),
)
ORIENTATION_TAG = 0x0112
# What is done to an upright picture so that a reader who obeys the tag sees it upright again.
UNTURN = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photograph.

    `width`, `height` and `blur` in px; `fill` is the product's share of the frame, `x` and `y` its place in the free
    room in [0, 1]; `tilt` in degrees; `light` a gain per channel, 1 as drawn; `noise` a deviation in grey levels.
    """

    width: int
    height: int
    fill: float
    x: float
    y: float
    tilt: float
    mirrored: bool
    background: Background
    tones: tuple[Colour, Colour]
    light: tuple[float, float, float]
    noise: float
    blur: float
    quality: int
    orientation: int
    seed: int

    @property
    def suffix(self) -> str:
        return ".png" if self.background == "transparent" else ".jpg"


def plan_photo(rng: Random) -> Photo:
    """A seller's photograph of anything."""
    longer, aspect = rng.randint(96, 400), rng.choice(ASPECTS)
    brightness, warmth = rng.uniform(0.82, 1.12), rng.uniform(-0.06, 0.06)
    backgrounds: tuple[Background, ...] = ("plain", "gradient", "room", "transparent")
    return Photo(
        width=max(96, round(longer * min(1, aspect))),
        height=max(96, round(longer / max(1, aspect))),
        fill=rng.uniform(0.62, 0.94),
        x=rng.uniform(0.2, 0.8),
        y=rng.uniform(0.3, 0.8),
        tilt=rng.choice((0, 0, rng.uniform(-9, 9))),
        mirrored=rng.random() < 0.4,
        background=rng.choices(backgrounds, (50, 22, 20, 8))[0],
        tones=(rng.choice(TONES[:1] * 4 + TONES), rng.choice(TONES)),
        light=(brightness * (1 + warmth), brightness, brightness * (1 - warmth)),
        noise=rng.choice((0, 2.5, 5)),
        blur=0,
        quality=rng.choice((95, 88, 75, 55)),
        orientation=rng.choices((1, 3, 6, 8), (90, 3, 4, 3))[0],
        seed=rng.getrandbits(32),
    )


def retake(photo: Photo, family: PictureFamily, rng: Random) -> Photo:
    """The same photograph as one more seller would take it."""
    if family == "crop":
        return replace(photo, fill=1.2, x=rng.uniform(0.3, 0.7), y=rng.uniform(0.3, 0.7))
    if family == "flip_light":
        dim = rng.choice((0.72, 1.2))
        red, green, blue = photo.light
        return replace(photo, mirrored=not photo.mirrored, light=(red * dim, green * dim, blue * dim))
    if family == "background":
        wall, floor = rng.sample([tone for tone in TONES[2:] if tone not in photo.tones], 2)
        return replace(photo, background="room", tones=(wall, floor))
    if family == "small_on_canvas":
        return replace(photo, fill=0.42, x=rng.random(), y=rng.random())
    # A transparent picture has no JPEG to spoil: it gets a white ground first.
    ground = "plain" if photo.background == "transparent" else photo.background
    return replace(photo, background=ground, blur=1.2, quality=22)


def take(photo: Photo, drawing: Image.Image) -> bytes:
    """The photograph's file (JPEG, or PNG with alpha where nothing is behind the product) of an RGBA drawing."""
    item = _posed(photo, drawing)
    corner = round((photo.width - item.width) * photo.x), round((photo.height - item.height) * photo.y)
    file = io.BytesIO()
    if photo.background == "transparent":
        canvas = Image.new("RGBA", (photo.width, photo.height), (0, 0, 0, 0))
        canvas.paste(item, corner)
        canvas.save(file, "PNG", compress_level=4)
        return file.getvalue()
    canvas = _background(photo)
    shade = item.getchannel("A").reduce(4).filter(ImageFilter.GaussianBlur(1.5)).resize(item.size)
    canvas.paste((40, 40, 48), (corner[0] + 3, corner[1] + 5), shade.point([v // 3 for v in range(256)]))
    canvas.paste(item, corner, item)
    canvas = _exposed(photo, canvas)
    exif = Image.Exif()
    if photo.orientation != 1:
        canvas = canvas.transpose(UNTURN[photo.orientation])
        exif[ORIENTATION_TAG] = photo.orientation
    canvas.save(file, "JPEG", quality=photo.quality, exif=exif)
    return file.getvalue()


def _posed(photo: Photo, drawing: Image.Image) -> Image.Image:
    item = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if photo.mirrored else drawing
    scale = photo.fill * min(photo.width / item.width, photo.height / item.height)
    size = max(8, round(item.width * scale)), max(8, round(item.height * scale))
    item = item.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return item.rotate(photo.tilt, Image.Resampling.BICUBIC, expand=True) if photo.tilt else item


def _background(photo: Photo) -> Image.Image:
    first, second = photo.tones
    size = photo.width, photo.height
    canvas = Image.new("RGB", size, first)
    if photo.background == "gradient":
        canvas.paste(second, (0, 0), Image.linear_gradient("L").resize(size))
    elif photo.background == "room":
        floor = round(photo.height * 0.72)
        canvas.paste(second, (0, floor, photo.width, photo.height))
        canvas.paste(lighter(second, 0.35), (0, floor, photo.width, floor + max(2, photo.height // 60)))
    return canvas


def _exposed(photo: Photo, image: Image.Image) -> Image.Image:
    """Lens and sensor: blur, light per channel, and the same grain on all channels."""
    if photo.blur:
        image = image.filter(ImageFilter.GaussianBlur(photo.blur))
    image = image.point([min(255, round(level * gain)) for gain in photo.light for level in range(256)])
    if not photo.noise:
        return image
    grain = np.random.default_rng(photo.seed).standard_normal((photo.height, photo.width, 1), dtype=np.float32)
    noisy = np.asarray(image, dtype=np.float32) + grain * photo.noise
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
