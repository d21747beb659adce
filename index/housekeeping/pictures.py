"""Pictures that show nothing of the product: blank ones, and one picture that stands for many products.

A picture is blank where its colours hardly differ: their standard deviation is below BLANK of 255 levels. A placeholder
("no picture yet") has content, but many products have it: pictures with the same difference hash (Krawetz 2013) whose
vectors agree too, since the hash knows no colours, under titles with little in common. A shirt's sizes share their
picture rightly, and most of their words: titles that overlap count as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from index.housekeeping.duplicates import Titles
from index.housekeeping.finding import Finding, Kind
from index.housekeeping.inventory import Inventory

BLANK = 3.0
MIN_TITLES = 3
UNLIKE = 0.4  # overlap below which two titles are of different products
SAME_PICTURE = 0.98  # cosine by picture alone
MAX_TITLES = 50  # compared with one another


def find_bad_pictures(inventory: Inventory) -> Iterator[Finding]:
    """Blank pictures, then those that many products share."""
    for row in np.flatnonzero(inventory.spread < BLANK).tolist():
        yield Finding(
            kind=Kind.BLANK,
            product_ids=(inventory.product_ids[row],),
            score=BLANK - float(inventory.spread[row]),
            why=f"its colours deviate by {inventory.spread[row]:.1f} of 255 levels",
        )
    titles = Titles(inventory.titles)
    by_hash: defaultdict[bytes, list[int]] = defaultdict(list)
    for row in np.flatnonzero(inventory.spread >= BLANK).tolist():
        by_hash[inventory.hashes[row].tobytes()].append(row)
    for rows in by_hash.values():
        if len(rows) < MIN_TITLES:
            continue
        cosines = inventory.picture[rows] @ inventory.picture[rows[0]]
        same = [row for row, cosine in zip(rows, cosines.tolist(), strict=True) if cosine >= SAME_PICTURE]
        num_titles = count_unlike(titles, same)
        if num_titles >= MIN_TITLES:
            yield Finding(
                kind=Kind.SHARED,
                product_ids=tuple(inventory.product_ids[row] for row in same),
                score=float(len(same)),
                why=f"{len(same):,} products have this picture, under {num_titles}"
                f"{' or more' if num_titles == MAX_TITLES else ''} titles with little in common",
            )


def count_unlike(titles: Titles, rows: list[int]) -> int:
    """How many of the titles are unlike all before them, MAX_TITLES at most."""
    leaders: list[int] = []
    for row in rows:
        if titles.folded[row] and all(titles.overlap(row, leader) < UNLIKE for leader in leaders):
            leaders.append(row)
        if len(leaders) == MAX_TITLES:
            break
    return len(leaders)
