"""Filters of the contract as those of the index."""

from __future__ import annotations

from typing import Any

from deploy.errors import InvalidRequestError
from index.filters import All, AnyOf, Equal, Filter, In, Not, Range, Under, Value
from item.errors import ConfigError
from item.v1 import item_pb2

BOUNDS = ("at_least", "above", "at_most", "below")


def filter_of(message: item_pb2.Filter, field: str) -> Filter:
    """The tree of a message. Raises InvalidRequestError that names the condition at fault."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequestError(field, "has no condition; give all, any, not, equal, in, range or under")
    try:
        return _condition(kind, getattr(message, kind), f"{field}.{kind}")
    except ConfigError as error:
        raise InvalidRequestError(f"{field}.{kind}", str(error)) from error


def _condition(kind: str, message: Any, field: str) -> Filter:
    """One condition; what is outside its limits raises ConfigError."""
    match kind:
        case "all":
            return All(_conditions(message, field))
        case "any":
            return AnyOf(_conditions(message, field))
        case "not":
            return Not(filter_of(message, field))
        case "equal":
            return Equal(message.attribute, _value(message.value, f"{field}.value"))
        case "in":
            values = (_value(value, f"{field}.values[{number}]") for number, value in enumerate(message.values))
            return In(message.attribute, tuple(values))
        case "range":
            given = {bound: getattr(message, bound) for bound in BOUNDS if message.HasField(bound)}
            return Range(message.attribute, **given)
        case _:
            return Under(tuple(message.category))


def _conditions(message: item_pb2.FilterList, field: str) -> tuple[Filter, ...]:
    return tuple(filter_of(one, f"{field}.filters[{number}]") for number, one in enumerate(message.filters))


def _value(message: item_pb2.AttributeValue, field: str) -> Value:
    match message.WhichOneof("kind"):
        case "string_value":
            return message.string_value
        case "number_value":
            return message.number_value
        case "bool_value":
            return message.bool_value
        case None:
            raise InvalidRequestError(field, "has no value; give a string, a number or a boolean")
        case _:
            raise InvalidRequestError(field, "is a list of strings; a list contains strings: give one of them")
