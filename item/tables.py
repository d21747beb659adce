"""Aligned tables for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

GAP = "  "
CUT = "..."


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None) -> str:
    """Columns as wide as their cells, numbers to the right; the widest column is cut where `width` is exceeded.

    Control characters become spaces: a title from somebody's catalogue must not steer the terminal.
    """
    right = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    lines = [list(header), *([cell_text(cell) for cell in row] for row in rows)]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    if width is not None:
        widest = max(range(len(widths)), key=widths.__getitem__)
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
        widths[widest] = max(widths[widest] - max(excess, 0), len(CUT) + 1)
    return "\n".join(
        GAP.join(
            pad(cut(cell, size), size, to_right) for cell, size, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def cell_text(cell: object) -> str:
    """A cell on one line; fractions with three digits."""
    text = f"{cell:.3f}" if isinstance(cell, float) else str(cell)
    return "".join(character if character.isprintable() else " " for character in text)


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal: two for each wide East Asian character, none for combining marks."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def cut(text: str, width: int) -> str:
    """The text, or as much of its beginning as fits before an ellipsis."""
    if display_width(text) <= width:
        return text
    while display_width(text) > width - len(CUT):
        text = text[:-1]
    return text + CUT


def pad(text: str, width: int, to_right: bool) -> str:
    """The text filled up with spaces."""
    space = " " * (width - display_width(text))
    return space + text if to_right else text + space
