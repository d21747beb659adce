"""Vectors clustered like a catalogue's: four levels, from departments to near twins, and a spectrum to match.

Of 9,261 fashion listings' vectors, cut to 256 dimensions, 16 principal directions hold 0.50 of the energy, 64 hold 0.89
and 128 hold 1.00; these hold 0.53, 0.86 and 0.96.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

BLOCK = 16_384
ROWS_PER_LEAF, LEAVES_PER_KIND, KINDS_PER_DEPARTMENT = 20, 10, 25


class Clusters:
    """The centres for `count` rows of a width; `draw` gives rows around them, as many as are asked for."""

    def __init__(self, count: int, width: int = 256, seed: int = 0) -> None:
        self.count, self.width, self.seed = count, width, seed
        generator = np.random.default_rng(seed)
        place = np.arange(width)
        energy = 0.5 * np.exp(-place / 10) / 10 + 0.5 * np.exp(-place / 50) / 50
        self.scale = np.sqrt(energy / energy.sum()).astype(np.float32)
        leaves = max(64, count // ROWS_PER_LEAF)
        kinds = max(32, leaves // LEAVES_PER_KIND)
        departments = max(8, kinds // KINDS_PER_DEPARTMENT)
        department = self.normal(generator, departments)
        self.department_of_kind = generator.integers(0, departments, kinds)
        kind = 0.5 * department[self.department_of_kind] + 0.5 * self.normal(generator, kinds)
        self.kind_of_leaf = generator.integers(0, kinds, leaves)
        self.leaf = kind[self.kind_of_leaf] + 0.5 * self.normal(generator, leaves)
        sizes = generator.lognormal(0, 1, leaves)
        self.shares = sizes / sizes.sum()

    def normal(self, generator: np.random.Generator, count: int) -> Vectors:
        """(count, D) of the spectrum."""
        return np.asarray(generator.standard_normal((count, self.width), dtype=np.float32) * self.scale)

    def draw(self, count: int, seed: int) -> Iterator[tuple[Vectors, npt.NDArray[np.int64]]]:
        """Blocks of (n, D) of unit norm, and the department of each; `count` rows in all."""
        generator = np.random.default_rng((self.seed, seed))
        for start in range(0, count, BLOCK):
            leaves = generator.choice(len(self.leaf), min(BLOCK, count - start), p=self.shares)
            rows = self.leaf[leaves] + 0.5 * self.normal(generator, len(leaves))
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            yield rows, self.department_of_kind[self.kind_of_leaf[leaves]]

    def queries(self, count: int) -> Vectors:
        """(count, D) more of the same."""
        return np.concatenate([rows for rows, _ in self.draw(count, seed=1)])


def attributes(row: int, department: int, count: int) -> dict[str, Any]:
    """What filters ask for: `share`, uniform in [0, 1), is independent of the vectors; `department` goes with them."""
    return {"share": (row * 7_919 % count) / count, "department": f"department {department}", "price": float(row % 997)}
