"""What a variant loses, in its vectors and in what they find, and how fast it is, beside full precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from item.engine.interface import Engine, Vectors
from item.export.calibration import shown_by
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from item.progress import Progress

MIN_OVERLAP = 0.97  # of the ten nearest: from here on the results are those of full precision
MIN_LISTINGS = 1000  # on fewer the overlap is too uncertain
NEAREST = 10
TIE = 1e-6  # cosines that differ by no more are equal: rounding in float32
CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Loss:
    """By one modality, on `listings` listings, each as a query against all others.

    cosine_mean, cosine_min: of the variant's vector and the full-precision one.
    overlap_at_10: share of the ten nearest in full precision that the variant's query finds among full-precision
        vectors, as in an index that was built before. overlap_at_10_own: in an index of the variant's own vectors.
    speed: full precision's seconds over the variant's, on the same chunks in turn, here; the median. None: not timed.
    """

    listings: int
    cosine_mean: float
    cosine_min: float
    overlap_at_10: float
    overlap_at_10_own: float
    speed: float | None


def measure_loss(variant: Engine, full: Engine, prepared: Sequence[Prepared]) -> dict[Modality, Loss]:
    """The loss by each modality that more than ten listings have."""
    losses: dict[Modality, Loss] = {}
    progress = Progress("measuring the loss", len(MODALITIES) * len(prepared), "listings")
    for modality in MODALITIES:
        shown = shown_by(prepared, modality)
        of_variant, of_full, speeds = [], [], []
        for start in range(0, len(shown), CHUNK):
            chunk = shown[start : start + CHUNK]
            started = time.perf_counter()
            of_variant.append(variant.encode_prepared(chunk))
            between = time.perf_counter()
            of_full.append(full.encode_prepared(chunk))
            speeds.append((time.perf_counter() - between) / (between - started))
            progress.update(len(chunk))
        progress.update(len(prepared) - len(shown))
        if len(shown) > NEAREST:
            losses[modality] = compare(np.concatenate(of_variant), np.concatenate(of_full), statistics.median(speeds))
    progress.close()
    return losses


def compare(variant: Vectors, full: Vectors, speed: float | None = None) -> Loss:
    """(N, D) of a variant and of full precision, row by row the same listings -> the loss."""
    cosines = (variant * full).sum(1)
    similarities = without_own(full @ full.T)
    return Loss(
        listings=len(full),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        overlap_at_10=overlap(without_own(variant @ full.T), similarities),
        overlap_at_10_own=overlap(without_own(variant @ variant.T), similarities),
        speed=speed,
    )


def without_own(similarities: Vectors) -> Vectors:
    """(N, N), a listing's to itself -inf."""
    np.fill_diagonal(similarities, -np.inf)
    return similarities


def overlap(found: Vectors, expected: Vectors) -> float:
    """The mean share of the ten largest of each row of `expected` (N, M) that are among the ten largest of `found`.

    Of those that are as large as the tenth any will do: which of several equal listings comes first says nothing.
    """
    rows = np.argpartition(-found, NEAREST - 1, axis=1)[:, :NEAREST]
    tenth = -np.partition(-expected, NEAREST - 1, axis=1)[:, NEAREST - 1 : NEAREST]
    above, values = expected > tenth + TIE, np.take_along_axis(expected, rows, axis=1)
    found_above = np.take_along_axis(above, rows, axis=1)
    found_equal = ~found_above & (values >= tenth - TIE)
    return float((found_above.sum(1) + np.minimum(found_equal.sum(1), NEAREST - above.sum(1))).mean() / NEAREST)


def keeps_space(losses: dict[Modality, Loss]) -> bool:
    """Whether the variant's vectors may be compared with full-precision ones: by every modality, on enough listings."""
    return bool(losses) and all(
        loss.overlap_at_10 >= MIN_OVERLAP and loss.listings >= MIN_LISTINGS for loss in losses.values()
    )
