"""How well a model with heads and adapters names categories: before (the model alone) and after (with its adapters).

Measured through the engine and `item.adapters.predict`, which is what a server runs: by words, by picture and by both.
Calibration error: the mean gap between confidence and accuracy over `BINS` bins of equal numbers, less what sampling
alone gives a calibrated predictor (debiased after arXiv 1909.10155: a bin's squared gap less p (1 - p) / (n - 1)).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from item.adapters.head import Category
from item.adapters.predict import Prediction
from item.catalog.listing import Listing
from item.engine.categories import predict_prepared
from item.engine.interface import Engine
from item.errors import CatalogError, ListingError, ModelError
from item.evaluation.bootstrap import Interval, mean_interval, paired_interval
from item.evaluation.classification import macro_f1
from item.preprocessing.prepared import MODALITIES, Prepared

BINS = 15
SHOWN = 24  # leaves of the confusion picture: those with the most listings
TEMPLATE = "adapt_page.html.j2"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system by one modality on N listings."""

    system: str
    modality: str
    accuracy: Interval
    gain: Interval | None  # over the model alone, paired
    macro_f1: float
    top_accuracy: float
    calibration_error: float
    abstained: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All rows, and the confusions of the adapted model by both: (K, K) counts, rows are what was right."""

    rows: list[Row]
    leaves: list[str]
    confusions: list[list[int]]
    reliability: list[tuple[float, float, int]]
    by_category: list[tuple[str, int, float, float]]

    def text(self) -> str:
        """A table."""
        lines = [f"{'':<10}{'by':<9}{'accuracy':>24}{'gain':>26}{'macro-F1':>10}{'calibration':>13}{'abstained':>11}"]
        for row in self.rows:
            gain = "" if row.gain is None else shown(row.gain)
            lines.append(
                f"{row.system:<10}{row.modality:<9}{shown(row.accuracy):>24}{gain:>26}{row.macro_f1:>10.3f}"
                f"{row.calibration_error:>13.3f}{row.abstained:>11.1%}"
            )
        return "\n".join(lines)


def shown(interval: Interval) -> str:
    """A value and its interval."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def measure(engine: Engine, listings: Sequence[Listing]) -> Figures:
    """Predicts the categories of listings that have one, without the adapters and with them."""
    heads = engine.heads
    if heads is None:
        raise ModelError(f"{engine.adapters.model}: has no heads; run training.adapt")
    adapters = engine.adapters.specialists()
    rows, picture = list[Row](), dict[str, Any]()
    kept, prepared = list[Listing](), list[Prepared]()
    for listing in listings:
        try:
            prepared.append(engine.preprocessor(listing))
            kept.append(listing)
        except ListingError:
            continue
    for modality in MODALITIES:
        there = [(row, one) for row, whole in enumerate(prepared) if (one := whole.only(modality)) is not None]
        if not there:
            continue
        seen = [one for _, one in there]
        expected = [kept[row].category for row, _ in there]
        groups = [kept[row].group_id or kept[row].product_id for row, _ in there]
        before = predict_prepared(engine, heads, seen, {}, top_k=1)
        rows.append(row_of("alone", modality, expected, before, groups, None))
        after = predict_prepared(engine, heads, seen, adapters, top_k=1) if adapters else before
        if adapters:
            rows.append(row_of("adapters", modality, expected, after, groups, before))
        picture = pictured(expected, after, before)  # of the last, by both where there is such a listing
    if not rows:
        raise CatalogError("split: none of its listings has a category and can be read; nothing to measure")
    return Figures(rows=rows, **picture)


def row_of(
    system: str,
    modality: str,
    expected: Sequence[Category],
    predicted: Sequence[Prediction],
    groups: Sequence[str],
    before: Sequence[Prediction] | None,
) -> Row:
    """One row of the table."""
    right = correct(expected, predicted)
    confidence = np.array([one.paths[0][1][-1] if one.paths else 0.0 for one in predicted])
    answers = [one.paths[0][0] if one.paths else None for one in predicted]
    tops = [answer is not None and answer[:1] == path[:1] for answer, path in zip(answers, expected, strict=True)]
    return Row(
        system=system,
        modality=modality,
        accuracy=mean_interval(right, groups),
        gain=None if before is None else paired_interval(right, correct(expected, before), groups),
        macro_f1=float(macro_f1(expected, answers)(np.ones((1, len(expected))))[0]),
        top_accuracy=float(np.mean(tops)),
        calibration_error=calibration_error(confidence, right),
        abstained=float(np.mean([one.abstained for one in predicted])),
        count=len(expected),
    )


def correct(expected: Sequence[Category], predicted: Sequence[Prediction]) -> npt.NDArray[np.float64]:
    """(N,): 1 where the best path is the right one."""
    pairs = zip(expected, predicted, strict=True)
    return np.array([bool(one.paths) and one.paths[0][0] == path for path, one in pairs], dtype=np.float64)


def calibration_error(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """The debiased root of the mean squared gap, over bins of equal numbers; 0 where sampling explains all of it."""
    total = 0.0
    for rows in np.array_split(np.argsort(confidence, kind="stable"), min(BINS, len(right))):
        n, p = len(rows), float(right[rows].mean())
        sampling = p * (1 - p) / (n - 1) if n > 1 else 0.0
        total += n / len(right) * (float(confidence[rows].mean() - p) ** 2 - sampling)
    return float(max(0.0, total) ** 0.5)


def pictured(expected: Sequence[Category], after: Sequence[Prediction], before: Sequence[Prediction]) -> dict[str, Any]:
    """What the page draws: confusions of the most frequent leaves, reliability, and each top level."""
    leaves = [path for path, _ in Counter(expected).most_common(SHOWN)]
    place = {path: number for number, path in enumerate(leaves)}
    confusions = np.zeros((len(leaves), len(leaves)), dtype=int)
    for path, one in zip(expected, after, strict=True):
        if one.paths and path in place and one.paths[0][0] in place:
            confusions[place[path], place[one.paths[0][0]]] += 1
    confidence = np.array([one.paths[0][1][-1] if one.paths else 0.0 for one in after])
    right, first = correct(expected, after), correct(expected, before)
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(BINS, len(right)))
    tops = np.array([path[0] for path in expected])
    return {
        "leaves": ["/".join(path) for path in leaves],
        "confusions": confusions.tolist(),
        "reliability": [(float(confidence[b].mean()), float(right[b].mean()), len(b)) for b in bins if len(b)],
        "by_category": [
            (str(top), int((tops == top).sum()), float(first[tops == top].mean()), float(right[tops == top].mean()))
            for top in sorted(set(tops.tolist()))
        ],
    }


def write_report(folder: Path, figures: Figures, about: Mapping[str, str], verdicts: Sequence[str]) -> None:
    """Writes adaptation.json and adaptation.html."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"about": dict(about), "verdicts": list(verdicts), **asdict(figures)}
    (folder / "adaptation.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(figures=figures, about=about, verdicts=verdicts, shown=shown)
    (folder / "adaptation.html").write_text(page, encoding="utf-8")
