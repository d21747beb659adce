"""Which split a product belongs to where the catalogue does not say."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from types import MappingProxyType

from item.catalog.listing import Listing
from item.errors import ConfigError

SHARES: Mapping[str, float] = MappingProxyType({"train": 0.8, "val": 0.1, "test": 0.1})


def assign_splits(listings: Sequence[Listing], *, seed: int = 0, shares: Mapping[str, float] = SHARES) -> list[Listing]:
    """The listings with `split` set, by product: listings of one `group_id` always share theirs.

    The split is a hash of (seed, group_id or else product_id): it depends neither on the order nor on the other
    listings, so that a growing catalogue keeps the splits it has.

    Args:
        shares: split to its expected share of the products; the shares are not negative and sum to 1.
    """
    if any(share < 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        raise ConfigError(f"shares: {dict(shares)} must not be negative and must sum to 1")
    names, bounds = list(shares), list(accumulate(shares.values()))
    return [
        replace(listing, split=_split(f"{seed}:{listing.group_id or listing.product_id}", names, bounds))
        for listing in listings
    ]


def _split(key: str, names: Sequence[str], bounds: Sequence[float]) -> str:
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return next((name for name, bound in zip(names, bounds, strict=True) if position < bound), names[-1])
