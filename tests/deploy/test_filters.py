"""Filters of the contract: each kind as the index has it, and which field is named where one is none."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest

from deploy.errors import InvalidRequestError
from deploy.filters import filter_of
from index.filters import All, AnyOf, Equal, Filter, In, Not, Range, Under
from item.v1 import item_pb2

RED = {"equal": {"attribute": "colour", "value": {"string_value": "red"}}}
Tree = dict[str, Any]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (RED, Equal("colour", "red")),
        ({"equal": {"attribute": "new", "value": {"bool_value": True}}}, Equal("new", True)),
        ({"equal": {"attribute": "price", "value": {"number_value": 1}}}, Equal("price", 1.0)),
        (
            {
                "in": {
                    "attribute": "size",
                    "values": [{"string_value": "S"}, {"number_value": 42}, {"bool_value": False}],
                }
            },
            In("size", ("S", 42.0, False)),
        ),
        ({"range": {"attribute": "price", "at_least": 0, "below": 20}}, Range("price", at_least=0.0, below=20.0)),
        ({"range": {"attribute": "price", "above": -1, "at_most": 9}}, Range("price", above=-1.0, at_most=9.0)),
        ({"under": {"category": ["Home", "Mugs"]}}, Under(("Home", "Mugs"))),
        (
            {"all": {"filters": [RED, {"not": {"any": {"filters": [RED, {"under": {"category": ["A"]}}]}}}]}},
            All((Equal("colour", "red"), Not(AnyOf((Equal("colour", "red"), Under(("A",))))))),
        ),
    ],
)
def test_trees(tree: Tree, expected: Filter) -> None:
    found = filter_of(item_pb2.Filter(**tree), "filter")
    assert found == expected
    assert hash(found) == hash(expected)


@pytest.mark.parametrize(
    ("tree", "field", "message"),
    [
        ({}, "", "has no condition; give all, any, not, equal, in, range or under"),
        ({"all": {}}, ".all", "filters: 0 of them; give 1 to 64"),
        ({"any": {"filters": [RED] * 65}}, ".any", "filters: 65 of them; give 1 to 64"),
        ({"any": {"filters": [RED, {}]}}, ".any.filters[1]", "has no condition"),
        ({"not": {}}, ".not", "has no condition"),
        ({"equal": {"value": {"string_value": "red"}}}, ".equal", "attribute: '' is empty"),
        ({"equal": {"attribute": "a"}}, ".equal.value", "has no value"),
        ({"equal": {"attribute": "a", "value": {"number_value": nan}}}, ".equal", "value: nan equals no number"),
        ({"equal": {"attribute": "a", "value": {"string_list": {}}}}, ".equal.value", "is a list of strings"),
        ({"in": {"attribute": "a"}}, ".in", "values: 0 of them; give 1 to 10,000"),
        ({"in": {"attribute": "a", "values": [{"bool_value": True}, {}]}}, ".in.values[1]", "has no value"),
        ({"range": {"attribute": "a"}}, ".range", "range: no bound for 'a'"),
        ({"range": {"attribute": "a", "above": 1, "at_least": 1}}, ".range", "at_least: 1.0 beside above: 1.0"),
        (
            {"all": {"filters": [RED, RED, {"not": {"range": {"attribute": "a"}}}]}},
            ".all.filters[2].not.range",
            "range: no bound for 'a'",
        ),
        ({"under": {}}, ".under", "has no level"),
    ],
)
def test_the_condition_at_fault_is_named(tree: Tree, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        filter_of(item_pb2.Filter(**tree), "queries[0].filter")
    assert caught.value.field == f"queries[0].filter{field}"
    assert message in caught.value.reason
