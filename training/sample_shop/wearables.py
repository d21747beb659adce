"""Drawings of things to wear and to carry.

Each takes the form (a position in its leaf's forms) and a size in [-1, 1].
"""

from __future__ import annotations

from training.sample_shop.sketch import Sketch, darker, lighter, mirrored, smooth

METAL = (176, 180, 188)
LEATHER = (96, 66, 48)
GLASS = (58, 62, 74)


def t_shirt(s: Sketch, form: int, size: float) -> None:
    hem, width = 86 + 6 * size, 30 - 2 * size
    sleeve = [(6, 76), (17, 80)] if form == 2 else [(9, 42), (19, 52)]
    s.polygon(mirrored([(41, 14), (28, 18), *sleeve, (width, 42), (width, hem)]), s.cloth)
    if form == 1:
        s.polygon([(39, 13), (50, 34), (61, 13)], darker(s.colour, 0.6))
        s.stroke([(39, 13), (50, 34), (61, 13)], 2.2, s.trim)
    else:
        s.blob([(39, 13), (50, 16), (61, 13), (58, 21), (50, 25), (42, 21)], darker(s.colour, 0.6))
        s.stroke(smooth([(39, 13), (42, 21), (50, 25), (58, 21), (61, 13)], closed=False), 2.2, s.trim)


def hoodie(s: Sketch, form: int, size: float) -> None:
    hem = 86 + 5 * size
    s.blob([(50, 5), (65, 11), (67, 26), (50, 31), (33, 26), (35, 11)], s.trim)
    s.blob([(50, 11), (58, 15), (58, 25), (50, 29), (42, 25), (42, 15)], darker(s.trim, 0.65))
    s.polygon(mirrored([(40, 24), (28, 26), (18, 36), (8, 76), (18, 79), (29, 52), (28, hem)]), s.cloth)
    s.box(27, hem, 73, hem + 6, s.trim, 1)
    s.polygon(mirrored([(38, 60), (33, 72), (33, hem - 3)]), darker(s.colour, 0.15))
    if form == 1:
        s.stroke([(50, 29), (50, hem + 6)], 1.8, METAL)
    for x in (45, 55):
        s.stroke([(x, 27), (x + (x - 50) * 0.2, 44)], 1.4, lighter(s.trim, 0.7))


def trousers(s: Sketch, form: int, size: float) -> None:
    length = 55 + 3 * size if form == 2 else 93 + 3 * size
    outer, inner = ((20, 44) if form == 1 else (29, 44)) if form != 2 else (23, 46)
    knee = 31 if form == 1 else (outer + 31) / 2
    s.polygon(
        mirrored([(32, 8), (28, 30), (knee, 55 if form != 2 else 42), (outer, length), (inner, length), (49, 36)]),
        s.cloth,
    )
    s.box(31.5, 6, 68.5, 12, s.trim, 1)
    s.stroke([(50, 12), (50, 28)], 1.0, s.line)
    for x in (36, 64):
        s.stroke([(x, 13), (x + (x - 50) * 0.5, 24)], 1.0, s.line)


def skirt(s: Sketch, form: int, size: float) -> None:
    hem = 78 + 9 * size
    s.polygon([(35, 15), (65, 15), (84, hem), *smooth([(84, hem), (50, hem + 5), (16, hem)], closed=False)], s.cloth)
    s.box(34, 10, 66, 17, s.trim, 1.5)
    if form == 1:
        for top, bottom in ((40, 29), (46, 43), (54, 57), (60, 71)):
            s.stroke([(top, 18), (bottom, hem + 2)], 1.0, s.line)


def dress(s: Sketch, form: int, size: float) -> None:
    hem = 90 + 5 * size
    if form == 1:
        s.polygon([(38, 12), (24, 18), (17, 42), (27, 45), (36, 30)], s.cloth)
        s.polygon([(62, 12), (76, 18), (83, 42), (73, 45), (64, 30)], s.cloth)
    s.polygon(mirrored([(43, 18), (40, 5), (35, 5), (35, 24), (38, 46), (20, hem)]), s.cloth)
    s.polygon([(37.5, 43), (62.5, 43), (63.5, 49), (36.5, 49)], s.trim)


def sneaker(s: Sketch, form: int, size: float) -> None:
    top = 22 if form == 1 else 38
    s.polygon(
        [
            (12, 74),
            (10, 56),
            (13, top),
            *smooth([(13, top), (24, top + 6), (38, top), (54, 50), (78, 58), (92, 66), (93, 76)], closed=False),
        ],
        s.cloth,
    )
    s.blob([(72, 57), (90, 64), (93, 75), (72, 76), (67, 66)], s.trim)
    s.polygon([(8, 73), (95, 74), (95, 80 + size), (92, 84 + size), (12, 84 + size), (8, 80)], (242, 242, 238))
    s.stroke([(9, 80), (94, 80.5)], 1.4, s.trim)
    for i in range(4 if form == 0 else 5):
        x, y = 58 - 6 * i, 56 - 5.5 * i
        s.stroke([(x, y), (x - 8, y + 8)], 2.0, lighter(s.trim, 0.8) if sum(s.colour) < 600 else darker(s.trim))


def backpack(s: Sketch, form: int, size: float) -> None:
    half = 28 + 3 * size
    s.stroke(smooth([(42, 14), (44, 4), (56, 4), (58, 14)], closed=False), 3, s.trim)
    for side in (-1, 1):
        s.blob(
            [
                (50 + side * half, 58),
                (50 + side * (half + 9), 62),
                (50 + side * (half + 8), 84),
                (50 + side * half, 86),
            ],
            s.trim,
        )
    s.box(50 - half, 10, 50 + half, 92, s.cloth, 22 if form == 0 else 8)
    if form == 1:
        s.box(50 - half - 2, 10, 50 + half + 2, 44, s.trim, 8)
        for x in (38, 62):
            s.box(x - 2.5, 36, x + 2.5, 56, LEATHER, 1)
            s.box(x - 3.5, 45, x + 3.5, 51, METAL, 1)
    else:
        s.stroke(smooth([(27, 44), (28, 26), (50, 18), (72, 26), (73, 44)], closed=False), 1.2, s.line)
    s.box(32, 58, 68, 86, darker(s.colour, 0.2), 5)
    s.stroke([(34, 64), (66, 64)], 1.6, METAL)


def handbag(s: Sketch, form: int, size: float) -> None:
    top = 42 - 4 * size
    if form == 0:
        for width in (17, 13):
            s.stroke(
                smooth(
                    [
                        (50 - width, top + 4),
                        (50 - width + 2, 20),
                        (50, 10),
                        (50 + width - 2, 20),
                        (50 + width, top + 4),
                    ],
                    closed=False,
                ),
                3,
                s.trim,
            )
        s.polygon([(16, top), (84, top), (90, 90), (10, 90)], s.cloth)
        s.polygon([(16, top), (84, top), (85, top + 7), (15, top + 7)], s.trim)
    else:
        s.stroke(smooth([(16, 52), (24, 16), (50, 6), (76, 16), (84, 52)], closed=False), 1.8, METAL)
        s.box(10, 46, 90, 88, s.cloth, 6)
        s.polygon([(10, 47), (90, 47), (84, 68), (50, 74), (16, 68)], s.trim)
        s.ellipse(50, 70, 4.5, 4.5, METAL)


def watch(s: Sketch, form: int, size: float) -> None:
    s.polygon(mirrored([(40, 4), (37, 30), (37, 70), (40, 96)]), s.cloth)
    s.box(77, 46, 82, 54, METAL, 1)
    if form == 0:
        s.ellipse(50, 50, 28 + 2 * size, 28 + 2 * size, METAL)
        s.ellipse(50, 50, 23 + 2 * size, 23 + 2 * size, s.trim)
    else:
        s.box(24, 24 - size, 76, 76 + size, METAL, 8)
        s.box(29, 29 - size, 71, 71 + size, s.trim, 5)
    hand = (250, 250, 250) if sum(s.trim) < 380 else (30, 30, 36)
    for dx, dy in ((0, -19), (19, 0), (0, 19), (-19, 0)):
        s.stroke([(50 + dx * 0.85, 50 + dy * 0.85), (50 + dx, 50 + dy)], 1.8, hand)
    s.stroke([(50, 50), (50, 36)], 2.0, hand)
    s.stroke([(50, 50), (60, 56)], 2.0, hand)


def sunglasses(s: Sketch, form: int, size: float) -> None:
    s.stroke(smooth([(10, 44), (4, 36), (12, 28)], closed=False), 4, s.trim)
    s.stroke(smooth([(90, 44), (96, 36), (88, 28)], closed=False), 4, s.trim)
    s.stroke(smooth([(42, 46), (50, 41), (58, 46)], closed=False), 4, s.cloth)
    for x in (28, 72):
        if form == 0:
            s.ellipse(x, 52, 20, 18 + 2 * size, s.cloth)
            s.ellipse(x, 52, 15, 13 + 2 * size, GLASS)
        else:
            s.box(x - 21, 38, x + 21, 64 + 3 * size, s.cloth, 7)
            s.box(x - 17, 42, x + 17, 60 + 3 * size, GLASS, 5)
        s.stroke([(x - 8, 54), (x - 1, 46)], 2.0, (150, 156, 172))


def cap(s: Sketch, form: int, size: float) -> None:
    crown = 22 - 5 * size
    if form == 0:
        s.polygon([(16, 64), *smooth([(16, 64), (20, 38), (42, crown), (64, 36), (70, 64)], closed=False)], s.cloth)
        s.blob([(40, 62), (70, 58), (94, 66), (97, 73), (84, 75), (60, 69), (42, 69)], s.trim)
        s.ellipse(42, crown, 3, 2, s.trim)
        s.stroke(smooth([(42, crown), (46, 44), (45, 62)], closed=False), 0.9, s.line)
    else:
        s.ellipse(50, crown - 4, 9, 9, s.trim)
        s.polygon([(20, 68), *smooth([(20, 68), (22, 42), (50, crown), (78, 42), (80, 68)], closed=False)], s.cloth)
        s.box(16, 64, 84, 82, s.trim, 5)
        for x in range(24, 80, 8):
            s.stroke([(x, 67), (x, 79)], 0.8, darker(s.trim, 0.45))


def umbrella(s: Sketch, form: int, size: float) -> None:
    s.stroke([(50, 6), (50, 86)], 2.2, LEATHER)
    if form == 0:
        s.stroke(smooth([(50, 84), (50, 92), (44, 96), (38, 90)], closed=False), 3.4, LEATHER)
    else:
        s.box(46, 76, 54, 95, s.trim, 3)
    rim, top = 52 + 3 * size, 12
    scallops = [point for x in (4, 19.3, 34.7, 50, 65.3, 80.7) for point in ((x, rim), (x + 7.6, rim - 6))]
    s.polygon(
        [*smooth([(4, rim), (18, 25), (50, top), (82, 25), (96, rim)], closed=False), *reversed(scallops)], s.cloth
    )
    for x in (34.7, 65.3):
        s.stroke(smooth([(50, top), ((50 + x) / 2 + (x - 50) * 0.3, 26), (x, rim)], closed=False), 1.0, s.line)
