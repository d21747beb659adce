"""Conditions that hits have to pass, written as text: `price<=20`, `colour=red`, `under:Home/Mugs`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from item.errors import ConfigError
from item.products import attribute_message
from item.v1 import item_pb2

Conditions = Sequence[str] | item_pb2.Filter  # see `filter_message`

CONDITION = re.compile(r"\s*(?P<name>[^<>=]*[^<>=\s])\s*(?P<sign><=|>=|<|>|=)\s*(?P<value>[^<>=\s].*?)\s*", re.DOTALL)
BOUNDS = {"<=": "at_most", "<": "below", ">=": "at_least", ">": "above"}
UNDER = "under:"
BOOLEANS = {"true": True, "false": False}


def filter_message(conditions: Conditions, field: str) -> item_pb2.Filter | None:
    """Conditions that all have to hold, as a message; None for none. Raises ConfigError for what is no condition.

    `colour=red`, `size=42`, `new=true`: an attribute equals a text, or the number or boolean that it reads as, or is a
    list that contains the text. `price<=20`, `price<20`, `price>=5`, `price>5`: a number lies within a range.
    `under:Home/Mugs`: the category is this one or lies under it.
    """
    if isinstance(conditions, item_pb2.Filter):
        return conditions
    if isinstance(conditions, str):
        raise ConfigError(f"{field}: {conditions!r} is one string; give a list: [{conditions!r}]")
    filters = [condition_message(one, field) for one in conditions]
    if len(filters) > 1:
        return item_pb2.Filter(all=item_pb2.FilterList(filters=filters))
    return filters[0] if filters else None


def condition_message(text: str, field: str) -> item_pb2.Filter:
    """One condition of `filter_message`."""
    if text.startswith(UNDER) and (category := category_of(text.removeprefix(UNDER))):
        return item_pb2.Filter(under=item_pb2.UnderFilter(category=category))
    found = CONDITION.fullmatch(text)
    if found is None or text.startswith(UNDER):
        raise ConfigError(
            f"{field}: {text!r} is no condition; give name=value, name<=number, name<number, name>=number, name>number "
            f"or {UNDER}A/B"
        )
    name, sign, value = found["name"], found["sign"], found["value"]
    number = finite_number(value)
    if sign == "=":
        readings = [value, number, BOOLEANS.get(value.lower())]
        values = [attribute_message(one) for one in readings if one is not None]
        kind: dict[str, Any] = {"in": item_pb2.InFilter(attribute=name, values=values)}  # a keyword of Python's
        return item_pb2.Filter(**kind)
    if number is None:
        raise ConfigError(f"{field}: {text!r}: {value!r} is no finite number; {sign} compares numbers")
    return item_pb2.Filter(range=item_pb2.RangeFilter(attribute=name, **{BOUNDS[sign]: number}))


def category_of(text: str) -> list[str]:
    """The levels of `A/B`; a slash at either end says nothing."""
    return [level for level in text.split("/") if level]


def finite_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
