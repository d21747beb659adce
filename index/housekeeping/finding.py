"""A finding: products that belong together in it, and why they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a finding says, in the order of the page."""

    TWINS = "exact twins"
    DUPLICATES = "probable duplicates"
    VARIANTS = "probable variants of one product"
    DISAGREEMENT = "picture and title disagree"
    CATEGORY = "probably in a wrong category"
    BLANK = "blank pictures"
    SHARED = "one picture for many products"
    UNREADABLE = "listings that cannot be read"
    MISSING = "listings without a title or a picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding. Of a kind, a higher score is surer; scores of different kinds cannot be compared.

    product_ids: the products it is about. beside: others that are shown for comparison, such as neighbours.
    """

    kind: Kind
    product_ids: tuple[str, ...]
    score: float
    why: str
    beside: tuple[str, ...] = ()
