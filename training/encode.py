"""Listings as a model sees them: by their words, by their picture, by both."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing
from item.catalog.reader import Refused
from item.engine import Engine
from item.errors import ListingError
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from item.progress import Progress

Vectors = npt.NDArray[np.float32]

_CHUNK = 128  # listings made ready at once


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The N listings that a model can read; `refused` are the others.

    vectors: for each modality asked for (N, D) float32 of unit norm, zero where a listing does not have it.
    """

    listings: list[Listing]
    vectors: dict[Modality, Vectors]
    refused: list[Refused]


def encode_modalities(
    engine: Engine, listings: Sequence[Listing], name: str, modalities: Sequence[Modality] = MODALITIES
) -> Seen:
    """Vectors of listings by each modality; `name` is shown with the progress."""
    kept: list[Listing] = []
    refused: list[Refused] = []
    empty = np.zeros((0, engine.vector_width), np.float32)
    blocks: dict[Modality, list[Vectors]] = {modality: [empty] for modality in modalities}
    known_words: dict[bytes, Vectors] = {}
    progress = Progress(f"encoding {name}", len(listings), "listings")
    with ThreadPoolExecutor() as readers:
        for start in range(0, len(listings), _CHUNK):
            chunk, ready = listings[start : start + _CHUNK], []
            outcomes = readers.map(lambda listing: prepare(engine, listing), chunk)
            for listing, outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, ListingError):
                    name_and_reason = {"field": outcome.field, "reason": outcome.reason}
                    refused.append(Refused(line=0, product_id=listing.product_id, **name_and_reason))
                else:
                    kept.append(listing)
                    ready.append(outcome)
            for modality in modalities:
                if modality == "words":
                    blocks[modality].append(_encode_words(engine, ready, known_words))
                else:
                    blocks[modality].append(_encode(engine, [one.only(modality) for one in ready]))
            progress.update(len(chunk))
    progress.close()
    vectors = {modality: np.concatenate(parts) for modality, parts in blocks.items()}
    return Seen(listings=kept, vectors=vectors, refused=refused)


def prepare(engine: Engine, listing: Listing) -> Prepared | ListingError:
    """A listing made ready for the engine, or why it is refused."""
    try:
        return engine.preprocessor(listing)
    except ListingError as error:
        return error


def _encode(engine: Engine, prepared: Sequence[Prepared | None]) -> Vectors:
    """(N, D), zero where there is nothing to encode."""
    vectors = np.zeros((len(prepared), engine.vector_width), np.float32)
    there = {row: one for row, one in enumerate(prepared) if one is not None}
    if there:
        vectors[list(there)] = engine.encode_prepared(list(there.values()))
    return vectors


def _encode_words(engine: Engine, prepared: Sequence[Prepared], known: dict[bytes, Vectors]) -> Vectors:
    """As `_encode`, by words alone. Equal words are encoded once, so that listings that share them tie exactly."""
    keys = [b"" if one.word_ids is None else one.word_ids.tobytes() for one in prepared]
    new = {key: one.only("words") for key, one in zip(keys, prepared, strict=True) if key not in known}
    known.update(zip(new, _encode(engine, list(new.values())), strict=True))
    return np.array([known[key] for key in keys], np.float32).reshape(len(keys), engine.vector_width)
