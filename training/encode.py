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
            for modality, made in engine.encode_modalities(ready, modalities).items():
                blocks[modality].append(_tie_words(ready, made, known_words) if modality == "words" else made)
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


def _tie_words(prepared: Sequence[Prepared], vectors: Vectors, known: dict[bytes, Vectors]) -> Vectors:
    """(N, D) by words alone, each that of the first listing with the same words, so that they tie exactly."""
    keys = [b"".join(part.tobytes() for part in (one.word_ids, one.spelling) if part is not None) for one in prepared]
    firsts = [known.setdefault(key, vector) for key, vector in zip(keys, vectors, strict=True)]
    return np.array(firsts, np.float32).reshape(vectors.shape)
