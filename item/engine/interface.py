"""What every engine offers: `encode(listings) -> vectors`, the same vectors whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing
from item.errors import ListingError
from item.preprocessing.prepared import Prepared
from item.preprocessing.preprocessor import Preprocessor

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Vectors of N listings in their order: (N, D) float32 of unit norm; the row of a refused listing is NaN."""

    vectors: Vectors
    refused: dict[int, ListingError]  # position -> why
    prepare_s: float  # seconds spent waiting for listings to be read, tokenised, decoded
    encode_s: float  # seconds spent in the encoder, while further listings were being prepared


class Engine(Protocol):
    """One loaded model variant. `space` names the space of its vectors; D = `vector_width`."""

    name: str  # how it runs, for GetInfo: "torch cpu float32"
    variant: str  # of the model folder; "": none of its variants but the model itself
    space: str
    vector_width: int
    preprocessor: Preprocessor

    def encode(self, listings: Sequence[Listing], adapter: str | None = None) -> Encoded:
        """Vectors of listings. A listing that cannot be read is refused alone; an unknown adapter raises ModelError."""
        ...

    def encode_prepared(self, prepared: Sequence[Prepared]) -> Vectors:
        """(N, D) float32 of unit norm from listings already made ready (batch jobs prepare in other processes)."""
        ...


class Runner(Protocol):
    """What runs a model, whatever the engine around it does about reading, order and size of batches.

    packed: whether listings of unlike length may share a run without their padding being paid for.
    token_budget: the most tokens of one run.
    """

    name: str
    vector_width: int
    num_cells: int
    packed: bool
    token_budget: int

    def run(self, prepared: Sequence[Prepared]) -> Vectors:
        """(N, D) float32 of unit norm, of at least one listing. Not called by two threads at once."""
        ...
