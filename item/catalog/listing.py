"""One row of a catalogue, checked: what every program of ITEm works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

AttributeValue = str | float | bool | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture by path or by its encoded bytes (JPEG, PNG, ...), not yet read.

    Exactly one of `path` and `data` is set. `reference` is what the catalogue says (the path as written there),
    empty for bytes without a name; it is stored in the index and returned with hits.
    """

    path: Path | None = None
    data: bytes | None = None
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A product's listing. At least one of title, description and images is there; a query has an empty product_id."""

    product_id: str = ""
    title: str = ""
    description: str = ""
    images: tuple[Picture, ...] = ()  # the first is the main one, the only one that is encoded
    category: tuple[str, ...] = ()  # levels, the widest first
    group_id: str | None = None  # listings of the same product share it
    language: str | None = None
    split: str | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
