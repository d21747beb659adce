"""Baselines to beat, from the same starting weights: words, picture, late fusion, whitened late fusion, two towers.

    late fusion       [sqrt(1 - w) words ; sqrt(w) picture]: the cosine is the weighted mean of both cosines
    whitened fusion   the same after PCA-whitening each modality on train, shrunk
    two towers        late fusion, and beside it two small MLPs on the frozen vectors, trained on train with InfoNCE

What is fitted is fitted on train; the picture's weight w is chosen on val, for each task by itself.
A listing that lacks a modality has zeros in that part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from item.evaluation.exam import Contestant, Exam
from item.evaluation.retrieval import unit
from item.progress import Progress
from training.frozen import Frozen

Vectors = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
Change = Callable[[Frozen], Frozen]

PICTURE_WEIGHTS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
DEFAULT_PICTURE_WEIGHT = 0.5  # without val
WHITENED_WIDTH = 192  # components kept of each modality
WHITENING_SHRINKAGE = 0.05  # of the largest deviation, added to each
TOWER_WIDTH, TOWER_HIDDEN = 256, 512
TOWERS_SHARE = 1 / 3  # of the cosine, beside late fusion
NUM_STEPS = 600  # of the towers, some 20 seconds on two cores
MAX_BATCH = 512
MAX_SCALE = 50.0  # of the cosines in InfoNCE, the inverse of the temperature


@dataclass(frozen=True, kw_only=True)
class Course:
    """What the baselines are made from: an exam, another one to choose on, and frozen vectors for both.

    val_exam: of the split val and the same catalogue; without queries where there is no such split.
    catalog: N rows; queries, val_queries: of the queries of either exam.
    """

    exam: Exam
    val_exam: Exam
    catalog: Frozen
    queries: Frozen
    val_queries: Frozen

    def through(self, change: Change) -> Course:
        """The same course with all its vectors changed."""
        catalog, queries, val_queries = map(change, (self.catalog, self.queries, self.val_queries))
        return replace(self, catalog=catalog, queries=queries, val_queries=val_queries)

    @cached_property
    def train(self) -> Frozen:
        """The rows to fit on: of the split train, or all where there is no such split."""
        rows = np.flatnonzero([listing.split == "train" for listing in self.exam.catalog])
        return self.catalog[rows] if len(rows) else self.catalog


def make_baselines(course: Course) -> Iterator[Contestant]:
    """The baselines of one catalogue; without the two towers where fewer than two listings have both parts."""
    plain = course.through(fit_centring(course.train))
    yield Contestant(name="words", inputs="words", catalog=plain.catalog.words, queries=plain.queries.words)
    yield Contestant(name="picture", inputs="picture", catalog=plain.catalog.picture, queries=plain.queries.picture)
    yield fusion("late fusion", plain)
    yield fusion("whitened late fusion", plain.through(fit_whitening(plain.train)))
    if np.count_nonzero(complete(plain.train)) >= 2:
        yield two_towers(plain)


def fusion(name: str, course: Course) -> Contestant:
    """Late fusion with the picture's weight that is best on val: by recall@1 and by the neighbours' accuracy."""
    find, sort = choose_weights(course)
    return Contestant(
        name=name,
        inputs="both",
        catalog=fuse(course.catalog, find),
        queries=fuse(course.queries, find),
        for_leaf=fuse(course.catalog, sort),
        note=weights_note(find, sort),
    )


def two_towers(course: Course) -> Contestant:
    """Late fusion with its chosen weights, and beside it the towers' words and picture."""
    find, sort = choose_weights(course)
    towers = fit_towers(course.train, NUM_STEPS)
    halves = course.through(towers)

    def beside(late: Vectors, half: Frozen) -> Vectors:
        return concatenate(late, fuse(half, DEFAULT_PICTURE_WEIGHT), TOWERS_SHARE)

    return Contestant(
        name="two towers",
        inputs="both",
        catalog=beside(fuse(course.catalog, find), halves.catalog),
        queries=beside(fuse(course.queries, find), halves.queries),
        for_leaf=beside(fuse(course.catalog, sort), halves.catalog),
        halves=(halves.catalog.words, halves.catalog.picture),
        note=weights_note(find, sort),
    )


def weights_note(find: float, sort: float) -> str:
    """What the reader is told of the chosen weights."""
    return f"picture's weight {find:g} for the same product, {sort:g} for the leaf category"


def choose_weights(course: Course) -> tuple[float, float]:
    """The picture's weights that are best on val for the same product and for the leaf category."""

    def find(weight: float) -> Values:
        base, queries = fuse(course.catalog, weight), fuse(course.val_queries, weight)
        return course.val_exam.same_product(base, queries).values["recall@1"]

    def sort(weight: float) -> Values:
        return course.val_exam.leaf_by_neighbours(fuse(course.catalog, weight)).values["accuracy"]

    return best_weight(find), best_weight(sort)


def best_weight(score: Callable[[float], Values]) -> float:
    """The weight with the highest mean score, the smallest of several; the default where val has no queries."""
    scores = {weight: score(weight) for weight in PICTURE_WEIGHTS}
    if not len(scores[PICTURE_WEIGHTS[0]]):
        return DEFAULT_PICTURE_WEIGHT
    return max(scores, key=lambda weight: float(scores[weight].mean()))


def fuse(frozen: Frozen, picture_weight: float) -> Vectors:
    """(N, Dw) words and (N, Dp) picture, unit or zero -> (N, Dw + Dp), unit or zero."""
    return concatenate(frozen.words, frozen.picture, picture_weight)


def concatenate(first: Vectors, second: Vectors, second_weight: float) -> Vectors:
    """Rows side by side, so that the cosine is the weighted mean of both cosines where both are there."""
    return unit(np.concatenate([(1 - second_weight) ** 0.5 * first, second_weight**0.5 * second], axis=1))


def present(x: Vectors) -> npt.NDArray[np.bool_]:
    """(N,): which rows are not zero."""
    return np.asarray(x.any(axis=1))


def complete(frozen: Frozen) -> npt.NDArray[np.bool_]:
    """(N,): which listings have both parts."""
    return present(frozen.words) & present(frozen.picture)


def fit_centring(train: Frozen) -> Change:
    """Words to unit norm; pictures less the mean of train, then to unit norm."""
    pictures = train.picture[present(train.picture)]
    mean = pictures.mean(axis=0) if len(pictures) else 0

    def change(frozen: Frozen) -> Frozen:
        centred = (frozen.picture - mean) * present(frozen.picture)[:, None]
        return Frozen(words=unit(frozen.words), picture=unit(centred))

    return change


def fit_whitening(train: Frozen) -> Change:
    """PCA-whitening of either part, fitted on the rows of train that have it."""
    words, picture = whitener(train.words), whitener(train.picture)
    return lambda frozen: Frozen(words=words(frozen.words), picture=picture(frozen.picture))


def whitener(train: Vectors) -> Callable[[Vectors], Vectors]:
    """(N, D) -> (N, K), unit norm: centred principal components over their deviation, which is shrunk upwards.

    K is at most half of the rows it is fitted on: later components of so few rows are noise.
    """
    rows = train[present(train)]
    if len(rows) < 2:
        return unit
    mean = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    deviation = singular / len(rows) ** 0.5
    kept = min(WHITENED_WIDTH, len(rows) // 2)
    scaled = directions[:kept].T / (deviation[:kept] + WHITENING_SHRINKAGE * deviation[0])
    return lambda x: unit(((x - mean) * present(x)[:, None]) @ scaled)


def fit_towers(train: Frozen, num_steps: int, seed: int = 0) -> Change:
    """Two MLPs into one space of `TOWER_WIDTH`: a listing's words near its own picture (symmetric InfoNCE).

    train: unit or zero rows; those with both parts are learned from. The same seed gives the same towers.
    """
    rows = complete(train)
    words, picture = torch.from_numpy(train.words[rows]), torch.from_numpy(train.picture[rows])
    progress = Progress("two towers", num_steps, "steps")
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = nn.ModuleList(_tower(part.shape[1]) for part in (words, picture))
        log_scale = nn.Parameter(torch.tensor(3.0))
        optimiser = torch.optim.AdamW([*towers.parameters(), log_scale], lr=1e-3, weight_decay=0.05)
        for _ in range(num_steps):
            taken = torch.randint(len(words), (min(MAX_BATCH, len(words)),))
            w, p = (
                F.normalize(tower(part[taken]), dim=1) for tower, part in zip(towers, (words, picture), strict=True)
            )
            logits = log_scale.exp().clamp(max=MAX_SCALE) * w @ p.T
            own = torch.arange(len(taken))
            loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            progress.update()
    progress.close()
    towers.eval()

    @torch.inference_mode()
    def through(tower: nn.Module, part: Vectors) -> Vectors:
        mapped: Vectors = tower(torch.from_numpy(part)).numpy()
        return unit(mapped * present(part)[:, None])

    return lambda frozen: Frozen(words=through(towers[0], frozen.words), picture=through(towers[1], frozen.picture))


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in the same order on any number of cores, so that a seed gives the same towers everywhere."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _tower(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.2), nn.Linear(width, TOWER_HIDDEN), nn.GELU(), nn.Linear(TOWER_HIDDEN, TOWER_WIDTH)
    )
