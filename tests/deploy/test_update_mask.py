"""Update masks: what they name, what they refuse, and what a merged product is."""

from __future__ import annotations

import pytest

from deploy.errors import InvalidRequestError
from deploy.update_mask import UpdateMask
from index.product import Product

STORED = Product(
    product_id="mug",
    title="mug",
    description="a mug",
    category=("Home",),
    group_id="g",
    language="en",
    attributes={"price": 9.5, "new": True, "sale.price": 5.0},
    image="mug.png",
)
GIVEN = Product(product_id="mug", title="cup", category=("Home", "Cups"), attributes={"price": 8.0, "colour": "red"})


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["title"], {"title": "cup"}),
        (["category", "group_id"], {"category": ("Home", "Cups"), "group_id": None}),
        (["description", "language"], {"description": "", "language": None}),
        (["images"], {"image": ""}),
        (["attributes"], {"attributes": {"price": 8.0, "colour": "red"}}),
        (["attributes.price"], {"attributes": {"price": 8.0, "new": True, "sale.price": 5.0}}),
        (["attributes.colour"], {"attributes": {"price": 9.5, "new": True, "sale.price": 5.0, "colour": "red"}}),
        (["attributes.new", "attributes.sale.price"], {"attributes": {"price": 9.5}}),
        (["attributes.new", "attributes"], {"attributes": {"price": 8.0, "colour": "red"}}),
    ],
)
def test_fields_of_the_mask_are_as_given_the_others_as_stored(paths: list[str], expected: dict[str, object]) -> None:
    merged = UpdateMask.of(paths).merge(STORED, GIVEN)
    assert {name: getattr(merged, name) for name in expected} == expected
    others = set(Product.__slots__) - expected.keys()
    assert len(others) >= 6
    assert all(getattr(merged, name) == getattr(STORED, name) for name in others)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["title"], True),
        (["images", "category"], True),
        (["attributes.price", "description"], True),
        (["category", "group_id", "language", "attributes"], False),
        (["attributes.title"], False),
    ],
)
def test_what_the_vector_is_made_of_needs_encoding(paths: list[str], expected: bool) -> None:
    assert UpdateMask.of(paths).needs_encoding is expected


@pytest.mark.parametrize("path", ["product_id", "Title", "attributes.", "images.reference", "title.", "*", ""])
def test_unknown_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"give some of title, .*, images, attributes.NAME") as caught:
        UpdateMask.of(["title", path])
    assert caught.value.field == "update_mask.paths[1]"
    assert repr(path) in caught.value.reason


def test_a_mask_without_paths_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"update_mask: names no field; .* leave it unset to write whole"):
        UpdateMask.of([])
