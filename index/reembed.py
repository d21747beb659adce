"""Encodes a collection anew, beside the generation that is searched, and lets the new generation count.

The new generation has the keys of the one that it follows, its source. So making it level is one operation, whether it
holds nothing yet, was interrupted, is behind by the writes of the last seconds, or was left by a switch and is to be
gone back to: delete the keys that are gone, update the products that were updated, encode the keys that are missing.
Each block of encoded products is one transaction, together with how far it has come (index.changes.Level).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from index.about import About
from index.changes import Followed, Keys, Level
from index.creation import flush_folders
from index.exact import Vectors, is_unit
from index.generations import announce, new_generation, read_generations
from index.manifest import MANIFEST, read_manifest
from index.overlap import Overlap, measure_overlap
from index.pictures import Pictures
from index.product import Product
from index.segment_files import write_segments
from index.store import Store
from index.truth import Truth, read_level
from index.truth_rows import AT_ONCE
from item.catalog.listing import Listing
from item.engine.interface import Engine
from item.errors import ItemError, ListingError, StoreError

BLOCK = 32  # products that are encoded together, and lost together to a kill


class RefusedError(ItemError):
    """Products that cannot be encoded keep a generation from being level; `refused` says by id why."""

    def __init__(self, refused: Mapping[str, str]) -> None:
        super().__init__(refused)
        self.refused = dict(refused)

    def __str__(self) -> str:
        product_id, reason = next(iter(self.refused.items()))
        return f"{len(self.refused):,} products cannot be encoded; the first is {product_id!r}: {reason}"


@dataclass(slots=True, kw_only=True)
class Reencoder:
    """Encodes stored products by another engine.

    words_alone: whether a product whose picture cannot be had is encoded without it. num_words_alone counts them;
    refused says by id why a product could not be encoded.
    """

    engine: Engine
    pictures: Pictures
    words_alone: bool = False
    num_words_alone: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def encode(self, products: Mapping[int, Product]) -> list[tuple[int, Product, Vectors]]:
        """Products by key, with their vectors, (D,), by ascending key; those that are refused are left out."""
        pending = sorted(products.items())
        encoded: list[tuple[int, Product, Vectors]] = []
        while pending:
            asked, listings, kept, again = [], [], [], []
            for key, product in pending:
                try:
                    asked.append((key, product, self.listing(product)))
                except ListingError as error:
                    again.append((key, product, error))
            fetched = self.pictures.fetched(listing for _, _, listing in asked)
            for (key, product, _), listing in zip(asked, fetched, strict=True):
                if isinstance(listing, ListingError):
                    again.append((key, product, listing))
                else:
                    listings.append(listing)
                    kept.append((key, product))
            if kept:
                result = self.engine.encode(listings)
                lengths = np.linalg.norm(result.vectors, axis=1)
                for place, ((key, product), usable) in enumerate(zip(kept, is_unit(lengths), strict=True)):
                    if usable:
                        encoded.append((key, product, result.vectors[place]))
                    else:
                        odd = ListingError("row", f"its vector has length {lengths[place]}, not 1")
                        again.append((key, product, result.refused.get(place, odd)))
            pending = [(key, bare) for key, product, error in again if (bare := self.without_picture(product, error))]
        return sorted(encoded, key=lambda one: one[0])

    def listing(self, product: Product) -> Listing:
        """What the vector of a product is made of. Raises ListingError."""
        images = (self.pictures.of(product),) if product.has_picture else ()
        return Listing(title=product.title, description=product.description, images=images)

    def without_picture(self, product: Product, error: ListingError) -> Product | None:
        """A refused product as one without a picture, if that is allowed and helps; None: it stays refused."""
        has_words = product.title.strip() or product.description.strip()
        if self.words_alone and product.has_picture and has_words:
            self.num_words_alone += 1
            return replace(product, has_picture=False)
        self.refused[product.product_id] = str(error)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a generation lacks of its source at `revision`, when the source's keys went up to `last_key`: keys that are
    gone, that may have been updated, and that are missing."""

    gone: Keys
    updated: Keys
    missing: Keys
    revision: int
    last_key: int


class Follower:
    """Makes a generation level with its source.

    Args:
        source: what is searched, and goes on being written to.
        name: the source's generation.
        target: of the generation that follows; its `Level` is of this source.
        write: what takes changes for the target.
    """

    def __init__(
        self, source: Truth, name: str, target: Truth, write: Callable[[Followed], object], reencoder: Reencoder
    ) -> None:
        self.source, self.name, self.target, self.write, self.reencoder = source, name, target, write, reencoder
        self.num_encoded = 0

    def difference(self) -> Difference:
        """What is to be done at present. Whoever was level before looks at what came since alone."""
        level = self.level()
        with self.source.frozen() as now:
            since = level.complete and now.pruned() <= level.revision
            if since:
                gone, missing = now.deleted_since(level.revision), now.keys(level.last_key)
                gone = gone[gone <= level.last_key]
            else:
                with self.target.frozen() as here:
                    keys, known = now.keys(), here.keys()
                gone, missing = np.setdiff1d(known, keys), np.setdiff1d(keys, known)
            updated = np.setdiff1d(now.written_since(level.revision), missing)
            return Difference(
                gone=gone, updated=updated, missing=missing, revision=now.revision, last_key=now.last_key()
            )

    def level(self) -> Level:
        """How far the target has followed the source."""
        level = self.target.level()
        assert level is not None
        assert level.source == self.name
        return level

    def blocks(self, block: int = BLOCK) -> Iterator[int]:
        """Once through what is to be done; yields after each block how many products it has encoded.

        What is written meanwhile is for the next time.
        """
        todo = self.difference()
        self.reencoder.refused.clear()
        if todo.revision == self.level().revision and self.level().complete:
            return
        level = Level(source=self.name, revision=todo.revision, last_key=todo.last_key, complete=False)
        before = replace(self.level(), complete=False)  # until all updates are there
        for gone in chunks(todo.gone, AT_ONCE):
            self.write(Followed(gone=gone.tolist(), level=before))
        for keys in chunks(todo.updated, AT_ONCE):
            self.write(Followed(updated=self.updates(keys), level=before))
        for keys in chunks(todo.missing, block):
            added = self.reencoder.encode(self.source.products(keys.tolist()))
            if added:
                self.write(Followed(added=added, level=level))
                self.num_encoded += len(added)
            yield len(added)
        self.write(Followed(last_key=todo.last_key, level=replace(level, complete=not self.reencoder.refused)))

    def updates(self, keys: Keys) -> list[tuple[int, Product]]:
        """Updated products; whether a vector is made of a picture stays as it is here."""
        here, there = self.target.products(keys.tolist()), self.source.products(keys.tolist())
        return [(key, replace(there[key], has_picture=here[key].has_picture)) for key in sorted(there) if key in here]

    def run(self) -> None:
        """Until no more than a block came meanwhile. Raises RefusedError."""
        while sum(self.blocks()) > BLOCK:
            pass
        if self.reencoder.refused:
            raise RefusedError(self.reencoder.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far encoding anew has come. `refused`, `overlap` and `done` are those of the end."""

    generation: str
    num_encoded: int
    num_products: int
    num_words_alone: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    overlap: Overlap | None = None
    done: bool = False


def reembed(
    store: Store, about: About, reencoder: Reencoder, stop: threading.Event, max_rate: float | None = None
) -> Generator[Progress]:
    """Encodes all products of a store into the generation that is coming; goes on with the one of the same model.

    Args:
        store: is searched and written to meanwhile.
        about: of the generation to be made.
        stop: set by who wants it to end after the block that it is at.
        max_rate: products a second; None: as fast as it goes.

    Raises:
        StoreError: it cannot be written, for instance for a full disk; what was encoded is kept.
    """
    name = coming_generation(store, about)
    folder = store.folder / name
    pace = Pace(max_rate, stop)
    with closing(Truth(folder, writable=True)) as target:

        def write(followed: Followed) -> None:
            drop_outdated_segments(folder, followed)
            target.follow(followed)

        follower = Follower(store.truth, store.generation, target, write, reencoder)

        num_before = target.count()

        def progress() -> Progress:
            return Progress(
                generation=name,
                num_encoded=num_before + follower.num_encoded,
                num_products=len(store),
                num_words_alone=reencoder.num_words_alone,
            )

        yield progress()
        num_new = BLOCK + 1
        while num_new > BLOCK:
            num_new = 0
            for count in follower.blocks(pace.block):
                yield progress()
                pace.wait(count)
                if stop.is_set():
                    return
                num_new += count
        if reencoder.refused:
            yield replace(progress(), refused=dict(reencoder.refused))
            return
        write_missing_segments(store, folder, target)
        end = replace(progress(), num_encoded=target.count())  # those that were replaced meanwhile count once
        yield replace(end, overlap=measure_overlap(store.truth, target), done=True)


def coming_generation(store: Store, about: About) -> str:
    """The generation that is coming from the same model, or a new one in place of another model's."""
    coming = read_generations(store.folder).coming
    if coming and is_of(store, coming, about.space):
        return coming
    if coming:
        announce(store.folder, "")
        shutil.rmtree(store.folder / coming, ignore_errors=True)
    name = new_generation(store.folder)
    with closing(Truth.create(store.folder / name, about)) as truth:
        revision = store.truth.revision()
        truth.set_level(Level(source=store.generation, revision=revision, last_key=0, complete=False))
    flush_folders(store.folder / name)
    announce(store.folder, name)
    return name


def is_of(store: Store, generation: str, space: str) -> bool:
    """Whether a generation follows the store in this space; a damaged one does not."""
    try:
        with closing(Truth(store.folder / generation, writable=True)) as truth:
            level = truth.level()
            return truth.about.space == space and level is not None and level.source == store.generation
    except StoreError:
        return False


class ChangeOver:
    """Lets another generation of a store count, once it is level with what was written meanwhile.

    Args:
        store: what counts.
        name: the generation that will.
        reencoder: None leaves behind what was written.
    """

    def __init__(self, store: Store, name: str, reencoder: Reencoder | None) -> None:
        self.store, self.name, self.reencoder = store, name, reencoder
        self.num_encoded = 0
        self._other: Store | None = None
        self._held = ExitStack()

    def prepare(self) -> None:
        """All of the work but what is written in the last moment. Raises StoreError, RefusedError."""
        folder = self.store.folder / self.name
        with closing(Truth(folder, writable=True)) as target:

            def write(followed: Followed) -> None:
                drop_outdated_segments(folder, followed)
                target.follow(followed)

            self._follow(target, write)
            write_missing_segments(self.store, folder, target)
        self._other = self.store.beside(self.name)
        self._held.enter_context(self.store.resting())  # a merge may take minutes, in which writes must not wait
        self._follow(self._other.truth, self._other.follow)

    def finish(self) -> Store:
        """Lets the generation count, and returns its store; the one before stays open to read, for the caller to close.

        Raises as `prepare` does; then nothing has changed.
        """
        other, source = self._other, self.store.truth
        assert other is not None
        with self.store.giving_way(other):
            self._follow(other.truth, other.follow)
            with source.frozen() as now, other.truth.frozen() as there:
                revision, last_key = there.revision, max(now.last_key(), there.last_key())
            if self.reencoder is None:
                other.follow(Followed(last_key=last_key, level=None))  # no key names two products
                source.set_level(None)
            else:
                source.set_level(Level(source=self.name, revision=revision, last_key=last_key, complete=True))
        self._other = None
        return other

    def close(self) -> None:
        """Gives up what was prepared and not finished."""
        self._held.close()
        if self._other is not None:
            self._other.close()

    def _follow(self, target: Truth, write: Callable[[Followed], object]) -> None:
        if self.reencoder is not None:
            follower = Follower(self.store.truth, self.store.generation, target, write, self.reencoder)
            try:
                follower.run()
            finally:
                self.num_encoded += follower.num_encoded


class Pace:
    """Keeps to a number of products a second, counted from the start."""

    def __init__(self, max_rate: float | None, stop: threading.Event) -> None:
        self.max_rate, self.stop = max_rate, stop
        self.block = BLOCK if max_rate is None else max(1, min(BLOCK, int(max_rate)))
        self._due = time.monotonic()

    def wait(self, count: int) -> None:
        """Waits until the next products are due after `count` more, or for `stop`."""
        if self.max_rate is not None:
            self._due = max(self._due, time.monotonic() - self.block / self.max_rate) + count / self.max_rate
            self.stop.wait(max(0.0, self._due - time.monotonic()))


def drop_outdated_segments(folder: Path, followed: Followed) -> None:
    """Keys that come after those of a segment above them are in none: then all segments have to be made again."""
    if followed.added and followed.added[0][0] <= read_manifest(folder).last_key:
        (folder / MANIFEST).unlink()


def write_missing_segments(store: Store, folder: Path, truth: Truth) -> None:
    """Makes the segments of a generation that has none."""
    if not (folder / MANIFEST).exists() and truth.count():
        write_segments(folder, truth, (), store.choice)


def is_finished(folder: Path) -> bool:
    """Whether a generation has been level with its source once, whatever was written or refused since."""
    level = read_level(folder)
    return level is not None and (level.complete or (folder / MANIFEST).exists())


def chunks(keys: Keys, size: int) -> Iterator[Keys]:
    """Consecutive parts of at most `size` keys."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
