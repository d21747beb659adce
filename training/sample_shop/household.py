"""Drawings of things for the home and for leisure.

Each takes the form (a position in its leaf's forms) and a size in [-1, 1].
"""

from __future__ import annotations

from training.sample_shop.sketch import Point, Sketch, darker, lighter, mirrored, smooth

METAL = (176, 180, 188)
STEEL = (70, 72, 80)
WOOD = (150, 104, 66)


def mug(s: Sketch, form: int, size: float) -> None:
    top, foot = 22 - 6 * size, (18 if form == 0 else 28)
    handle = smooth([(70, top + 14), (88, top + 14), (92, 52), (84, 70), (66, 72)], closed=False)
    s.stroke(handle, 8, s.trim)
    s.polygon(
        [(14, top), (74, top), (88 - foot, 86), *smooth([(88 - foot, 86), (44, 90), (foot, 86)], closed=False)], s.cloth
    )
    s.ellipse(44, top, 30, 6, lighter(s.colour, 0.6))
    s.ellipse(44, top + 1, 25, 4, (94, 58, 36))


def teapot(s: Sketch, form: int, size: float) -> None:
    belly = 28 + 3 * size
    s.stroke(smooth([(72, 42), (92, 38), (94, 56), (74, 70)], closed=False), 6, s.trim)
    s.blob([(30, 56), (14, 46), (6, 32), (12, 30), (22, 40), (34, 44)], s.trim)
    if form == 0:
        s.ellipse(51, 58, 30, belly, s.cloth)
    else:
        s.polygon([(36, 34), (66, 34), (80, 84), (22, 84)], s.cloth)
    lid = 58 - belly if form == 0 else 34
    s.blob([(36, lid + 3), (51, lid - 7), (66, lid + 3), (51, lid + 6)], s.trim)
    s.ellipse(51, lid - 8, 4, 4, s.trim)


def frying_pan(s: Sketch, form: int, size: float) -> None:
    radius = 31 + 3 * size
    s.stroke([(58, 42), (92, 10)], 8, s.trim)
    s.ellipse(88.5, 13.5, 1.6, 1.6, lighter(s.trim))
    if form == 0:
        s.ellipse(38, 60, radius, radius, s.cloth)
        s.ellipse(38, 60, radius - 6, radius - 6, STEEL)
    else:
        s.box(38 - radius, 60 - radius, 38 + radius, 60 + radius, s.cloth, 9)
        s.box(44 - radius, 66 - radius, 32 + radius, 54 + radius, STEEL, 6)
        for x in range(20, 62, 8):
            s.stroke([(x, 66 - radius + 4), (x, 54 + radius - 4)], 1.2, darker(STEEL))


def table_lamp(s: Sketch, form: int, size: float) -> None:
    shade = 46 + 4 * size
    s.stroke([(50, shade), (50, 88)], 4, METAL)
    s.blob([(50, 56), (59, 68), (56, 82), (50, 86), (44, 82), (41, 68)], s.trim)
    s.polygon([(34, 88), (66, 88), (70, 94), (30, 94)], s.trim)
    s.ellipse(50, shade + 2, 7, 5, (255, 236, 160))
    top = 34 if form == 0 else 21
    s.polygon([(top, 8), (100 - top, 8), (82, shade), (18, shade)], s.cloth)


def vase(s: Sketch, form: int, size: float) -> None:
    for x, y in ((36, 6), (50, 2), (65, 8)):
        s.stroke(smooth([(50, 44), ((50 + x) / 2, 28), (x, y + 6)], closed=False), 1.4, (62, 122, 66))
        for dx, dy in ((-4, 0), (4, 0), (0, -4), (0, 4)):
            s.ellipse(x + dx, y + 6 + dy, 3.6, 3.6, s.trim, outline=False)
        s.ellipse(x, y + 6, 2.4, 2.4, (246, 202, 72), outline=False)
    neck, belly = (6.0, 25 + 3 * size) if form == 0 else (20.0, 22 + 2 * size)
    middle = 72 if form == 0 else 54
    left = [(50 - neck, 36), (50 - neck, 46), (50 - belly, middle), (50 - belly * 0.62, 94)]
    s.polygon(mirrored(smooth(left, closed=False)), s.cloth)
    s.ellipse(50, 36, neck + 1.5, 2.6, s.trim)


def chair(s: Sketch, form: int, size: float) -> None:
    back = 10 - 5 * size
    for x0, x1 in ((34, 31), (76, 82), (22, 17), (66, 69)):
        s.stroke([(x0, 56), (x1, 95 if x0 in (22, 66) else 86)], 4, WOOD)
    if form == 0:
        s.box(30, back, 78, 56, s.cloth, 7)
    else:
        for x in (33, 48, 63, 75):
            s.stroke([(x, back + 5), (x, 56)], 3.4, WOOD)
        s.box(29, back, 79, back + 14, s.cloth, 4)
    s.polygon([(30, 54), (78, 54), (72, 66), (18, 66)], s.trim if form == 0 else s.cloth)
    s.polygon([(18, 66), (72, 66), (72, 71), (18, 71)], s.trim)


def sofa(s: Sketch, form: int, size: float) -> None:
    for x in (14, 84):
        s.box(x - 2, 76, x + 2, 88, WOOD)
    s.box(12, 26 - 4 * size, 88, 66, s.cloth, 9)
    seats = 2 if form == 0 else 3
    for seat in range(seats):
        s.box(18 + 65 / seats * seat, 54, 16 + 65 / seats * (seat + 1), 70, s.cloth, 4)
    s.box(14, 68, 86, 79, s.cloth, 3)
    for x in (5, 80):
        s.box(x, 44, x + 15, 80, s.trim, 7)
    s.polygon([(24, 44), (37, 40), (41, 54), (28, 57)], s.trim)


def table(s: Sketch, form: int, size: float) -> None:
    if form == 0:
        for x0, x1 in ((26, 24), (74, 76), (12, 9), (88, 91)):
            s.stroke([(x0, 44), (x1, 74 if x0 in (26, 74) else 86)], 4, s.trim)
        s.polygon([(24, 30 - 3 * size), (76, 30 - 3 * size), (95, 46), (5, 46)], s.cloth)
        s.box(5, 46, 95, 51, darker(s.colour, 0.2))
    else:
        s.polygon([(46, 44), (54, 44), (54, 80), (66, 90), (34, 90), (46, 80)], s.trim)
        s.ellipse(50, 44, 44, 15 + 2 * size, darker(s.colour, 0.25))
        s.ellipse(50, 40, 44, 15 + 2 * size, s.cloth)


def bookcase(s: Sketch, form: int, size: float) -> None:
    left, right = 24 - 5 * size, 76 + 5 * size
    s.box(left, 5, right, 95, s.cloth, 1.5)
    count = 3 if form == 0 else 4
    height = 82 / count
    for shelf in range(count):
        y = 9 + shelf * height
        s.box(left + 5, y, right - 5, y + height - 4, darker(s.colour, 0.6))
        for i in range(5 - shelf % 2):
            x, tall = left + 8 + 6 * i, 0.55 + 0.09 * ((i * 2 + shelf) % 4)
            s.box(
                x,
                y + (height - 4) * (1 - tall),
                x + 5,
                y + height - 4,
                (s.trim, METAL, lighter(s.trim))[(i + shelf) % 3],
            )


def headphones(s: Sketch, form: int, size: float) -> None:
    band = smooth([(20, 56), (22, 26), (50, 10 - 3 * size), (78, 26), (80, 56)], closed=False)
    s.stroke(band, 7, s.cloth)
    s.stroke(band[10:-10], 2.4, s.trim)
    for side in (-1, 1):
        x = 50 + side * 30
        if form == 0:
            s.ellipse(x - side * 7, 66, 9, 18, STEEL)
            s.ellipse(x, 66, 11, 20, s.cloth)
        else:
            s.box(x - side * 6 - 8, 54, x - side * 6 + 8, 78, STEEL, 6)
            s.box(x - 9, 52, x + 9, 80, s.cloth, 5)
        s.ellipse(x + side * 2, 66, 4.5, 8, s.trim)


def camera(s: Sketch, form: int, size: float) -> None:
    s.box(20, 22, 34, 32, METAL, 2)
    if form == 0:
        s.polygon([(38, 30), (43, 15), (61, 15), (66, 30)], s.trim)
    else:
        s.box(66, 20, 84, 32, s.trim, 2)
    s.box(6, 28, 94, 82 + 3 * size, s.cloth, 7)
    s.box(6, 28, 94, 40, s.trim, 5)
    s.ellipse(52, 58, 23, 23, METAL)
    s.ellipse(52, 58, 18, 18, (34, 36, 44))
    s.ellipse(52, 58, 11, 11, (58, 76, 124))
    s.ellipse(47, 53, 3.4, 3.4, (212, 224, 246), outline=False)
    s.box(12, 44, 22, 52, (238, 240, 244), 1)


def bicycle(s: Sketch, form: int, size: float) -> None:
    hub = 66
    for x in (22, 78):
        s.ring(x, hub, 19 + size, 3, (40, 40, 46))
        s.ring(x, hub, 16 + size, 1.2, METAL)
        s.ellipse(x, hub, 2.6, 2.6, METAL)
    frame: list[list[Point]] = [
        [(22, hub), (46, hub), (68, 36), (38, 36), (46, hub)],
        [(22, hub), (38, 36)],
        [(66, 26), (68, 36), (78, hub)],
    ]
    if form == 1:
        frame[0] = [(22, hub), (46, hub), *smooth([(46, hub), (56, 56), (68, 38)], closed=False)]
        frame[1] = [(22, hub), (36, 33), (46, hub)]
    for tube in frame:
        s.stroke(tube, 4.2, s.cloth)
    s.stroke([(38, 36), (36, 27)], 2.4, METAL)
    s.blob([(27, 25), (42, 23), (46, 26), (34, 29)], s.trim)
    s.stroke(smooth([(66, 26), (70, 20), (79, 21), (80, 29)], closed=False), 3, s.trim)
    s.ellipse(46, hub, 5, 5, METAL)


def guitar(s: Sketch, form: int, size: float) -> None:
    s.box(47, 4, 53, 56, WOOD)
    s.polygon([(45, 2), (55, 2), (54, 15), (46, 15)], s.trim)
    waist = 13 + size
    left = [(44, 46), (33, 50), (50 - waist, 60), (27, 72), (30, 90), (50, 97)]
    if form == 1:
        left = [(46, 54), (30, 42), (33, 58), (50 - waist, 64), (24, 78), (32, 94), (50, 92)]
    s.polygon(mirrored(smooth(left, closed=False)), s.cloth)
    if form == 0:
        s.ellipse(50, 64, 7.5, 7.5, s.trim)
        s.ellipse(50, 64, 6, 6, (42, 28, 20))
    else:
        s.blob([(56, 60), (68, 70), (66, 88), (58, 84)], s.trim)
        for y in (66, 74):
            s.box(41, y, 59, y + 3.6, STEEL, 1)
    s.box(40, 82, 60, 85.5, (52, 36, 26), 1)
    for x in (48.2, 50, 51.8):
        s.stroke([(x, 8), (x, 83)], 0.5, (236, 230, 214))


def teddy_bear(s: Sketch, form: int, size: float) -> None:
    for x in (31, 69):
        s.ellipse(x, 15, 10, 10, s.cloth)
        s.ellipse(x, 16, 5.5, 5.5, s.trim)
        s.ellipse(x + (x - 50) * 0.28, 56, 10, 16, s.cloth)
        s.ellipse(x + (x - 50) * 0.1, 88, 13, 9, s.cloth)
        s.ellipse(x + (x - 50) * 0.1, 89, 7, 5, s.trim)
    s.ellipse(50, 68, 24 + 2 * size, 24, s.cloth)
    s.ellipse(50, 31, 25, 22, s.cloth)
    s.ellipse(50, 39, 11, 8, lighter(s.colour, 0.55))
    s.ellipse(50, 36, 4, 2.8, (30, 24, 24))
    for x in (40, 60):
        s.ellipse(x, 28, 2.6, 2.6, (24, 22, 26))
    if form == 0:
        s.polygon([(50, 54), (37, 48), (37, 61)], s.trim)
        s.polygon([(50, 54), (63, 48), (63, 61)], s.trim)
    else:
        s.ellipse(50, 70, 14, 14, s.trim)
