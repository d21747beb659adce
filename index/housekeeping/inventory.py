"""What the finders look at: a collection's products with what their words and pictures look like.

One pass over the catalogue, without keeping it: each listing is encoded by its words alone and by its picture alone,
and of its picture a hash and the spread of its colours are kept. Vectors are in files that are mapped into memory;
the rest takes some 500 bytes a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from index.build import has_splits
from index.exact import Rows, Vectors
from index.store import Store
from item.catalog.listing import Listing
from item.catalog.reader import iterate_rows
from item.catalog.splits import assign_splits
from item.engine import Engine
from item.errors import ListingError, SpaceError
from item.evaluation.twins import HASH_SIDE, difference_hash
from item.preprocessing.pictures import load_picture, to_square
from item.preprocessing.prepared import Modality, Prepared
from item.progress import Progress

AT_ONCE = 128  # listings read together
NUM_NEIGHBOURS = 16  # of each product: more than a vote needs, since those of its own group are taken out
SPREAD_SIDE = 64  # pixels of the picture's side when its spread is measured
HASH_BYTES = HASH_SIDE**2 // 8

Category = tuple[str, ...]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """N products in the order of their keys, row by row.

    titles, categories, groups: as the collection has them; (), None where there is none.
    near, near_scores: (N, K) rows and cosines of the nearest others by words and picture, the best first; -1 for none.
    words, picture: (N, D) float32 of unit norm by one of them alone, zero where the listing has none.
    hashes: (N, 32) difference hash of the picture, packed. spread: (N,) standard deviation of its colours (`spread`),
    NaN where there is no picture.
    trained: (N,) whether the listing is in the split train, from which the model has learned.
    unreadable: row -> why the catalogue's listing could not be read again. num_absent: products that the catalogue does
    not have.
    """

    product_ids: list[str]
    titles: list[str]
    categories: list[Category]
    groups: list[str | None]
    near: Rows
    near_scores: Vectors
    words: Vectors
    picture: Vectors
    hashes: Bytes
    spread: npt.NDArray[np.float32]
    trained: npt.NDArray[np.bool_]
    unreadable: dict[int, str]
    num_absent: int

    def __len__(self) -> int:
        return len(self.product_ids)

    @property
    def has_picture(self) -> npt.NDArray[np.bool_]:
        """(N,) whether there is a picture that could be read."""
        return ~np.isnan(self.spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is kept of a listing that was read: the encoder's input, its picture's hash and spread."""

    prepared: Prepared
    hash: Bytes
    spread: float


def take_inventory(store: Store, catalog: Sequence[Path], engine: Engine, work: Path) -> Inventory:
    """The inventory of a collection whose pictures are in a catalogue's files; vectors are put into the folder `work`.

    Raises:
        SpaceError: the engine's vectors are not those of the collection.
        CatalogError, StoreError: one of both cannot be read.
    """
    if engine.space != store.about.space:
        raise SpaceError(
            f"the model is of space {engine.space[:12]}, the collection of {store.about.space[:12]} (model"
            f" {store.about.model}); give the model and the variant that it was built with"
        )
    keys, product_ids, titles, categories, groups = [], [], [], [], []
    known: dict[Category, Category] = {}
    for block_keys, products, _ in store.blocks():
        keys.append(block_keys)
        product_ids += [product.product_id for product in products]
        titles += [product.title for product in products]
        categories += [known.setdefault(product.category, product.category) for product in products]
        groups += [product.group_id for product in products]
    near, near_scores = neighbours(store, np.concatenate([np.empty(0, np.int64), *keys]))
    seen = _Seen(work, len(product_ids), engine)
    seen.read(catalog, {product_id: row for row, product_id in enumerate(product_ids)})
    return Inventory(
        product_ids=product_ids,
        titles=titles,
        categories=categories,
        groups=groups,
        near=near,
        near_scores=near_scores,
        words=seen.vectors["words"],
        picture=seen.vectors["picture"],
        hashes=seen.hashes,
        spread=seen.spread,
        trained=seen.trained,
        unreadable=seen.unreadable,
        num_absent=len(product_ids) - seen.num_found,
    )


def neighbours(store: Store, keys: npt.NDArray[np.int64]) -> tuple[Rows, Vectors]:
    """(N, K) rows and cosines of the nearest others of the products with these ascending keys, by the store's index.

    A product that was written meanwhile has another key: it is passed over.
    """
    near = np.full((len(keys), NUM_NEIGHBOURS), -1, np.int64)
    scores = np.full(near.shape, -np.inf, np.float32)
    with closing(Progress("neighbours", len(keys), "products")) as progress:
        for block_keys, products, vectors in store.blocks():
            own = [{product.product_id} for product in products]
            found = store.search(vectors, NUM_NEIGHBOURS, leave_out=own)
            for key, one in zip(block_keys.tolist(), found, strict=True):
                row, rows = _rows(keys, [key]), _rows(keys, one.keys)
                there = np.flatnonzero(rows >= 0)
                if row[0] >= 0:
                    near[row[0], : len(there)] = rows[there]
                    scores[row[0], : len(there)] = np.array(one.scores, np.float32)[there]
            progress.update(len(products))
    return near, scores


def _rows(keys: npt.NDArray[np.int64], wanted: Sequence[int]) -> Rows:
    """The rows of keys among ascending ones, -1 for those that are not there."""
    rows = np.searchsorted(keys, np.array(wanted, np.int64))
    there = keys[np.minimum(rows, len(keys) - 1)] == wanted
    return np.where(there, rows, -1)


class _Seen:
    """What is kept of listings, by row."""

    def __init__(self, work: Path, count: int, engine: Engine) -> None:
        self.engine = engine
        self.vectors: dict[Modality, Vectors] = {
            name: np.lib.format.open_memmap(
                work / f"{name}.npy", mode="w+", dtype=np.float32, shape=(count, engine.vector_width)
            )
            for name in ("words", "picture")
        }
        self.hashes = np.zeros((count, HASH_BYTES), np.uint8)
        self.spread = np.full(count, np.nan, np.float32)
        self.trained = np.zeros(count, bool)
        self.unreadable: dict[int, str] = {}
        self.num_found = 0

    def read(self, catalog: Sequence[Path], row_of: dict[str, int]) -> None:
        """Reads the listings that have a row."""
        named = has_splits(catalog, urls=False)
        listings = (
            (row_of[listing.product_id], listing)
            for _, listing in iterate_rows(catalog)
            if isinstance(listing, Listing) and listing.product_id in row_of
        )
        with (
            ThreadPoolExecutor() as readers,
            closing(Progress("looking at", len(row_of), "listings")) as progress,
        ):
            for chunk in _chunks(listings):
                for row, listing in chunk:
                    self.trained[row] = (listing if named else assign_splits([listing])[0]).split == "train"
                looks = readers.map(lambda one: look(one[1], self.engine), chunk)
                self.keep([row for row, _ in chunk], list(looks))
                progress.update(len(chunk))

    def keep(self, rows: Sequence[int], looks: Sequence[Look | ListingError]) -> None:
        """Encodes what was read and keeps it."""
        self.num_found += len(rows)
        read = {row: one for row, one in zip(rows, looks, strict=True) if isinstance(one, Look)}
        self.unreadable |= {row: str(one) for row, one in zip(rows, looks, strict=True) if not isinstance(one, Look)}
        for row, one in read.items():
            self.hashes[row], self.spread[row] = one.hash, one.spread
        for modality, vectors in self.vectors.items():
            parts = {row: part for row, one in read.items() if (part := one.prepared.only(modality)) is not None}
            if parts:
                vectors[list(parts)] = self.engine.encode_prepared(list(parts.values()))


def look(listing: Listing, engine: Engine) -> Look | ListingError:
    """Reads a listing; its picture is decoded once."""
    preprocessor = engine.preprocessor
    try:
        words = preprocessor.words(listing)
        if not listing.images:
            return Look(prepared=Prepared(word_ids=words), hash=np.zeros(HASH_BYTES, np.uint8), spread=np.nan)
        image = load_picture(listing.images[0], preprocessor.config)
    except ListingError as error:
        return error
    return Look(
        prepared=Prepared(word_ids=words, pixels=to_square(image, preprocessor.config)),
        hash=np.packbits(difference_hash(image)),
        spread=spread(image),
    )


def spread(image: Image.Image) -> float:
    """The standard deviation of a picture's colour levels, 0 to 128, in the channel where it is largest."""
    small = np.asarray(image.resize((SPREAD_SIDE, SPREAD_SIDE), Image.Resampling.BOX), np.float32)
    return float(small.std(axis=(0, 1)).max())


def _chunks(listings: Iterator[tuple[int, Listing]]) -> Iterator[list[tuple[int, Listing]]]:
    while chunk := list(islice(listings, AT_ONCE)):
        yield chunk
