"""What the commands print: tables, times, JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from item.results import StageTimes
from item.tables import format_table

Answer = tuple[str, int]  # what is printed, and the exit status


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that fits the terminal; whole where the output goes elsewhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return format_table(header, rows, width=width)


def time_line(times: StageTimes) -> str:
    """The time spent on the server by stage."""
    stages = {"queue": times.queue_s, "prepare": times.prepare_s, "encode": times.encode_s, "search": times.search_s}
    spent = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in stages.items() if seconds)
    return f"{1000 * sum(stages.values()):.1f} ms ({spent})"


def as_json(value: object) -> str:
    """A result of the client as JSON."""
    return json.dumps(jsonable(value), ensure_ascii=False, indent=2)


def jsonable(value: object) -> Any:
    """Dataclasses as objects, without errors that are not there."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = ((one.name, getattr(value, one.name)) for one in dataclasses.fields(value))
        return {name: jsonable(one) for name, one in named if not (name == "error" and one is None)}
    if isinstance(value, dict):
        return {key: jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value
