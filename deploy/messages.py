"""From the contract's messages to our own types, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import InvalidRequestError, PreconditionError, RequestError, status_of
from index.product import Product
from item.catalog.listing import Listing, Picture
from item.engine.interface import Vectors
from item.errors import ItemError, ListingError
from item.products import attribute_message
from item.v1 import item_pb2


def listing_of(message: item_pb2.Input, field: str) -> Listing:
    """An input as a listing. Raises InvalidRequestError for an empty input."""
    has_image = message.HasField("image")
    if not has_image and not message.text.strip() and not message.description.strip():
        raise InvalidRequestError(field, "is empty; give text, description or image")
    images = (Picture(data=message.image),) if has_image else ()
    return Listing(title=message.text, description=message.description, images=images)


def vector_of(message: item_pb2.Vector, field: str, *, space: str, width: int) -> Vectors:
    """(width,) float32 of unit norm out of a message.

    Raises:
        PreconditionError: the vector is of another space.
        InvalidRequestError: another width, values that are not finite, or length zero.
    """
    if message.space != space:
        raise PreconditionError(
            f"{field}.space", f"{message.space!r} is not {space!r}, the space of the index; encode with its model"
        )
    if len(message.values) != 4 * width:
        raise InvalidRequestError(
            f"{field}.values",
            f"{len(message.values)} bytes, expected {width} little-endian float32 values",
        )
    return unit(np.frombuffer(message.values, "<f4"), f"{field}.values")


def unit(values: npt.NDArray[np.floating[Any]], field: str) -> Vectors:
    """(D,) float32 scaled to unit norm. Raises InvalidRequestError where it has no direction."""
    exact = values.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    if not math.isfinite(norm) or norm == 0:
        raise InvalidRequestError(field, f"a vector of length {norm} has no direction; give finite values, not all 0")
    return (exact / norm).astype(np.float32)


def vector_message(values: Vectors, space: str) -> item_pb2.Vector:
    """(D,) float32 as a message."""
    return item_pb2.Vector(values=values.astype("<f4").tobytes(), space=space)


def error_message(error: ItemError) -> item_pb2.Error:
    """Why one item of a call is refused."""
    field, reason = (error.field, error.reason) if isinstance(error, RequestError | ListingError) else ("", str(error))
    return item_pb2.Error(code=status_of(error), field=field, message=reason)


def product_message(product: Product, *, with_description: bool) -> item_pb2.Product:
    """A stored product; hits come without its description."""
    return item_pb2.Product(
        product_id=product.product_id,
        title=product.title,
        description=product.description if with_description else "",
        category=product.category,
        group_id=product.group_id,
        language=product.language,
        attributes={name: attribute_message(value) for name, value in product.attributes.items()},
        images=[item_pb2.Picture(reference=product.image)] if product.image else [],
    )


def category_message(path: Sequence[str], probabilities: Sequence[float]) -> item_pb2.CategoryPath:
    """A category path with the probability of each of its levels."""
    levels = zip(path, probabilities, strict=True)
    return item_pb2.CategoryPath(levels=[item_pb2.CategoryLevel(name=name, probability=p) for name, p in levels])
