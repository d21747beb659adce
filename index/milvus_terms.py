"""Products and filters as Milvus sees them: sets of terms, and numbers.

A term is a digest of one thing that is true of a product: "its colour is red", "its category lies under Home". So a
filter asks which terms a product has; a set is never null, and what a product lacks fails every condition but `Not` on
every version of Milvus. Expressions contain digests and numbers alone: no text of a request can become syntax.

Bounds compare the numbers themselves. What a comparison with a number that is not there yields differs between versions
of Milvus, and its negation even more; no expression here negates one.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import TypeGuard, assert_never

from index.filters import All, AnyOf, Categorised, Equal, Filter, In, Not, Range, Under
from index.product import Product
from item.catalog.listing import AttributeValue

DIGEST_CHARACTERS = 32  # 128 bits: two of a billion terms are the same with a probability of 1e-21

# How the conditions hold and how they fail, for a number that is there.
BOUNDS: dict[str, tuple[str, str, Callable[[float, float], bool]]] = {
    "at_least": (">=", "<", operator.ge),
    "above": (">", "<=", operator.gt),
    "at_most": ("<=", ">", operator.le),
    "below": ("<", ">=", operator.lt),
}


def digest(*parts: AttributeValue) -> str:
    """32 hexadecimal digits that stand for these parts and their types."""
    return blake2b(json.dumps(parts).encode(), digest_size=DIGEST_CHARACTERS // 2).hexdigest()


def terms_of(product: Product) -> list[str]:
    """What is true of a product, each once."""
    return list(dict.fromkeys(_terms(product)))


def numbers_of(product: Product) -> dict[str, float]:
    """The numeric attributes, by the digests of their names; those that JSON has no number for are left out."""
    return {
        digest(name): float(value)
        for name, value in product.attributes.items()
        if _is_number(value) and math.isfinite(value)
    }


def expression(condition: Filter, holds: bool = True) -> str:
    """Milvus's boolean expression for the rows where a condition holds, or where it does not."""
    match condition:
        case All(conditions) | AnyOf(conditions):
            word = " and " if isinstance(condition, All) is holds else " or "
            return f"({word.join(expression(one, holds) for one in conditions)})"
        case Not(negated):
            return expression(negated, not holds)
        case Equal(attribute, value):
            return _has([_equals(attribute, value)], holds)
        case In(attribute, values):
            return _has([_equals(attribute, value) for value in values], holds)
        case Range():
            return _in_range(condition, holds)
        case Under(category):
            return _has([_under(category)], holds)
        case Categorised():
            return _has([_under(())], holds)
    assert_never(condition)


def one_of(field: str, values: Sequence[str] | Sequence[int]) -> str:
    """The expression for the rows whose field is one of these digests, or integers."""
    return f"{field} in [{', '.join(map(_literal, values))}]"


def _terms(product: Product) -> Iterator[str]:
    for name, value in product.attributes.items():
        if isinstance(value, list):
            yield from (_equals(name, one) for one in value)
        elif not _is_number(value):
            yield _equals(name, value)
        elif not math.isnan(value):
            yield from (_equals(name, value), _is_numeric(name))
    if product.category:
        yield from (_under(product.category[:level]) for level in range(len(product.category) + 1))


def _equals(attribute: str, value: AttributeValue) -> str:
    return digest("equals", attribute, float(value) + 0.0 if _is_number(value) else value)  # + 0.0: -0.0 is 0.0


def _is_numeric(attribute: str) -> str:
    return digest("numeric", attribute)


def _under(category: Sequence[str]) -> str:
    return digest("under", *category)


def _has(terms: Sequence[str], holds: bool) -> str:
    return f"{'' if holds else 'not '}array_contains_any(terms, [{', '.join(map(_literal, terms))}])"


def _in_range(bounds: Range, holds: bool) -> str:
    number = f'numbers["{digest(bounds.attribute)}"]'
    given = {name: bound for name in BOUNDS if (bound := getattr(bounds, name)) is not None}
    compared = [_compared(number, name, float(bound), holds) for name, bound in given.items()]
    return f"({(' and ' if holds else ' or ').join([_has([_is_numeric(bounds.attribute)], holds), *compared])})"


def _compared(number: str, name: str, bound: float, holds: bool) -> str:
    holding, failing, compare = BOUNDS[name]
    if math.isinf(bound):  # Milvus has no such literal
        return "key >= 0" if compare(0.0, bound) is holds else "key < 0"
    return f"{number} {holding if holds else failing} {bound!r}"


def _is_number(value: AttributeValue) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _literal(value: str | int) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
