"""The update mask: which fields of a stored product a request writes anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from deploy.errors import InvalidRequestError
from index.product import Product
from item.catalog.listing import AttributeValue

STORED_AS = {  # the fields of the contract's Product that can be named, as the store calls them
    "title": ("title",),
    "description": ("description",),
    "category": ("category",),
    "group_id": ("group_id",),
    "language": ("language",),
    "attributes": ("attributes",),
    "images": ("image", "has_picture"),
}
ENCODED = frozenset({"title", "description", "images"})  # what the vector is made of
ONE_ATTRIBUTE = "attributes."


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMask:
    """fields: names of `STORED_AS`. attributes: names of single attributes."""

    fields: frozenset[str]
    attributes: frozenset[str]

    @classmethod
    def of(cls, paths: Iterable[str]) -> UpdateMask:
        """The mask with these paths. Raises InvalidRequestError for an unknown one, and where there are none."""
        fields, attributes = set(), set()
        for number, path in enumerate(paths):
            if path in STORED_AS:
                fields.add(path)
            elif path.startswith(ONE_ATTRIBUTE) and path != ONE_ATTRIBUTE:
                attributes.add(path.removeprefix(ONE_ATTRIBUTE))
            else:
                known = ", ".join(STORED_AS)
                raise InvalidRequestError(
                    f"update_mask.paths[{number}]",
                    f"{path!r} cannot be written; give some of {known}, {ONE_ATTRIBUTE}NAME",
                )
        if not fields and not attributes:
            raise InvalidRequestError(
                "update_mask", "names no field; name some, or leave it unset to write whole products"
            )
        return cls(fields=frozenset(fields), attributes=frozenset(attributes))

    @property
    def needs_encoding(self) -> bool:
        """Whether the vector has to be made anew."""
        return bool(self.fields & ENCODED)

    def merge(self, stored: Product, given: Product) -> Product:
        """The stored product with the fields of the mask as given; a single attribute that is not given goes."""
        named = {kept: getattr(given, kept) for name in self.fields for kept in STORED_AS[name]}
        return replace(stored, **{"attributes": self._merge_attributes(stored, given), **named})

    def _merge_attributes(self, stored: Product, given: Product) -> dict[str, AttributeValue]:
        kept = {name: value for name, value in stored.attributes.items() if name not in self.attributes}
        return kept | {name: value for name, value in given.attributes.items() if name in self.attributes}
