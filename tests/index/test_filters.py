"""Filters: what they refuse, and which of them are equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from math import inf, nan

import pytest

from index.filters import All, AnyOf, Equal, Filter, In, Not, Range, Under
from item.errors import ConfigError

RED = Equal("colour", "red")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: All(()), "filters: 0 of them; give 1 to 64"),
        (lambda: AnyOf(()), "filters: 0 of them; give 1 to 64"),
        (lambda: All((RED,) * 65), "filters: 65 of them; give 1 to 64"),
        (lambda: AnyOf((RED,) * 65), "filters: 65 of them"),
        (lambda: Equal("", "red"), "attribute: '' is empty; give"),
        (lambda: Equal("price", nan), "value: nan equals no number"),
        (lambda: Equal("sizes", ["S"]), r"value: \['S'\] is a list; give a string, a number or a boolean"),  # type: ignore[arg-type]
        (lambda: In("", ("red",)), "attribute: '' is empty"),
        (lambda: In("colour", ()), "values: 0 of them; give 1 to 10,000"),
        (lambda: In("price", tuple(range(10_001))), "values: 10,001 of them"),
        (lambda: In("price", (1.0, nan)), r"values\[1\]: nan equals no number"),
        (lambda: In("sizes", ("S", ["M"])), r"values\[1\]: \['M'\] is a list"),  # type: ignore[arg-type]
        (lambda: Range("", at_least=1), "attribute: '' is empty"),
        (lambda: Range("price"), "range: no bound for 'price'; give one of at_least, above, at_most, below"),
        (lambda: Range("price", at_least=1, above=2), "at_least: 1 beside above: 2; give one of the two"),
        (lambda: Range("price", at_most=1, below=2), "at_most: 1 beside below: 2"),
        (lambda: Range("price", at_least=0, below=nan), "below: nan is no bound; give a number"),
        (lambda: Under(()), r"category: \(\) has no level; give at least one"),
    ],
)
def test_filters_of_no_use_are_refused(make: Callable[[], Filter], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_limits_themselves_are_taken() -> None:
    assert len(All((RED,) * 64).filters) == len(AnyOf((RED,) * 64).filters) == 64
    assert len(In("price", tuple(range(10_000))).values) == 10_000
    assert Range("price", at_least=0).at_least == 0
    assert Range("price", above=-inf, below=inf).above == -inf
    assert Equal("colour", "").value == ""
    assert Equal("price", inf).value == inf


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Equal("a", True), Equal("a", 1.0)),
        (Equal("a", 0.0), Equal("a", False)),
        (Equal("a", 1.0), Equal("a", "1.0")),
        (In("a", (1.0, True)), In("a", (True, 1.0))),
        (In("a", ("x", 1.0)), In("a", ("x", True))),
        (All((RED,)), AnyOf((RED,))),
        (Range("a", at_least=1), Range("a", above=1)),
        (Not(Equal("a", True)), Not(Equal("a", 1.0))),
        (Under(("A",)), Under(("A", "B"))),
    ],
)
def test_filters_that_pass_different_products_are_not_equal(one: Filter, other: Filter) -> None:
    assert one != other
    assert len({one, other}) == 2


def test_equal_filters_are_grouped() -> None:
    def tree(number: float) -> Filter:
        leaves = (In("a", ("x", True)), Range("b", above=number), Under(("A", "B")))
        return All((Not(AnyOf(leaves)), Equal("b", number), RED))

    assert len({tree(1), tree(1.0), tree(2)}) == 2


def test_filters_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        RED.value = "blue"  # type: ignore[misc]
