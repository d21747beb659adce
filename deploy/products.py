"""Products as they come to be written, checked field by field against the contract's limits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from deploy.errors import InvalidRequestError
from index.product import Product
from item.catalog.listing import AttributeValue, Picture
from item.v1 import item_pb2

MAX_ID_BYTES = 512
MAX_TITLE_BYTES = 64 * 2**10
MAX_DESCRIPTION_BYTES = 2**20
MAX_ATTRIBUTES = 256
LANGUAGE = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*")  # the shape of BCP 47's tags (RFC 5646, section 2.1)


def product_of(message: item_pb2.Product, field: str) -> Product:
    """A product as it will be stored. Raises InvalidRequestError naming what is at fault under `field`."""
    if not message.product_id:
        raise InvalidRequestError(f"{field}.product_id", "is empty; give each product its own id")
    return Product(
        product_id=_sized(message.product_id, MAX_ID_BYTES, f"{field}.product_id"),
        title=_sized(message.title, MAX_TITLE_BYTES, f"{field}.title"),
        description=_sized(message.description, MAX_DESCRIPTION_BYTES, f"{field}.description"),
        category=_category(message.category, f"{field}.category"),
        group_id=_group_id(message, f"{field}.group_id"),
        language=_language(message, f"{field}.language"),
        attributes=_attributes(message, f"{field}.attributes"),
        image=message.images[0].reference if message.images else "",
        has_picture=bool(message.images),
    )


def main_picture(message: item_pb2.Product, field: str) -> tuple[Picture, ...]:
    """The picture that is encoded, none where there is none. Raises InvalidRequestError for a reference alone."""
    if not message.images:
        return ()
    if not has_picture_data(message):
        raise InvalidRequestError(
            f"{field}.images[0].data",
            f"is not set; send the picture's bytes: {message.images[0].reference!r} is not fetched",
        )
    return (Picture(data=message.images[0].data, reference=message.images[0].reference),)


def has_picture_data(message: item_pb2.Product) -> bool:
    """Whether the main picture came along."""
    return bool(message.images) and message.images[0].HasField("data")


def _sized(text: str, max_bytes: int, field: str) -> str:
    if (size := len(text.encode())) > max_bytes:
        raise InvalidRequestError(field, f"{text[:20]!r}... has {size:,} bytes; give up to {max_bytes:,}")
    return text


def _category(levels: Iterable[str], field: str) -> tuple[str, ...]:
    category = tuple(levels)
    for number, level in enumerate(category):
        if not level.strip():
            raise InvalidRequestError(f"{field}[{number}]", f"{level!r} is blank; fill the level or leave it out")
    return category


def _group_id(message: item_pb2.Product, field: str) -> str | None:
    if not message.HasField("group_id"):
        return None
    if not message.group_id:
        raise InvalidRequestError(field, "is empty; leave it unset where the group is not known")
    return message.group_id


def _language(message: item_pb2.Product, field: str) -> str | None:
    if not message.HasField("language"):
        return None
    if not LANGUAGE.fullmatch(message.language):
        raise InvalidRequestError(field, f"{message.language!r} is no BCP 47 tag; give one such as 'de' or 'pt-BR'")
    return message.language


def _attributes(message: item_pb2.Product, field: str) -> dict[str, AttributeValue]:
    if (count := len(message.attributes)) > MAX_ATTRIBUTES:
        raise InvalidRequestError(field, f"{count:,} of them; give up to {MAX_ATTRIBUTES}")
    if "" in message.attributes:
        raise InvalidRequestError(field, "one has an empty name; name it")
    return {name: _value(value, f"{field}.{name}") for name, value in sorted(message.attributes.items())}


def _value(message: item_pb2.AttributeValue, field: str) -> AttributeValue:
    match message.WhichOneof("kind"):
        case "string_value":
            return message.string_value
        case "bool_value":
            return message.bool_value
        case "string_list":
            return list(message.string_list.values)
        case "number_value" if math.isfinite(message.number_value):
            return message.number_value
        case "number_value":
            raise InvalidRequestError(field, f"{message.number_value} is not finite; give a finite number, or none")
        case _:
            raise InvalidRequestError(field, "has no value; set one, or leave the attribute out")
