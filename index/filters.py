"""Conditions on products, as trees that can be compared and hashed; item.proto's `Filter` says what they mean.

A product that lacks the attribute fails every condition but `Not`. What is outside the limits that a class names raises
ConfigError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from item.errors import ConfigError

Value = str | float | bool

MAX_CONDITIONS = 64
MAX_VALUES = 10_000


@dataclass(frozen=True, slots=True)
class All:
    """All of the conditions hold; 1 to 64 of them."""

    filters: tuple[Filter, ...]

    def __post_init__(self) -> None:
        _check_count("filters", self.filters, MAX_CONDITIONS)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of the conditions holds; 1 to 64 of them."""

    filters: tuple[Filter, ...]

    def __post_init__(self) -> None:
        _check_count("filters", self.filters, MAX_CONDITIONS)


@dataclass(frozen=True, slots=True)
class Not:
    """The condition does not hold."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class Equal:
    """An attribute, its name not empty, equals a value, or, where it is a list of strings, contains it; not NaN."""

    attribute: str
    value: Value
    boolean: bool = field(init=False, repr=False)  # or else Equal("a", True) == Equal("a", 1.0), as True == 1.0

    def __post_init__(self) -> None:
        _check_name(self.attribute)
        _check_value("value", self.value)
        object.__setattr__(self, "boolean", isinstance(self.value, bool))


@dataclass(frozen=True, slots=True)
class In:
    """An attribute equals, or contains, one of 1 to 10,000 values; name and values as in `Equal`."""

    attribute: str
    values: tuple[Value, ...]
    booleans: tuple[bool, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_name(self.attribute)
        _check_count("values", self.values, MAX_VALUES)
        for i, value in enumerate(self.values):
            _check_value(f"values[{i}]", value)
        object.__setattr__(self, "booleans", tuple(isinstance(value, bool) for value in self.values))


@dataclass(frozen=True, slots=True)
class Range:
    """A numeric attribute, its name not empty, lies within one or two bounds: at most one below and one above it."""

    attribute: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        _check_name(self.attribute)
        names = ("at_least", "above", "at_most", "below")
        bounds = {name: bound for name in names if (bound := getattr(self, name)) is not None}
        if not bounds:
            raise ConfigError(f"range: no bound for {self.attribute!r}; give one of {', '.join(names)}")
        for name, bound in bounds.items():
            if math.isnan(bound):
                raise ConfigError(f"{name}: {bound} is no bound; give a number")
        for one, other in (names[:2], names[2:]):
            if one in bounds and other in bounds:
                raise ConfigError(f"{one}: {bounds[one]} beside {other}: {bounds[other]}; give one of the two")


@dataclass(frozen=True, slots=True)
class Under:
    """The product's category is this path, of at least one level, or lies under it."""

    category: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.category:
            raise ConfigError(f"category: {self.category} has no level; give at least one, the widest first")


@dataclass(frozen=True, slots=True)
class Categorised:
    """The product has a category. Not in the contract: what votes on categories asks for it."""


Filter = All | AnyOf | Not | Equal | In | Range | Under | Categorised


def _check_name(attribute: str) -> None:
    if not attribute:
        raise ConfigError(f"attribute: {attribute!r} is empty; give the attribute's name")


def _check_count(name: str, items: Sequence[object], limit: int) -> None:
    if not 1 <= len(items) <= limit:
        raise ConfigError(f"{name}: {len(items):,} of them; give 1 to {limit:,}")


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str | int | float):
        raise ConfigError(f"{name}: {value!r} is a {type(value).__name__}; give a string, a number or a boolean")
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{name}: {value} equals no number; leave it out")
