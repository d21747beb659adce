"""One row: what is accepted, and every kind of broken row with its own reason."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from item.catalog.listing import Listing, Picture
from item.catalog.rows import parse_listing
from item.errors import ListingError

FOLDER = Path("/shop")


def parse(**cells: Any) -> Listing:
    return parse_listing({"product_id": "1", "title": "mug", **cells}, folder=FOLDER)


def picture(path: str) -> Picture:
    return Picture(path=FOLDER / path, reference=path)


def test_a_full_row() -> None:
    listing = parse_listing(
        {
            "product_id": "A-1",
            "title": " Red mug ",
            "description": "For tea.",
            "image": "images/1.jpg",
            "category": "Home/Kitchen/Mugs",
            "group_id": "A",
            "language": "en",
            "split": "train",
            "brand": "Acme",
            "price": 12,
            "sale": True,
            "colours": ["red", "white"],
            "attributes": '{"volume": 0.3, "dishwasher": false}',
        },
        folder=FOLDER,
    )
    assert listing == Listing(
        product_id="A-1",
        title="Red mug",
        description="For tea.",
        images=(picture("images/1.jpg"),),
        category=("Home", "Kitchen", "Mugs"),
        group_id="A",
        language="en",
        split="train",
        attributes={
            "brand": "Acme",
            "price": 12.0,
            "sale": True,
            "colours": ["red", "white"],
            "volume": 0.3,
            "dishwasher": False,
        },
    )
    assert [type(listing.attributes[name]) for name in ("price", "sale")] == [float, bool]


@pytest.mark.parametrize("nothing", [None, math.nan, "", "  \n", np.float64("nan")])
def test_empty_cells_are_not_there(nothing: object) -> None:
    columns = ("description", "image", "images", "category", "group_id", "language", "split", "attributes", "brand")
    assert parse(**dict.fromkeys(columns, nothing)) == Listing(product_id="1", title="mug")
    assert parse_listing({"product_id": "1", "title": nothing, "image": "a.jpg"}, folder=FOLDER).title == ""
    assert parse(attributes={"brand": nothing}).attributes == {}
    assert parse(tags=[nothing, "new"]).attributes == {"tags": ["new"]}
    assert parse(tags=[nothing]).attributes == {}
    assert parse(images=[nothing, "a.jpg"]).images == (picture("a.jpg"),)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x7", "x7"),
        (" x7 ", "x7"),
        (12, "12"),
        (12.0, "12"),
        (np.int64(12), "12"),
        (np.float32(12), "12"),
        ("012", "012"),
    ],
)
def test_product_id(value: object, expected: str) -> None:
    assert parse(product_id=value).product_id == expected
    assert parse(group_id=value).group_id == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("images/1.jpg", (picture("images/1.jpg"),)),
        ("/pictures/1.jpg", (Picture(path=Path("/pictures/1.jpg"), reference="/pictures/1.jpg"),)),
        ("../other/1.jpg", (picture("../other/1.jpg"),)),
        (b"\xff\xd8", (Picture(data=b"\xff\xd8"),)),
        ({"bytes": b"\xff\xd8", "path": "1.jpg"}, (Picture(data=b"\xff\xd8", reference="1.jpg"),)),
        ({"bytes": b"\xff\xd8", "path": None}, (Picture(data=b"\xff\xd8"),)),
        ({"bytes": None, "path": "1.jpg"}, (picture("1.jpg"),)),
        ({"bytes": None, "path": None}, ()),
        (
            ["1.jpg", b"\xff", {"bytes": None, "path": "3.jpg"}],
            (picture("1.jpg"), Picture(data=b"\xff"), picture("3.jpg")),
        ),
        (np.array(["1.jpg", "2.jpg"], dtype=object), (picture("1.jpg"), picture("2.jpg"))),
        ('["1.jpg", "2.jpg"]', (picture("1.jpg"), picture("2.jpg"))),
        ("[1] front.jpg", (picture("[1] front.jpg"),)),
        ("[]", ()),
        ([], ()),
    ],
)
@pytest.mark.parametrize("column", ["image", "images"])
def test_pictures(column: str, value: object, expected: tuple[Picture, ...]) -> None:
    assert parse(**{column: value}).images == expected


def test_image_comes_before_images_and_each_once() -> None:
    assert parse(image="1.jpg", images=["2.jpg", "1.jpg"]).images == (picture("1.jpg"), picture("2.jpg"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Home/Mugs", ("Home", "Mugs")),
        (" Home / Mugs ", ("Home", "Mugs")),
        ("/Home/Mugs/", ("Home", "Mugs")),
        (["Home", " Audio/Video "], ("Home", "Audio/Video")),
        (np.array(["Home", "Mugs"]), ("Home", "Mugs")),
        ('["Home", "Audio/Video"]', ("Home", "Audio/Video")),
        ("[Sale]/Mugs", ("[Sale]", "Mugs")),
        ("[]", ()),
        ([], ()),
    ],
)
def test_category(value: object, expected: tuple[str, ...]) -> None:
    assert parse(category=value).category == expected


@pytest.mark.parametrize(
    "value", ['{"a": "x", "b": 1}', {"a": "x", "b": 1}, {"a": "x", "b": 1, "c": None}, [("a", "x"), ("b", 1)]]
)
def test_attributes_are_unfolded(value: object) -> None:
    assert parse(attributes=value, d=Decimal("9.90")).attributes == {"a": "x", "b": 1.0, "d": 9.9}


def test_pictures_by_url_where_they_may_be() -> None:
    row = {"product_id": "1", "image": "https://shop.example/1.jpg", "images": ["HTTP://shop.example/2.jpg", "3.jpg"]}
    first, second, third = parse_listing(row, folder=Path("F"), urls=True).images
    assert first == Picture(url="https://shop.example/1.jpg", reference="https://shop.example/1.jpg")
    assert second.url == "HTTP://shop.example/2.jpg"
    assert third == Picture(path=Path("F/3.jpg"), reference="3.jpg")
    for url in ("s3://bucket/1.jpg", "file:///etc/passwd", "ftp://shop.example/1.jpg"):
        with pytest.raises(ListingError, match="no http or https URL"):
            parse_listing({"product_id": "1", "image": url}, folder=Path("F"), urls=True)


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "id blank": ({"product_id": " "}, "product_id", "blank"),
    "id None": ({"product_id": None}, "product_id", "blank"),
    "id boolean": ({"product_id": True}, "product_id", "True is of type bool"),
    "id fraction": ({"product_id": 1.5}, "product_id", "1.5 is of type float"),
    "id float that lost digits": ({"product_id": 1e17}, "product_id", "type float"),
    "id infinite": ({"product_id": math.inf}, "product_id", "inf"),
    "id no UTF-8": ({"product_id": "a\udcff"}, "product_id", "not valid UTF-8"),
    "title number": ({"title": 501}, "title", "501 is of type int; give a string"),
    "title no UTF-8": ({"title": "m\udcfcg"}, "title", "'m\\udcfcg' is not valid UTF-8"),
    "description list": ({"description": ["a"]}, "description", "type list"),
    "nothing to encode": ({"title": None, "Description": "x"}, "title", "no title, description or image"),
    "image URL": ({"image": "https://shop.example/1.jpg"}, "image", "is a URL, which is not fetched"),
    "images URL": ({"images": ["1.jpg", "HTTP://shop.example/1.jpg"]}, "images", "is a URL"),
    "image store": ({"image": "s3://bucket/1.jpg"}, "image", "is a URL"),
    "image number": ({"image": 5}, "image", "5 is no picture"),
    "image list in list": ({"images": [["1.jpg"]]}, "images", "is no picture"),
    "image bytes as text": ({"image": {"bytes": "abc", "path": None}}, "image", "is no picture"),
    "image no UTF-8": ({"image": "\udcff.jpg"}, "image", "not valid UTF-8"),
    "category blank level": ({"category": "Home//Mugs"}, "category", "blank level"),
    "category slashes": ({"category": "//"}, "category", "blank level"),
    "category blank in list": ({"category": ["Home", " "]}, "category", "blank level"),
    "category None in list": ({"category": ["Home", None]}, "category", "None is of type NoneType"),
    "category number": ({"category": 5}, "category", "5 is of type int"),
    "group boolean": ({"group_id": False}, "group_id", "type bool"),
    "language number": ({"language": 1}, "language", "type int"),
    "split list": ({"split": ["train"]}, "split", "type list"),
    "attributes broken": ({"attributes": '{"a": '}, "attributes", "broken JSON"),
    "attributes deep": ({"attributes": "[" * 100_000}, "attributes", "broken JSON"),
    "attributes list": ({"attributes": "[1]"}, "attributes", "no JSON object"),
    "attributes number": ({"attributes": 3}, "attributes", "no JSON object"),
    "attributes twice": ({"attributes": '{"a": 1, "a": 2}'}, "a", "twice"),
    "attributes map twice": ({"attributes": [("a", 1), ("a", 2)]}, "a", "twice"),
    "attributes clash": ({"attributes": {"brand": "A"}, "brand": "B"}, "attributes", "'brand' is also a column"),
    "attributes reserved": ({"attributes": {"category": "A"}}, "attributes", "'category' is also a column"),
    "attribute object": ({"size": {"w": 1}}, "size", "type dict"),
    "attribute list of numbers": ({"sizes": [1, 2]}, "sizes", "1 is of type int"),
    "attribute bytes": ({"thumb": b"x"}, "thumb", "type bytes"),
    "attribute infinite": ({"price": math.inf}, "price", "64-bit float"),
    "attribute too exact": ({"ean": 2**53 + 1}, "ean", "give it as a string"),
    "attribute too large": ({"ean": 10**400}, "ean", "64-bit float"),
    "attribute no UTF-8": ({"brand": "\udcff"}, "brand", "not valid UTF-8"),
    "attribute name no UTF-8": ({"br\udcff": "A"}, "attributes", "not valid UTF-8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_rows(kind: str) -> None:
    cells, field, message = BROKEN[kind]
    with pytest.raises(ListingError) as error:
        parse(**cells)
    assert error.value.field == field
    assert message in error.value.reason
    assert len(error.value.reason) < 300
    error.value.reason.encode()  # can be written


@pytest.mark.parametrize("name", ["id", "Product ID", "productId", "PRODUCT_ID", "sku"])
def test_a_column_that_may_be_the_id_is_named(name: str) -> None:
    with pytest.raises(ListingError, match=f"rename '{name}'") as error:
        parse_listing({name: "1", "title": "mug"}, folder=FOLDER)
    assert error.value.field == "product_id"


def test_no_column_like_an_id() -> None:
    with pytest.raises(ListingError, match=r"the columns are \['title', 'width'\]"):
        parse_listing({"title": "mug", "width": "1"}, folder=FOLDER)


def test_long_values_are_shortened_in_reasons() -> None:
    with pytest.raises(ListingError) as error:
        parse(category="/" * 10**5)
    assert len(error.value.reason) < 200


def test_missing_pictures_are_not_looked_for() -> None:
    assert parse(image="no/such/file.jpg").images == (picture("no/such/file.jpg"),)


def test_attribute_values_survive_json() -> None:
    attributes = parse(brand="A", price=1.5, sale=True, tags=["x"]).attributes
    assert json.loads(json.dumps(attributes)) == attributes
