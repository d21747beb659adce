"""What every engine offers: `encode(listings, adapter) -> vectors`, the same whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from item.adapters.bank import Bank, Named, Rotations
from item.adapters.head import Heads
from item.catalog.listing import Listing
from item.errors import ListingError
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
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
    """One loaded model variant. `space` names the space of its vectors; D = `vector_width`, F = `features_width`."""

    name: str  # how it runs, for GetInfo: "torch cpu float32"
    variant: str  # of the model folder; "": none of its variants but the model itself
    space: str
    model_space: str  # of the model that it is a variant of, which its adapters were made for
    vector_width: int
    features_width: int
    preprocessor: Preprocessor
    adapters: Bank

    @property
    def heads(self) -> Heads | None:
        """The categories' heads of the model folder; None: it has none. Read when they are first asked for.

        Raises:
            ModelError: they cannot be used (item.adapters.head).
        """
        ...

    def encode(self, listings: Sequence[Listing], adapter: Named | Sequence[Named] = None) -> Encoded:
        """Vectors of listings. A listing that cannot be read is refused alone.

        Args:
            adapter: one for all listings, or one for each, by name or as `Bank.get` gave it; None: the model alone.

        Raises:
            ModelError: an adapter may not be named or cannot be read (item.adapters.bank).
        """
        ...

    def prepare_all(self, listings: Sequence[Listing]) -> list[Prepared | ListingError]:
        """Each listing made ready, in threads, or why it is refused."""
        ...

    def encode_prepared(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        """(N, D) float32 of unit norm from listings already made ready (batch jobs prepare in other processes), each
        with its adapter. Raises ModelError as `encode`."""
        ...

    def encode_modalities(
        self, prepared: Sequence[Prepared], modalities: Sequence[Modality] = MODALITIES
    ) -> dict[Modality, Vectors]:
        """By each modality (N, D), as `encode_prepared` of what it leaves of the listings (to rounding), zeros where it
        leaves nothing. What they share is computed once."""
        ...

    def features_of(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        """(N, F) float32, what the vector head (item.model.vector) and heads of categories read: words before picture,
        each of unit norm; zeros where a listing does not have it. As `encode_prepared`."""
        ...

    def adapt_features(self, prepared: Sequence[Prepared], features: Vectors, adapters: Sequence[Named]) -> Vectors:
        """(N, F) float32, as `features_of`, given the features that the model alone makes of the same listings. What no
        adapter changes, such as most models' features of pictures, is taken from these and not made again."""
        ...


class Outputs(NamedTuple):
    """Of one run: (N, D) vectors of unit norm, (N, F) features, float32."""

    vectors: Vectors
    features: Vectors


class Runner(Protocol):
    """What runs a model, whatever the engine around it does about reading, order and size of batches.

    packed: whether listings of unlike length may share a run without their padding being paid for.
    token_budget: the most tokens of one run.
    words_width: of the features, those of words; they depend on the picture where `text_reads_cells`.
    modalities_are_apart: whether `run_modalities` may be called.
    """

    name: str
    vector_width: int
    features_width: int
    words_width: int
    text_reads_cells: bool
    modalities_are_apart: bool
    num_cells: int
    packed: bool
    token_budget: int

    def run(self, prepared: Sequence[Prepared], rotations: Rotations | None = None) -> Outputs:
        """Of at least one listing, each with its row of the rotations; None: the model alone. Not called by two threads
        at once."""
        ...

    def run_modalities(self, prepared: Sequence[Prepared]) -> dict[Modality, Vectors]:
        """Vectors of listings by each modality from one run, for models where neither part enters the other; those of
        what a listing does not have say nothing. Not called by two threads at once."""
        ...
