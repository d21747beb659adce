"""Listings made ready, as tensors: what the encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from item.preprocessing.prepared import Prepared
from item.preprocessing.spelling import stack_spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B listings, P of them with a picture. A missing modality is absent, never zeros.

    word_ids: (B, n) int64, the words and the closing [SEP], padded; n = 0 where no listing has words.
    word_mask: (B, n) bool, False at padding.
    spelling: (B, SPELLING_WIDTH) float32, zeros where it is not known; None: of no listing.
    picture_rows: (P,) int64, the row of each picture, ascending.
    pixels: (P, 3, S, S) uint8; or, computed before by the frozen stem,
    features: (P, ...) floating, the stem's output as the stem lays it out.
    """

    word_ids: Tensor
    word_mask: Tensor
    picture_rows: Tensor
    spelling: Tensor | None = None
    pixels: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.word_ids)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {k: v if v is None else v.to(device, non_blocking=True) for k, v in values.items()}
        return Batch(**values)


def pad_words(word_ids: Sequence[np.ndarray | None], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of B listings (None: no words) -> word_ids (B, n) int64 and word_mask (B, n) bool."""
    lengths = np.array([0 if ids is None else len(ids) for ids in word_ids])
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, dtype=np.int64)
    if mask.any():
        padded[mask] = np.concatenate([ids for ids in word_ids if ids is not None])
    return torch.from_numpy(padded), torch.from_numpy(mask)


def collate(prepared: Sequence[Prepared]) -> Batch:
    """Listings made ready -> one batch with their pixels."""
    word_ids, word_mask = pad_words([one.word_ids for one in prepared])
    pictures = [(row, one.pixels) for row, one in enumerate(prepared) if one.pixels is not None]
    return Batch(
        word_ids=word_ids,
        word_mask=word_mask,
        picture_rows=torch.tensor([row for row, _ in pictures], dtype=torch.int64),
        spelling=torch.from_numpy(stack_spelling([one.spelling for one in prepared])),
        pixels=torch.from_numpy(np.stack([pixels for _, pixels in pictures])) if pictures else None,
    )
