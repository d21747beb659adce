"""A product that is stored, and a listing or its attributes as messages of the contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from item.catalog.listing import AttributeValue, Listing
from item.errors import ConfigError
from item.v1 import item_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A stored product; `image` is the catalogue's reference to its main picture, empty without one.

    Hits come without description.
    """

    product_id: str
    title: str
    description: str
    category: tuple[str, ...]
    group_id: str | None
    language: str | None
    attributes: dict[str, AttributeValue]
    image: str

    @classmethod
    def of(cls, message: item_pb2.Product) -> Product:
        return cls(**product_fields(message))


def product_fields(message: item_pb2.Product) -> dict[str, Any]:
    """The fields of `Product` out of a message."""
    return {
        "product_id": message.product_id,
        "title": message.title,
        "description": message.description,
        "category": tuple(message.category),
        "group_id": message.group_id if message.HasField("group_id") else None,
        "language": message.language if message.HasField("language") else None,
        "attributes": {name: attribute_of(value) for name, value in message.attributes.items()},
        "image": message.images[0].reference if message.images else "",
    }


def product_message(listing: Listing | item_pb2.Product, field: str, *, with_picture: bool = True) -> item_pb2.Product:
    """A listing with its main picture as a message; a message as it is.

    Raises:
        ConfigError: with the field: a picture that cannot be read, or a value that is none of the contract's.
    """
    if isinstance(listing, item_pb2.Product):
        return listing
    picture = listing.images[0] if listing.images and with_picture else None
    try:
        return item_pb2.Product(
            product_id=listing.product_id,
            title=listing.title,
            description=listing.description,
            category=listing.category,
            group_id=listing.group_id,
            language=listing.language,
            attributes={name: attribute_message(value) for name, value in listing.attributes.items()},
            images=[item_pb2.Picture(data=read_image(picture.path or picture.data), reference=picture.reference)]
            if picture
            else [],
        )
    except OSError as error:
        raise ConfigError(f"{field}.image: {error.filename} cannot be read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {error}") from error


def attribute_of(message: item_pb2.AttributeValue) -> AttributeValue:
    """An attribute's value by its kind."""
    match message.WhichOneof("kind"):
        case "string_list":
            return list(message.string_list.values)
        case "number_value":
            return message.number_value
        case "bool_value":
            return message.bool_value
        case _:
            return message.string_value


def attribute_message(value: AttributeValue) -> item_pb2.AttributeValue:
    """An attribute's value by its type."""
    match value:
        case bool():
            return item_pb2.AttributeValue(bool_value=value)
        case str():
            return item_pb2.AttributeValue(string_value=value)
        case list():
            return item_pb2.AttributeValue(string_list=item_pb2.StringList(values=value))
        case _:
            return item_pb2.AttributeValue(number_value=value)


def read_image(image: bytes | str | Path | None) -> bytes | None:
    """The encoded picture."""
    return Path(image).read_bytes() if isinstance(image, str | Path) else image
