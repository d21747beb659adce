"""Listings that come twice: with the title of another, and vectors that say the same, or no picture in either.

What a job can tell for next to nothing while it has all vectors at hand; `python -m index.housekeeping` looks closer,
at the pictures alone, and for duplicates whose titles differ. Titles are compared without case and punctuation. What
the catalogue itself puts into one group is known and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.exact import Mask, Vectors
from index.files import publish
from index.shards import Mark, read_shard
from item.catalog.listing import Listing
from item.evaluation.twins import folded_title

SAME = 0.97  # cosine of vectors by both: with one title, pictures at about 0.95 of each other
COMMON = 4096  # listings with one title, from which on it names no product
OPEN_SHARDS = 1024

Hashes = npt.NDArray[np.uint64]
Group = tuple[str, ...]  # ids of products


def find_twins(folder: Path, marks: Mapping[int, Mark]) -> Iterator[Group]:
    """Groups of a finished job's products, in the catalogue's order: each is like the group's first."""
    numbers = [number for number, mark in sorted(marks.items()) if mark.count]
    hashes = [title_hashes(read_shard(folder, number)) for number in numbers]
    first_rows = np.cumsum([0, *map(len, hashes)])
    opened = lru_cache(OPEN_SHARDS)(partial(read_shard, folder))
    for rows in rows_that_share(np.concatenate([np.empty(0, np.uint64), *hashes])):
        places = np.searchsorted(first_rows, rows, side="right") - 1
        tables = [opened(numbers[place]) for place in places]
        within = (rows - first_rows[places]).tolist()
        vectors = np.stack([table["vector"][row].values for table, row in zip(tables, within, strict=True)])
        ids = [table["product_id"][row].as_py() for table, row in zip(tables, within, strict=True)]
        known = [table["group_id"][row].as_py() for table, row in zip(tables, within, strict=True)]
        pictures = np.array([table["has_picture"][row].as_py() for table, row in zip(tables, within, strict=True)])
        for members in alike(vectors, pictures):
            if not is_known([known[member] for member in members]):
                yield tuple(ids[member] for member in members)


def title_hashes(table: pa.Table) -> Hashes:
    """(n,) of the titles of n products; 0 for a title without words."""
    titles = [folded_title(Listing(title=title)) for title in table["title"].to_pylist()]
    return np.array(
        [int.from_bytes(blake2b(title.encode(), digest_size=8).digest()) if title else 0 for title in titles], np.uint64
    )


def rows_that_share(hashes: Hashes) -> Iterator[npt.NDArray[np.int64]]:
    """Ascending rows of each title that more than one has, by their first."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else order
    sizes = np.diff(np.append(starts, len(order)))
    shared = np.flatnonzero((sizes > 1) & (sizes <= COMMON) & (ordered[starts] != 0))
    for place in shared[np.argsort(order[starts[shared]])]:
        yield order[starts[place] : starts[place] + sizes[place]]


def alike(vectors: Vectors, has_picture: Mask) -> list[list[int]]:
    """Groups of at least two of (m, D): each row joins the first before it that is like it and began a group.

    Of two without a picture, (m,), the title is all there is: they are alike.
    """
    is_like = (vectors @ vectors.T >= SAME) | ~(has_picture[:, None] | has_picture[None, :])
    groups: list[list[int]] = []
    left = np.arange(len(vectors))
    while len(left):
        of_first = is_like[left[0], left]
        of_first[0] = True
        groups.append(left[of_first].tolist())
        left = left[~of_first]
    return [members for members in groups if len(members) > 1]


def is_known(groups: Iterable[str | None]) -> bool:
    """Whether the catalogue says that all are of one group."""
    said = set(groups)
    return len(said) == 1 and None not in said


def write_twins(groups: Iterable[Group], path: Path) -> int:
    """One JSON object {"product_ids"} a line. Returns how many there are."""
    lines = [json.dumps({"product_ids": group}, ensure_ascii=False) + "\n" for group in groups]
    publish(path, lambda beside: beside.write_text("".join(lines), encoding="utf-8"))
    return len(lines)
