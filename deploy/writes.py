"""What UpsertProducts writes: products checked, merged into what is stored where a mask says so, encoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.encoding import Encoding, encode_listings
from deploy.errors import Deadline, InvalidRequestError, NotFoundError, PreconditionError, RequestError, attempt
from deploy.messages import error_message
from deploy.products import has_picture_data, main_picture, product_of
from deploy.update_mask import UpdateMask
from index.product import Product
from index.store import Store
from index.vector_store import VectorStore
from item.catalog.listing import Listing, Picture
from item.engine.interface import Engine
from item.v1 import item_pb2

LISTING_FIELDS = {"image": "images[0].data"}  # of Product, by a listing's field, where they differ

Written = bool | RequestError  # whether a product is new, or why it was refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A product to be stored, and the listing that its vector is made of."""

    product: Product
    listing: Listing


def write(
    store: VectorStore,
    engine: Engine,
    messages: Sequence[item_pb2.Product],
    mask: UpdateMask | None,
    deadline: Deadline,
) -> item_pb2.UpsertProductsResponse:
    """Writes all products that are not refused in one transaction; of two with one id the later stays.

    The caller sees to it that nothing else writes to the store meanwhile.
    """
    encoding = Encoding(outcomes=[], spaces=[])
    if mask is not None and not mask.needs_encoding:
        written = update(store, messages, mask)
    else:
        encoding, written = upsert(store, engine, messages, mask, deadline)
    results = [upsert_result(message, one) for message, one in zip(messages, written, strict=True)]
    return item_pb2.UpsertProductsResponse(results=results, times=encoding.times())


def update(store: VectorStore, messages: Sequence[item_pb2.Product], mask: UpdateMask) -> list[Written]:
    """Writes fields that no vector is made of."""
    fields = fields_of(messages)
    merged = [attempt(merge, store, message, field, mask) for message, field in zip(messages, fields, strict=True)]
    store.update([one for one in merged if isinstance(one, Product)])
    return [one if isinstance(one, RequestError) else False for one in merged]


def upsert(
    store: VectorStore,
    engine: Engine,
    messages: Sequence[item_pb2.Product],
    mask: UpdateMask | None,
    deadline: Deadline,
) -> tuple[Encoding, list[Written]]:
    """Writes products with vectors made anew."""
    fields = fields_of(messages)
    drafts = [attempt(draft, store, message, field, mask) for message, field in zip(messages, fields, strict=True)]
    listings = [one.listing if isinstance(one, Draft) else one for one in drafts]
    encoding = encode_listings(engine, listings, fields, LISTING_FIELDS)
    deadline.check()
    usable = [
        (one.product, vector)
        for one, vector in zip(drafts, encoding.outcomes, strict=True)
        if isinstance(one, Draft) and not isinstance(vector, RequestError)
    ]
    if not usable:
        return encoding, [one for one in encoding.outcomes if isinstance(one, RequestError)]
    products, vectors = zip(*usable, strict=True)
    created = iter(store.upsert(products, np.stack(vectors)))
    if isinstance(store, Store):
        store.keep_pictures(
            {
                one.product.product_id: one.listing.images[0].data
                for one, vector in zip(drafts, encoding.outcomes, strict=True)
                if isinstance(one, Draft) and not isinstance(vector, RequestError) and one.listing.images
                if one.listing.images[0].data is not None
            }
        )
    return encoding, [one if isinstance(one, RequestError) else next(created) for one in encoding.outcomes]


def draft(store: VectorStore, message: item_pb2.Product, field: str, mask: UpdateMask | None) -> Draft:
    """A product to be written with its vector. Raises RequestError."""
    if mask is None:
        product, images = product_of(message, field), main_picture(message, field)
    else:
        product, images = merge(store, message, field, mask), picture_of_update(store, message, field, mask)
    if not images and not product.title.strip() and not product.description.strip():
        raise InvalidRequestError(field, "nothing is left to encode; give a title, a description or a picture")
    return Draft(product=product, listing=Listing(title=product.title, description=product.description, images=images))


def merge(store: VectorStore, message: item_pb2.Product, field: str, mask: UpdateMask) -> Product:
    """The stored product with the fields of the mask as in the message. Raises RequestError."""
    given = product_of(message, field)
    return mask.merge(stored_product(store, given.product_id, field), given)


def picture_of_update(
    store: VectorStore, message: item_pb2.Product, field: str, mask: UpdateMask
) -> tuple[Picture, ...]:
    """The picture for a vector that is made anew: of pictures the store knows no more than where they lay.

    Raises:
        PreconditionError: the stored product has one, and the request does not bring it.
    """
    if "images" in mask.fields:
        return main_picture(message, field)
    stored = stored_product(store, message.product_id, field)
    if stored.has_picture and not has_picture_data(message):
        raise PreconditionError(
            f"{field}.images[0].data",
            f"is needed for the new vector, and pictures are not stored: send {stored.image or 'the picture'!r} along,"
            " or write the whole product",
        )
    if not stored.has_picture:
        return ()
    return (Picture(data=message.images[0].data, reference=stored.image),)


def stored_product(store: VectorStore, product_id: str, field: str) -> Product:
    """What is stored. Raises NotFoundError."""
    product = store.product(product_id)
    if product is None:
        raise NotFoundError(
            f"{field}.product_id", f"{product_id!r} is not in the collection; write it whole, without update_mask"
        )
    return product


def fields_of(messages: Sequence[item_pb2.Product]) -> list[str]:
    """Where each product stands in the request."""
    return [f"products[{row}]" for row in range(len(messages))]


def upsert_result(message: item_pb2.Product, written: Written) -> item_pb2.UpsertResult:
    """What became of a product."""
    if isinstance(written, RequestError):
        return item_pb2.UpsertResult(product_id=message.product_id, error=error_message(written))
    return item_pb2.UpsertResult(product_id=message.product_id, created=written)
