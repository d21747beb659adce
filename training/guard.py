"""Whether an aligned head is better than its starting point, and in which settings, on listings it never learned from.

Queries are views of held-out listings: drawn as those of the training, but of products that the head has not seen.
Measured by words, by picture and by both: the same product (reciprocal rank of the first right row among all listings;
where the catalogue has groups, also of another listing of the product), and the leaf category by five neighbours;
across modalities: the own picture to the words and back. Where few listings are held out, several folds of the
catalogue are held out in turn, and what was fitted without each fold is asked about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from item.evaluation.bootstrap import Interval, paired_interval
from item.evaluation.classification import neighbour_leaves
from item.evaluation.retrieval import same_product
from item.model.vector import VectorHead
from item.preprocessing.prepared import MODALITIES, Modality
from training.alignment import Fit, HeadSettings
from training.pooled import Pooled, embed

Vectors = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

QUERY_VIEWS = 2  # of each held-out listing
IMPORTANCE = {"by words": 0.2, "by picture": 0.2, "by both": 0.4, "across": 0.2}
CHOICES: Mapping[str, Sequence[float | None]] = {
    "picture": (0.1, 0.3, 1.0, 3.0, None),
    "words": (0.1, 0.3, 1.0, 3.0, None),
    "names": (0.0, 40.0),
    "spelling": (0.0, 0.25, 0.5),
    "shared_alone": (0.15, 0.3, 0.45),
    "category_alone": (0.0, 0.1, 0.2, 0.3),
    "picture_weight": (0.4, 0.5),
    "shared_weight": (0.1, 0.2, 0.3),
    "category_weight": (0.0, 0.1, 0.2, 0.3, 0.4),
}  # views are kinder than the offers of others: by views alone words and categories would weigh too much
CHANGED: Mapping[str, Sequence[Modality]] = {  # by a setting: whose vectors; where both parts alone are, also across
    "picture": ("picture", "both"),
    "words": ("words", "both"),
    "names": MODALITIES,
    "spelling": ("words", "both"),
    "shared_alone": ("words", "picture"),
    "category_alone": ("words", "picture"),
    "picture_weight": ("both",),
    "shared_weight": ("both",),
    "category_weight": ("both",),
}
SAME_WORDS = 1e-4  # of a cosine: the same words, encoded in another batch
ROUNDS = 2  # through the choices, at most


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The exam: M listings, of which the first `num_known` were learned from and the others are asked about.

    products: the product of each. categories: the path of each, empty where it has none.
    """

    pooled: Pooled
    num_known: int
    products: Sequence[str]
    categories: Sequence[tuple[str, ...]]

    def sit(self, head: VectorHead, modalities: Sequence[Modality] = MODALITIES) -> dict[str, Values]:
        """Values of the single queries, for each task as "task by modality" or, where words and picture are asked for,
        "task across".

        The M - num_known values of a task are in the order of the listings, nan where one is not asked.
        """
        values: dict[str, Values] = {}
        bases = {modality: embed(head, self.pooled, modality, 0) for modality in modalities}
        for modality, base in bases.items():
            asked = [row for row in range(self.num_known, len(base)) if base[row].any()]
            if asked:
                answers = {**self.same_product(head, modality, base, asked), **self.leaf(base, asked)}
                values |= {f"{task} by {modality}": self.spread(found, asked) for task, found in answers.items()}
        pairs = np.flatnonzero(self.pooled.has_words & self.pooled.has_picture)
        asked = [int(row) for row in pairs if row >= self.num_known]
        if len(asked) > 1 and {"words", "picture"} <= bases.keys():
            words, picture = bases["words"][asked], bases["picture"][asked]
            products = [self.products[row] for row in asked]
            for task, queries, base in (("words to picture", words, picture), ("picture to words", picture, words)):
                found = same_product(queries, base, query_products=products, base_products=products)
                values[f"{task} across"] = self.spread(found.reciprocal_rank, asked)
        return values

    @cached_property
    def held_out(self) -> Pooled:
        """The M - num_known listings that are asked about."""
        return self.pooled[np.arange(self.num_known, len(self.pooled))]

    @cached_property
    def words_answer(self) -> npt.NDArray[np.bool_]:
        """(M,): whether another listing of the product has the very same words, so that finding it shows nothing."""
        words = F.normalize(self.pooled.words[:, 0].flatten(1), dim=1)
        number = torch.from_numpy(np.unique(self.products, return_inverse=True)[1])
        answer = np.zeros(len(words), dtype=np.bool_)
        for row in np.flatnonzero(self.pooled.has_words):
            others = torch.nonzero(number == number[row]).flatten()
            alike = words[others] @ words[row] > 1 - SAME_WORDS
            answer[row] = int(alike.sum()) > 1
        return answer

    def spread(self, found: Values, asked: Sequence[int]) -> Values:
        """One value for each held-out listing, nan where it is none of those asked."""
        values = np.full(len(self.pooled) - self.num_known, np.nan)
        values[np.array(asked) - self.num_known] = found
        return values

    def same_product(
        self, head: VectorHead, modality: Modality, base: Vectors, asked: Sequence[int]
    ) -> dict[str, Values]:
        """Views against all listings, and listings against the others of their product."""
        own = [str(row) for row in range(len(base))]
        found = []
        for view in range(1, 1 + min(QUERY_VIEWS, self.pooled.words.shape[1] - 1)):
            queries = embed(head, self.held_out, modality, view)[np.array(asked) - self.num_known]
            measured = same_product(
                queries, base, query_products=[own[row] for row in asked], base_products=own
            ).reciprocal_rank
            found.append(measured)
        values = {"same listing": np.mean(found, axis=0)}
        grouped = same_product(
            base[asked],
            base,
            query_products=[self.products[row] for row in asked],
            base_products=self.products,
            own_rows=asked,
        ).reciprocal_rank
        if modality != "picture":
            grouped = np.where(self.words_answer[asked], np.nan, grouped)
        if not np.isnan(grouped).all():
            values["same product"] = grouped
        return values

    def leaf(self, base: Vectors, asked: Sequence[int]) -> dict[str, Values]:
        """Whether the vote of the nearest known listings names the leaf; nothing where there are no categories."""
        known = [row for row in range(self.num_known) if self.categories[row] and base[row].any()]
        named = [row for row in asked if self.categories[row]]
        if not known or not named:
            return {}
        predicted = neighbour_leaves(base[named], base[known], [self.categories[row] for row in known])
        right = [answer == self.categories[row] for answer, row in zip(predicted, named, strict=True)]
        values = np.full(len(asked), np.nan)
        values[np.isin(asked, named)] = right
        return {"leaf category": values}


def score(values: Mapping[str, Values]) -> float:
    """One number to choose by: the mean over the tasks of each modality, weighted by `IMPORTANCE`."""
    total = weight = 0.0
    for ending, importance in IMPORTANCE.items():
        means = [np.nanmean(found) for name, found in values.items() if name.endswith(f" {ending}")]
        if means:
            total += importance * float(np.mean(means))
            weight += importance
    return total / weight if weight else 0.0


def sit_all(
    heads: Sequence[VectorHead], exams: Sequence[HeldOut], modalities: Sequence[Modality] = MODALITIES
) -> dict[str, Values]:
    """The values of all exams, each sat by the head that did not see its listings, one exam after the other."""
    sat = [exam.sit(head, modalities) for head, exam in zip(heads, exams, strict=True)]
    lengths = [len(exam.pooled) - exam.num_known for exam in exams]
    return {
        name: np.concatenate([one.get(name, np.full(length, np.nan)) for one, length in zip(sat, lengths, strict=True)])
        for name in dict.fromkeys(name for one in sat for name in one)
    }


def choose_settings(fits: Sequence[Fit], exams: Sequence[HeldOut]) -> tuple[HeadSettings, dict[str, Values]]:
    """The settings with the best score on held-out listings, one setting after the other; and the values there."""

    def sit(settings: HeadSettings, modalities: Sequence[Modality]) -> dict[str, Values]:
        return sit_all([fit.head(settings) for fit in fits], exams, modalities)

    best = HeadSettings()
    known = {best: sit(best, MODALITIES)}
    for _ in range(ROUNDS):
        begun = best
        for name, choices in CHOICES.items():
            for choice in choices:
                candidate = replace(best, **{name: choice})  # type: ignore[arg-type]
                if candidate not in known:
                    known[candidate] = {**known[best], **sit(candidate, CHANGED[name])}
                if score(known[candidate]) > score(known[best]):
                    best = candidate
        if best == begun:
            break
    return best, known[best]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the guard found. differences: aligned less starting point, for each task and modality.

    better: whether the aligned head is kept; why: a sentence for people.
    """

    better: bool
    why: str
    score_before: float
    score_after: float
    differences: Mapping[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """For the run's own JSON."""
        return asdict(self)


def judge(before: Mapping[str, Values], after: Mapping[str, Values], products: Sequence[str]) -> Verdict:
    """Keeps the aligned head where the score rises and no single task falls beyond its 95% interval."""
    nothing = {name: np.where(np.isnan(values), np.nan, 0.0) for name, values in after.items()}
    before = {**nothing, **before}  # a starting point without vectors for a task finds nothing
    differences = {}
    for name, values in after.items():
        asked = np.flatnonzero(~(np.isnan(values) | np.isnan(before[name]))).tolist()
        groups = [products[row] for row in asked]
        differences[name] = paired_interval(values[asked], before[name][asked], groups)
    was, now = score(before), score(after)
    worse = [name for name, interval in differences.items() if interval.high < 0]
    figures = f"score {was:.3f} -> {now:.3f} on held-out listings"
    if not after:
        why = "nothing to measure it on: no held-out listing"
    elif worse:
        why = f"worse beyond chance at {', '.join(worse)}; {figures}"
    elif now <= was:
        why = f"no better than its starting point: {figures}"
    else:
        why = f"better than its starting point: {figures}"
    return Verdict(
        better=bool(after) and not worse and now > was,
        why=why,
        score_before=was,
        score_after=now,
        differences=differences,
    )
