"""Leaf categories: by the vote of five neighbours from train, by a linear probe; accuracy and macro-F1.

All vectors are (N, D) float32 of unit norm, all categories full paths that are not empty: leave out the rows without
category first. Needs the extra `programs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from item.evaluation.bootstrap import Statistic
from item.neighbours import Path, leaf

Vectors = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

NUM_NEIGHBOURS = 5
PROBE_STEPS = 1000  # of L-BFGS at most; it stops where the loss stops falling
PROBE_STRENGTHS = (1.0, 10.0, 100.0)  # C, the inverse of the penalty on the probe's weights
DEFAULT_STRENGTH = 10.0
_BLOCK_CELLS = 2**23  # similarities held at once


def neighbour_leaves(queries: Vectors, train: Vectors, train_categories: Sequence[Path]) -> list[Path | None]:
    """The leaf that the five nearest rows of train vote for; None where none of them is similar at all.

    Equal similarities: the earlier row of train is the nearer.
    """
    leaves: list[Path | None] = []
    step = max(1, _BLOCK_CELLS // max(1, len(train)))
    for start in range(0, len(queries), step):
        similarities = queries[start : start + step] @ train.T
        for row in similarities:
            nearest = _largest(row, NUM_NEIGHBOURS)
            leaves.append(leaf([train_categories[i] for i in nearest], row[nearest].tolist()))
    return leaves


def _largest(row: Vectors, k: int) -> npt.NDArray[np.intp]:
    """Positions of the k largest values, equal ones by position, without sorting the whole row."""
    if len(row) <= k:
        return np.argsort(-row, kind="stable")
    candidates = np.flatnonzero(row >= np.partition(row, -k)[-k])
    return candidates[np.argsort(-row[candidates], kind="stable")[:k]]


def probe_leaves(
    queries: Vectors,
    train: Vectors,
    train_categories: Sequence[Path],
    val: Vectors | None = None,
    val_categories: Sequence[Path] = (),
) -> list[Path]:
    """The leaf that a logistic regression on the vectors of train gives each query.

    The vectors are centred and brought to one scale, all dimensions alike, so that C means the same for every encoder,
    be its vectors spread out or close together. C is the one of `PROBE_STRENGTHS` that is most accurate on val; without
    val `DEFAULT_STRENGTH`.
    """
    leaves = sorted(set(train_categories))
    if len(leaves) == 1:
        return leaves * len(queries)
    codes = {path: code for code, path in enumerate(leaves)}
    target = np.array([codes[path] for path in train_categories])
    mean = train.mean(axis=0)
    scale = max(float(np.linalg.norm(train - mean) / len(train) ** 0.5), 1e-12)
    queries, train, val = ((x - mean) / scale for x in (queries, train, train[:0] if val is None else val))
    expected = np.array([codes.get(path, -1) for path in val_categories])
    if not len(val):
        probe = _fit(train, target, DEFAULT_STRENGTH)
    else:
        probes = [_fit(train, target, strength) for strength in PROBE_STRENGTHS]
        probe = max(probes, key=lambda probe: float((probe.predict(val) == expected).mean()))
    return [leaves[code] for code in probe.predict(queries)]


def macro_f1(expected: Sequence[Path], predicted: Sequence[Path | None]) -> Statistic:
    """The mean F1 over the leaves that are expected at all, as a statistic of weighted queries.

    (R, Q) weights -> (R,); a leaf whose queries all have weight 0 is left out of that mean.
    """
    leaves = {path: code for code, path in enumerate(dict.fromkeys(expected))}
    truth = np.eye(len(leaves))[[leaves[path] for path in expected]]
    unknown = len(leaves)
    answer = np.eye(unknown + 1)[[leaves.get(path or (), unknown) for path in predicted]][:, :unknown]

    def statistic(weights: Values) -> Values:
        support, hits = weights @ truth, weights @ (truth * answer)
        f1 = 2 * hits / np.maximum(support + weights @ answer, 1e-300)
        present = support > 0
        return np.asarray((f1 * present).sum(axis=1) / present.sum(axis=1))

    return statistic


def _fit(train: Vectors, target: npt.NDArray[np.intp], strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # The products are small: threads that wait for each other cost more than they save, 30 times on busy cores.
    with threadpool_limits(1, user_api="blas"):
        return LogisticRegression(C=strength, max_iter=PROBE_STEPS, tol=1e-3).fit(train, target)
