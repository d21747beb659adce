"""Which listings run together: those of like length, as many as the token budget allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from item.preprocessing.prepared import Prepared

MAX_PADDING = 2.0  # places of the padded attention for each token of a packed run


def num_tokens(one: Prepared, num_cells: int) -> int:
    """How many tokens of a listing enter the layers: [CLS], words with [SEP], cells."""
    return 1 + (0 if one.word_ids is None else len(one.word_ids)) + (0 if one.pixels is None else num_cells)


def buckets(prepared: Sequence[Prepared], num_cells: int, budget: int, packed: bool) -> Iterator[list[int]]:
    """Every row once, in buckets.

    packed: tokens are counted as they are, and listings with and without a picture may share a bucket; otherwise all
    are padded to the longest, and they may not.
    """
    lengths = [num_tokens(one, num_cells) for one in prepared]
    has_picture = [one.pixels is not None for one in prepared]
    order = sorted(range(len(prepared)), key=lambda row: (0 if packed else has_picture[row], lengths[row]))
    bucket: list[int] = []
    total = 0
    for row in order:
        total += lengths[row]
        padded = (len(bucket) + 1) * lengths[row]  # of the longest: rows come in ascending order
        if packed:
            full = total > budget or padded > MAX_PADDING * total
        else:
            full = padded > budget or has_picture[bucket[0]] != has_picture[row] if bucket else False
        if bucket and full:
            yield bucket
            bucket, total = [], lengths[row]
        bucket.append(row)
    if bucket:
        yield bucket
