"""One row of a catalogue, checked: what every program of ITEm works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

AttributeValue = str | float | bool | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture by path, by its encoded bytes (JPEG, PNG, ...) or by URL, not yet read.

    Exactly one of `path`, `data` and `url` is set. `reference` is what the catalogue says (the path or URL as written
    there), empty for bytes without a name; it is stored in the index and returned with hits.
    """

    path: Path | None = None
    data: bytes | None = None
    url: str | None = None
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


class Place(NamedTuple):
    """Where a row is. Places of one catalogue are ordered as its rows are read."""

    file: str  # relative to the folder that holds the catalogue's files; empty: what a command line lists
    line: int  # from 1, as an editor shows it (in CSV the header is line 1); in Parquet the row's number from 1

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" if self.file else f"line {self.line}"
