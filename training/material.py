"""What a model is evaluated on: the listings of a catalogue and second offers of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from item.catalog.listing import Listing
from item.catalog.reader import Refused, read_catalog
from item.catalog.splits import assign_splits
from item.errors import CatalogError


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is evaluated on: listings and second offers (None: none were given), each with its split.

    split: whose rows are asked about; about: where all that was read from, for the report.
    """

    split: str
    about: dict[str, str]
    listings: list[Listing]
    offers: list[Listing] | None
    refused: list[Refused]

    def offers_of(self, split: str) -> list[Listing]:
        """The offers of a split."""
        return [offer for offer in self.offers or () if offer.split == split]


def read_material(catalog_path: str, offers_path: str | None, split: str) -> Material:
    """Reads a catalogue and its offers.

    An offer without a split has that of the listing it offers again; a catalogue without splits gets them by rule.

    Raises:
        CatalogError: one of them cannot be read; the split has no rows; no offer is of a listing of the catalogue.
    """
    catalog = read_catalog(catalog_path)
    listings = catalog.listings if catalog.has_splits else assign_splits(catalog.listings)
    there = Counter(listing.split or "none" for listing in listings)
    if not there[split]:
        counts = ", ".join(f"{name} ({count:,})" for name, count in there.most_common())
        raise CatalogError(f"split: {catalog.path} has no rows of {split!r}; it has {counts}")
    about = {"catalogue": catalog_path, "offers": offers_path or "none"}
    if offers_path is None:
        return Material(split=split, about=about, listings=listings, offers=None, refused=catalog.refused)
    again = read_catalog(offers_path, "offers")
    splits = {listing.product_id: listing.split for listing in listings}
    if not any(offer.group_id in splits for offer in again.listings):
        found = f"the first is {again.listings[0].group_id!r}"
        raise CatalogError(f"{again.path}: group_id: none is a product_id of {catalog.path}; {found}")
    offers = [replace(offer, split=offer.split or splits.get(offer.group_id or "")) for offer in again.listings]
    return Material(
        split=split, about=about, listings=listings, offers=offers, refused=[*catalog.refused, *again.refused]
    )
