"""What a catalogue says of its listings, as numbers: which categories they are in, and which are of one product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.config import AlignOptions

MIN_LISTINGS = 2  # of a category that is learned
MAX_CATEGORIES = 1000  # that are learned, over all levels: those with the most listings
UNKNOWN = -1

Numbers = npt.NDArray[np.int64]
Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of N listings.

    categories: (N, L), at each of L levels the category's number among those of the level, `UNKNOWN` where the listing
    has none or a rare one; a path that ends above a level is a category of it. levels: L counts of categories, from the
    widest level. paths: those of all C categories, one level after the other. leaves: (N,), the whole path; products:
    (N,); in both a listing without has a number of its own.
    """

    categories: Numbers
    levels: tuple[int, ...]
    paths: tuple[Path, ...]
    leaves: Numbers
    products: Numbers

    @property
    def grouped(self) -> bool:
        """Whether some listings share a product."""
        return len(np.unique(self.products)) < len(self.products)


def number_labels(paths: Sequence[Path], products: Sequence[str], options: AlignOptions) -> Labels:
    """Labels of N listings; what the options leave out is numbered as if each listing were alone."""
    paths = paths if options.categories else [()] * len(products)
    levels = _kept_categories(paths)
    columns = [_number_level(paths, depth, kept) for depth, kept in levels]
    return Labels(
        categories=np.stack(columns, axis=1) if columns else np.zeros((len(paths), 0), int),
        levels=tuple(len(kept) for _, kept in levels),
        paths=tuple(path for _, kept in levels for path in kept),
        leaves=_numbers([path or row for row, path in enumerate(paths)]),
        products=_numbers(list(products) if options.groups else range(len(products))),
    )


def _kept_categories(paths: Sequence[Path]) -> list[tuple[int, list[Path]]]:
    """The categories to learn, each level with its depth; a level of one category says nothing."""
    depths = range(1, max(map(len, paths), default=0) + 1)
    counts = Counter((depth, path[:depth]) for path in paths if path for depth in depths)
    kept = [one for one, count in counts.most_common(MAX_CATEGORIES) if count >= MIN_LISTINGS]
    levels = [(depth, [path for level, path in kept if level == depth]) for depth in depths]
    return [(depth, level) for depth, level in levels if len(level) > 1]


def _number_level(paths: Sequence[Path], depth: int, kept: Sequence[Path]) -> Numbers:
    """The number of each path's category among those kept of a level."""
    numbers = {path: number for number, path in enumerate(kept)}
    return np.array([numbers.get(path[:depth], UNKNOWN) for path in paths])


def _numbers(names: Sequence[object]) -> Numbers:
    first: dict[object, int] = {}
    return np.array([first.setdefault(name, len(first)) for name in names], dtype=np.int64)
