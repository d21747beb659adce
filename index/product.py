"""What the store knows of a product beside its vector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields

import pyarrow as pa

from item.catalog.listing import AttributeValue, Listing

SCHEMA = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("category", pa.list_(pa.string()), nullable=False),
        pa.field("group_id", pa.string()),
        pa.field("language", pa.string()),
        pa.field("attributes", pa.string(), nullable=False),  # a JSON object
        pa.field("image", pa.string(), nullable=False),
        pa.field("has_picture", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product as stored. image: the catalogue's reference to its main picture, empty for bytes without a name.
    has_picture: whether its vector is made of one."""

    product_id: str
    title: str = ""
    description: str = ""
    category: tuple[str, ...] = ()
    group_id: str | None = None
    language: str | None = None
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    image: str = ""
    has_picture: bool = False

    @classmethod
    def from_listing(cls, listing: Listing) -> Product:
        return cls(
            product_id=listing.product_id,
            title=listing.title,
            description=listing.description,
            category=listing.category,
            group_id=listing.group_id,
            language=listing.language,
            attributes=dict(listing.attributes),
            image=listing.images[0].reference if listing.images else "",
            has_picture=bool(listing.images),
        )

    def to_json(self) -> str:
        """All but the id, as a JSON object."""
        fields = asdict(self)
        del fields["product_id"]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, product_id: str, text: str) -> Product:
        """The reverse of `to_json`."""
        known = {one.name for one in dataclass_fields(cls)}
        fields = {name: value for name, value in json.loads(text).items() if name in known}  # a later version has more
        return cls(product_id=product_id, category=tuple(fields.pop("category")), **fields)


def product_table(products: Sequence[Product]) -> pa.Table:
    """Products as a table of `SCHEMA`."""
    rows = [
        asdict(product) | {"attributes": json.dumps(product.attributes, ensure_ascii=False)} for product in products
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def products_of(table: pa.Table) -> list[Product]:
    """The reverse of `product_table`."""
    return [
        Product(**{**row, "category": tuple(row["category"]), "attributes": json.loads(row["attributes"])})
        for row in table.to_pylist()
    ]
