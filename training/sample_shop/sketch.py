"""The drawing board of the sample shop: 100 x 100 units, y downwards, painted with cloth or plain colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Point = tuple[float, float]
Colour = tuple[int, int, int]
Paint = Colour | Image.Image  # a colour, or a picture of the whole board that shows through the shape

BOARD_PX = 512
UNIT_PX = BOARD_PX / 100
OUTLINE_PX = 3


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a, in [0, 1]."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def darker(colour: Colour, share: float = 0.35) -> Colour:
    return mix(colour, (12, 12, 20), share)


def lighter(colour: Colour, share: float = 0.45) -> Colour:
    return mix(colour, (255, 255, 255), share)


def cloth(pattern: str, colour: Colour, second: Colour, pitch: float = 9.0) -> Image.Image:
    """A board full of the pattern: plain, stripes, dots, checks or two-tone; `pitch` is its period in units."""
    board = Image.new("RGB", (BOARD_PX, BOARD_PX), colour)
    draw, step = ImageDraw.Draw(board), pitch * UNIT_PX
    marks = np.arange(0, BOARD_PX, step)
    if pattern == "stripes":
        for y in marks:
            draw.rectangle((0, y, BOARD_PX, y + step * 0.45), fill=second)
    elif pattern == "checks":
        for a in marks:
            draw.rectangle((0, a, BOARD_PX, a + step / 2), fill=mix(colour, second, 0.5))
        for x in marks:
            draw.rectangle((x, 0, x + step / 2, BOARD_PX), fill=mix(colour, second, 0.5))
            for y in marks:
                draw.rectangle((x, y, x + step / 2, y + step / 2), fill=second)
    elif pattern == "dots":
        radius = step * 0.27
        for row, y in enumerate(marks):
            for x in marks + step / 2 * (row % 2):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=second)
    elif pattern == "two-tone":
        draw.rectangle((0, BOARD_PX * 0.54, BOARD_PX, BOARD_PX), fill=second)
    return board


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 10) -> list[Point]:
    """A Catmull-Rom curve through the points."""
    p = np.array(points, dtype=np.float64)
    ends = (p[-1:], p[:2]) if closed else (p[:1], p[-1:])
    p = np.concatenate([ends[0], p, ends[1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    path = curve.transpose(1, 0, 2).reshape(-1, 2)
    return [(float(x), float(y)) for x, y in (path if closed else np.concatenate([path, p[-1:]]))]


def mirrored(points: Sequence[Point], axis: float = 50.0) -> list[Point]:
    """The points and their reflection at x = axis, as one outline."""
    return [*points, *((2 * axis - x, y) for x, y in reversed(points))]


class Sketch:
    """One product being drawn.

    Args:
        colour, second: the product's two colours; `cloth` is their pattern, `trim` the second one.
    """

    def __init__(self, colour: Colour, second: Colour, pattern: str) -> None:
        self.colour = colour
        self.trim = second
        self.cloth = cloth(pattern, colour, second)
        self.line = darker(colour, 0.55)
        self._board = Image.new("RGBA", (BOARD_PX, BOARD_PX), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._board)

    def polygon(self, points: Sequence[Point], paint: Paint, outline: bool = True) -> None:
        path = [(x * UNIT_PX, y * UNIT_PX) for x, y in points]
        if isinstance(paint, Image.Image):
            mask = Image.new("L", self._board.size)
            ImageDraw.Draw(mask).polygon(path, fill=255)
            self._board.paste(paint, (0, 0), mask)
        else:
            self._draw.polygon(path, fill=paint)
        if outline:
            colour = self.line if isinstance(paint, Image.Image) else darker(paint, 0.45)
            self._draw.line([*path, path[0]], fill=colour, width=OUTLINE_PX, joint="curve")

    def blob(self, points: Sequence[Point], paint: Paint, outline: bool = True) -> None:
        """A closed smooth shape through the points."""
        self.polygon(smooth(points), paint, outline)

    def ellipse(self, x: float, y: float, rx: float, ry: float, paint: Paint, outline: bool = True) -> None:
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        self.polygon([(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles], paint, outline)

    def box(self, x0: float, y0: float, x1: float, y1: float, paint: Paint, radius: float = 0.0) -> None:
        """A rectangle with rounded corners."""
        r = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
        corners = ((x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180))
        turns = np.radians(np.linspace(0, 90, 9 if r else 1))
        self.polygon(
            [
                (x + r * float(np.cos(np.radians(start) + a)), y + r * float(np.sin(np.radians(start) + a)))
                for x, y, start in corners
                for a in turns
            ],
            paint,
        )

    def stroke(self, points: Sequence[Point], width: float, paint: Paint) -> None:
        """A line of `width` units with round ends."""
        path = [(x * UNIT_PX, y * UNIT_PX) for x, y in points]
        mask = Image.new("L", self._board.size)
        draw, pen = ImageDraw.Draw(mask), round(width * UNIT_PX)
        draw.line(path, fill=255, width=pen, joint="curve")
        for x, y in (path[0], path[-1]):
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
        self._board.paste(paint if isinstance(paint, Image.Image) else (*paint, 255), (0, 0), mask)

    def ring(self, x: float, y: float, radius: float, width: float, paint: Paint) -> None:
        angles = np.linspace(0, 2 * np.pi, 97)
        self.stroke([(x + radius * float(np.cos(a)), y + radius * float(np.sin(a))) for a in angles], width, paint)

    def finished(self) -> Image.Image:
        """The drawing with light from the upper left, cropped to what was drawn: RGBA."""
        image = self._board.crop(self._board.getbbox())
        coarse = image.getchannel("A").resize((max(1, image.width // 8), max(1, image.height // 8)))
        depth = np.asarray(coarse.filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
        down, right = np.ogrid[0 : 1 : coarse.height * 1j, 0 : 1 : coarse.width * 1j]
        light = Image.fromarray((255 * (0.84 + 0.16 * depth - 0.1 * (down + right))).clip(0, 255).astype(np.uint8))
        light = light.resize(image.size, Image.Resampling.BILINEAR)
        shaded = ImageChops.multiply(image.convert("RGB"), Image.merge("RGB", (light, light, light)))
        shaded.putalpha(image.getchannel("A"))
        return shaded
