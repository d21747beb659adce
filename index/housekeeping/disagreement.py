"""Picture and title that disagree: the listing's words and its picture are further apart than is usual for either.

The cosine of the vectors by words alone and by picture alone depends on how general both are, so it is compared with
what both have with other listings (CSLS, Conneau et al. 2018): s = (r_w + r_p) / 2 - cos(w, p), where r_w is the mean
cosine of the words with the 10 pictures of other products that suit them best, and r_p of the picture with the words of
others. s is high where other listings suit better than the own one does. It is scored as a robust z, (s - median) /
(1.4826 MAD), and listed above 3.5 (Iglewicz and Hoaglin 1993). LEMoN (Zhang et al. 2025) adds neighbours within one
modality; that was better on one of our catalogues and worse on another.

A model agrees with what it has learned from: among listings of the split train s is lower by several deviations than
among others. So median and MAD are taken of either by itself.

Compared with up to 20,000 listings, drawn at random. The model has to know words and pictures together: before
alignment their cosine says nothing, and nothing is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.exact import Rows, Vectors
from index.housekeeping.finding import Finding, Kind
from index.housekeeping.inventory import Inventory
from item.progress import Progress

NUM_OTHERS = 10
MAX_SAMPLE = 20_000
MIN_COMPARED = 30  # listings with words and picture, trained or not; of fewer nobody can say what is usual
THRESHOLD = 3.5
AT_ONCE = 512  # rows compared with the sample together
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Of R listings that have words and picture: rows, (R,) robust z of s, and the share of others' titles that suit
    the picture better than the own one; best: the row whose title suits it best."""

    rows: Rows
    z: Floats
    better: Floats
    best: Rows


def find_disagreements(inventory: Inventory) -> Iterator[Finding]:
    """Listings whose z is above THRESHOLD."""
    compared = compare(inventory)
    for place in np.flatnonzero(compared.z > THRESHOLD).tolist():
        yield Finding(
            kind=Kind.DISAGREEMENT,
            product_ids=(inventory.product_ids[compared.rows[place]],),
            score=float(compared.z[place]),
            why=f"{compared.better[place]:.0%} of other products' words suit the picture better than its own; the one"
            f" that suits it best is beside it (z {compared.z[place]:.1f})",
            beside=(inventory.product_ids[compared.best[place]],),
        )


def compare(inventory: Inventory, seed: int = 0) -> Comparison:
    """Words and picture of every listing that has both, compared with those of a sample."""
    rows = np.flatnonzero(inventory.words.any(axis=1) & inventory.picture.any(axis=1))
    nothing = np.zeros(len(rows))
    if len(rows) < MIN_COMPARED:
        return Comparison(rows=rows, z=nothing, better=nothing, best=rows)
    sample = np.random.default_rng(seed).permutation(rows)[:MAX_SAMPLE]
    words, picture = inventory.words[sample], inventory.picture[sample]
    codes = _product_codes(inventory)
    s, better, best = np.empty(len(rows)), np.empty(len(rows)), np.empty(len(rows), np.int64)
    with closing(Progress("comparing words and pictures", len(rows), "listings")) as progress:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            place = slice(start, start + len(some))
            own = codes[some][:, None] == codes[sample]
            w, p = inventory.words[some], inventory.picture[some]
            cosine = np.einsum("rd,rd->r", w, p)
            to_words = _others(p, words, own)
            s[place] = (_mean_of_best(_others(w, picture, own)) + _mean_of_best(to_words)) / 2 - cosine
            better[place] = (to_words > cosine[:, None]).sum(axis=1) / np.maximum(1, (~own).sum(axis=1))
            best[place] = sample[to_words.argmax(axis=1)]
            progress.update(len(some))
    z, trained = np.zeros(len(rows)), inventory.trained[rows]
    for of_kind in (trained, ~trained):
        if of_kind.sum() >= MIN_COMPARED:
            z[of_kind] = robust_z(s[of_kind])
    return Comparison(rows=rows, z=z, better=better, best=best)


def robust_z(values: Floats) -> Floats:
    """(n,) how many standard deviations values are above the median, the deviation estimated by the median one; zero
    where more than half of them are equal."""
    away = values - np.median(values)
    deviation = 1.4826 * np.median(np.abs(away))
    return away / deviation if deviation > 1e-9 else np.zeros_like(away)


def _product_codes(inventory: Inventory) -> npt.NDArray[np.int64]:
    """(N,) equal for rows of one group; a row without one is a product by itself."""
    codes: dict[object, int] = {}
    names = (group or product for group, product in zip(inventory.groups, inventory.product_ids, strict=True))
    return np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)


def _others(queries: Vectors, vectors: Vectors, own: npt.NDArray[np.bool_]) -> Vectors:
    """(R, S) cosines, -inf with those of the same product."""
    cosines = queries @ vectors.T
    cosines[own] = -np.inf
    return cosines


def _mean_of_best(cosines: Vectors) -> Vectors:
    """(R,) mean of the NUM_OTHERS highest of each row."""
    best = -np.partition(-cosines, NUM_OTHERS - 1, axis=1)[:, :NUM_OTHERS]
    return np.mean(best, axis=1, where=best > -np.inf)
