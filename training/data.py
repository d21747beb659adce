"""The batches of pre-training. A batch is a pure function of (seed, step, worker): nothing else decides it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from item.catalog.listing import Listing
from item.model.batch import Batch, pad_words
from item.model.objectives import MaskedBatch, blank_cells
from item.preprocessing.preprocessor import Preprocessor
from training.config import MaskingOptions
from training.features import FeatureCache, draw_patch_mask, read_pictures
from training.order import permutation, rows_of_step

WordIds = npt.NDArray[np.int32]


class PretrainingData:
    """The listings of one split, made ready to be drawn.

    Args:
        listings: N listings that the preprocessor accepts (`training.pretrain` leaves the others out).
        word_ids: their words, None where there are none.
        num_cells: m, cells of a picture.
        features: a frozen stem's features of the same N listings; None: pictures are decoded when they are drawn.
    """

    def __init__(
        self,
        listings: Sequence[Listing],
        word_ids: Sequence[WordIds | None],
        preprocessor: Preprocessor,
        num_cells: int,
        masking: MaskingOptions,
        seed: int,
        features: FeatureCache | None = None,
    ) -> None:
        self.listings, self.word_ids, self.features = listings, word_ids, features
        self.preprocessor, self.num_cells, self.masking, self.seed = preprocessor, num_cells, masking, seed
        self.kind = "pixels" if features is None else "features"  # what Batch gets of a picture
        self.with_picture_in: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, listing in enumerate(listings):
            if listing.images and listing.category:
                self.with_picture_in[listing.category].append(row)

    def __len__(self) -> int:
        return len(self.listings)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "readers"}

    @cached_property
    def readers(self) -> ThreadPoolExecutor:
        """Decodes pictures beside the training step: Pillow releases the lock."""
        return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pictures")

    def batch(self, step: int, batch_size: int, rank: int = 0, num_workers: int = 1) -> MaskedBatch:
        """What worker `rank` trains on in `step`; `batch_size` counts the listings of all workers together."""
        rng = np.random.default_rng([self.seed, step, rank])
        rows = rows_of_step(len(self), self.seed, step, batch_size, rank, num_workers)
        picture_of, matched = self.draw_pairs(rows, rng)
        masked_ids, masked_words, targets = self.mask_words(rows, rng)
        word_ids, word_mask = pad_words(masked_ids)
        asked = pad_words(masked_words)[0].bool()
        owners = [(i, row) for i, row in enumerate(picture_of) if row is not None]
        seen, masked_patches, whole = self.mask_pictures([row for _, row in owners], rng)
        return MaskedBatch(
            batch=Batch(
                word_ids=word_ids,
                word_mask=word_mask,
                picture_rows=torch.tensor([i for i, _ in owners], dtype=torch.int64),
                **{self.kind: seen},
            ),
            masked_words=asked,
            word_targets=pad_words(targets)[0],
            hidden_words=asked & (word_ids == self.preprocessor.mask_id),
            masked_patches=masked_patches,
            patch_targets=whole,
            matched=torch.tensor(matched),
        )

    def whole_batches(self, num_rows: int, size: int = 64) -> Iterator[Batch]:
        """A sample of up to `num_rows` listings as they are, nothing masked."""
        chosen = permutation(len(self), self.seed, 0)[:num_rows]
        for rows in np.array_split(chosen, max(1, -(-len(chosen) // size))):
            word_ids, word_mask = pad_words([self.word_ids[row] for row in rows])
            owners = [(i, int(row)) for i, row in enumerate(rows) if self.listings[row].images]
            yield Batch(
                word_ids=word_ids,
                word_mask=word_mask,
                picture_rows=torch.tensor([i for i, _ in owners], dtype=torch.int64),
                **{self.kind: self.whole_pictures([row for _, row in owners])},
            )

    def draw_pairs(self, rows: Sequence[int], rng: np.random.Generator) -> tuple[list[int | None], list[bool]]:
        """For each listing the row whose picture it gets (None: no picture), and whether that is its own."""
        picture_of: list[int | None] = [row if self.listings[row].images else None for row in rows]
        matched = [True] * len(rows)
        exchanged = rng.random(len(rows)) < self.masking.mismatched
        for i, row in enumerate(rows):
            if not exchanged[i] or picture_of[i] is None or self.word_ids[row] is None:
                continue
            partner = self.draw_other(row, rows, rng)
            if partner is not None:
                picture_of[i], matched[i] = partner, False
        return picture_of, matched

    def draw_other(self, row: int, rows: Sequence[int], rng: np.random.Generator) -> int | None:
        """A hard negative: another product's picture of the same category, else of the same batch, else None."""
        for candidates in (self.with_picture_in.get(self.listings[row].category, []), rows):
            for _ in range(8):  # a few draws instead of a list of all others
                if candidates and self.differs(row, other := candidates[int(rng.integers(len(candidates)))]):
                    return other
        return None

    def differs(self, row: int, other: int) -> bool:
        """Whether `other` is another product, and has a picture."""
        a, b = self.listings[row], self.listings[other]
        same_group = a.group_id is not None and a.group_id == b.group_id
        return row != other and not same_group and bool(b.images)

    def mask_words(
        self, rows: Sequence[int], rng: np.random.Generator
    ) -> tuple[list[WordIds | None], list[WordIds | None], list[WordIds | None]]:
        """What the encoder sees of each listing's words, which of them are asked, and what stood there."""
        seen: list[WordIds | None] = []
        asked: list[WordIds | None] = []
        targets = [self.word_ids[row] for row in rows]
        for ids in targets:
            masked_ids, masked = (None, None) if ids is None else self.mask_ids(ids, rng)
            seen.append(masked_ids)
            asked.append(masked)
        return seen, asked, targets

    def mask_ids(self, ids: WordIds, rng: np.random.Generator) -> tuple[WordIds, WordIds]:
        """BERT's rule: a share of the words is asked; 80% of them become [MASK], 10% another word, 10% stay.

        The fates are spread evenly, so that listings of one length have the same number of [MASK], but for one: rows
        that keep equally many tokens need no padding where masked ones stay out of the encoder.
        """
        tokens = self.preprocessor
        candidates = np.flatnonzero(ids != tokens.sep_id)
        count = max(1, round(self.masking.words * len(candidates)))
        asked = rng.permutation(candidates)[:count]
        seen, masked = ids.copy(), np.zeros_like(ids)
        masked[asked] = 1
        fate = (np.arange(len(asked)) + rng.random(len(asked))) / len(asked)
        seen[asked[fate < 0.8]] = tokens.mask_id
        other = asked[fate >= 0.9]
        seen[other] = rng.integers(tokens.vocab_size, size=len(other), dtype=np.int32)
        return seen, masked

    def mask_pictures(self, rows: list[int], rng: np.random.Generator) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Of the pictures of `rows`: what the encoder sees, (P, m) which cells are asked, and the whole pictures."""
        rate, m = self.masking.patches, self.num_cells
        masked = torch.from_numpy(np.array([draw_patch_mask(rng, m, rate) for _ in rows]).reshape(len(rows), m))
        whole = self.whole_pictures(rows)
        if whole is None:
            return None, masked, None
        if self.features is None:
            return blank_cells(whole, masked), masked, whole
        if not self.features.num_views:
            return whole, masked, whole
        seen = torch.empty_like(whole)
        view_of = rng.integers(self.features.num_views, size=len(rows))
        for view in np.unique(view_of):
            here = np.flatnonzero(view_of == view)
            taken = [rows[i] for i in here]
            seen[here] = self.features.read(f"view{view}", taken)
            masked[here] = self.features.read(f"mask{view}", taken)
        return seen, masked, whole

    def whole_pictures(self, rows: list[int]) -> Tensor | None:
        """Pixels (P, 3, S, S) uint8, or the frozen stem's features, of rows that have a picture; None for no rows."""
        if not rows:
            return None
        if self.features is not None:
            return self.features.read("whole", rows)
        return read_pictures(self.preprocessor, [self.listings[row] for row in rows], self.readers)
