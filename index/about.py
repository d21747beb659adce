"""What a generation of a collection says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a generation holds: vectors of width `vector_width`, all in `space`.

    `model`, its `variant` (empty: full precision) and `engine` say what made them; `catalog`, `catalog_sha256` and
    `splits` (empty: all) of what, with the `hosts` that pictures were fetched from. `created` is in UTC, ISO 8601.
    """

    space: str
    vector_width: int
    model: str = ""
    variant: str = ""
    engine: str = ""
    catalog: str = ""
    catalog_sha256: str = ""
    splits: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
