"""What the store knows of a product: made of a listing, read again."""

from __future__ import annotations

from index.product import Product
from item.catalog.listing import Listing, Picture
from tests.index.conftest import product


def test_a_product_from_a_listing() -> None:
    picture = Picture(data=b"x", reference="a.png")
    listing = Listing(product_id="a", title="Mug", images=(picture,), attributes={"b": 1.0})
    made = Product.from_listing(listing)
    assert (made.product_id, made.title, made.attributes, made.image) == ("a", "Mug", {"b": 1.0}, "a.png")


def test_a_product_of_a_later_version_is_read() -> None:
    text = product("a").to_json()[:-1] + ',"not known yet":1}'
    assert Product.from_json("a", text) == product("a")
