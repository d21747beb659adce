"""A listing made ready for the encoder: the same for training, indexing and serving."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from item.errors import ConfigError

Modality = Literal["words", "picture", "both"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """word_ids: (n + 1,) int32, the words w_1..w_n and the closing [SEP]; None: no words.
    spelling: (SPELLING_WIDTH,) float32, how the words are spelled; None: not known, which says nothing.
    pixels: (3, S, S) uint8, RGB, padded to a square; None: no picture. Words or pixels are there."""

    word_ids: npt.NDArray[np.int32] | None = None
    spelling: npt.NDArray[np.float32] | None = None
    pixels: npt.NDArray[np.uint8] | None = None

    def only(self, modality: Modality) -> Prepared | None:
        """The same listing with one modality left, or None where it does not have it."""
        if modality == "both":
            return self
        if modality not in MODALITIES:
            raise ConfigError(f"modality: {modality!r} is none of {', '.join(MODALITIES)}")
        kept = replace(self, pixels=None) if modality == "words" else replace(self, word_ids=None, spelling=None)
        return kept if kept.word_ids is not None or kept.pixels is not None else None
