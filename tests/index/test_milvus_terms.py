"""Milvus's expressions against filters that are evaluated one product at a time, without a Milvus."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.filters import All, Equal, Filter, Not, Range
from index.milvus_terms import digest, expression, numbers_of, one_of, terms_of
from index.product import Product
from item.catalog.listing import AttributeValue
from tests.index.conditions import passes, products, trees

SYNTAX = re.compile(
    r"array_contains_any\(terms, \[|numbers\[\"[0-9a-f]{32}\"\]|key >= 0|key < 0|\"[0-9a-f]{32}\""
    r"|[<>]=?|\band\b|\bor\b|\bnot\b"
    r"|-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?|[\[\](), ]"
)


@dataclass(frozen=True)
class Missing:
    """A number that is not there: whatever is compared with it yields the same, which differs between versions."""

    yields: bool

    def __lt__(self, other: object) -> bool:
        return self.yields

    __le__ = __gt__ = __ge__ = __lt__


@dataclass
class Numbers(dict[str, Any]):
    missing: Missing = field(default_factory=lambda: Missing(False))

    def __missing__(self, name: str) -> Missing:
        return self.missing


def evaluate(text: str, product: Product, yields: bool) -> bool:
    """An expression as Python, which reads it as Milvus does."""
    numbers = Numbers(missing=Missing(yields))
    numbers.update(numbers_of(product))
    names = {
        "terms": set(terms_of(product)),
        "numbers": numbers,
        "key": 1,
        "array_contains_any": lambda terms, some: not terms.isdisjoint(some),
    }
    return bool(eval(text, {"__builtins__": {}}, names))


@given(condition=trees, product=products, yields=st.booleans())
def test_what_passes_does_so_whatever_a_missing_number_yields(
    condition: Filter, product: Product, yields: bool
) -> None:
    assert evaluate(expression(condition), product, yields) is passes(condition, product)


@given(condition=trees)
def test_nothing_of_a_filter_is_syntax(condition: Filter) -> None:
    assert SYNTAX.sub("", expression(condition)) == ""


@given(condition=trees)
def test_no_comparison_is_negated(condition: Filter) -> None:
    negated = re.findall(r"not (.{18})", expression(Not(condition)) + expression(condition))
    assert set(negated) <= {"array_contains_any"}


@pytest.mark.parametrize("infinity", [float("inf"), float("-inf")])
@pytest.mark.parametrize("bound", ["at_least", "above", "at_most", "below"])
@pytest.mark.parametrize("value", [1.7976931348623157e308, None])
def test_infinite_bounds(bound: str, infinity: float, value: float | None) -> None:
    product = Product(product_id="a", attributes={} if value is None else {"x": value})
    condition = Range("x", **{bound: infinity})
    for one in (condition, Not(condition), All((Not(condition), condition))):
        assert evaluate(expression(one), product, False) is passes(one, product)


def test_digests_tell_types_and_places_apart() -> None:
    parts: list[tuple[AttributeValue, ...]] = [("1",), (1.0,), (True,), ("1", "1"), ("11",), (["1"],), ('1", "1',), ()]
    assert len({digest(*one) for one in parts}) == len(parts)
    assert Equal("a", 1) == Equal("a", 1.0)
    assert expression(Equal("a", 1)) == expression(Equal("a", 1.0)) != expression(Equal("a", True))
    assert expression(Equal("a", 0.0)) == expression(Equal("a", -0.0))


def test_one_of_digests_or_integers() -> None:
    assert one_of("key", [3, 4]) == "key in [3, 4]"
    assert one_of("id", ["ab"]) == 'id in ["ab"]'
