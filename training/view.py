"""How one model sees an exam, and what becomes of it when a query's words or picture are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing
from item.engine import Engine
from item.errors import ModelError
from item.evaluation.exam import Contestant, Exam
from item.evaluation.result import Result
from item.evaluation.swap import complete, contributions, swapped
from item.preprocessing.prepared import MODALITIES, Modality
from training.encode import Seen, encode_modalities

Vectors = npt.NDArray[np.float32]
PARTS: tuple[Literal["words", "picture"], ...] = ("words", "picture")


@dataclass(frozen=True, kw_only=True)
class View:
    """An exam as a model sees it, by words, by picture and by both; zero where a listing does not have that.

    catalog: (N, D) each, of the catalogue; queries: (Q, D) each, of what is asked in the same-product task.
    """

    name: str
    engine: Engine
    exam: Exam
    catalog: dict[Modality, Vectors]
    queries: dict[Modality, Vectors]

    def contestants(self) -> Iterator[Contestant]:
        """The model by words, by picture, by both."""
        for modality in MODALITIES:
            yield Contestant(
                name=self.name,
                inputs=modality,
                catalog=self.catalog[modality],
                queries=self.queries[modality],
                halves=(self.catalog["words"], self.catalog["picture"]) if modality == "both" else None,
            )

    def contributions(self) -> Iterator[Result]:
        """What words and picture contribute: each left out, and each exchanged for another product's."""
        exam = self.exam
        of_rows = {modality: vectors[exam.rows] for modality, vectors in self.catalog.items()}
        rows = queries = self._all_ways([exam.catalog[row] for row in exam.rows], exam.row_products, of_rows)
        if exam.offers is not None:
            queries = self._all_ways(exam.offers, exam.query_products, self.queries)
        return contributions(exam, self.name, self.catalog["both"], queries, rows)

    def _all_ways(
        self, listings: Sequence[Listing], products: Sequence[str], vectors: Mapping[Modality, Vectors]
    ) -> dict[str, Vectors]:
        """The vectors of N listings, and beside them those by both with wrong words and with a wrong picture.

        Listings that lack words or picture have zeros there; without two products there is nothing to exchange.
        """
        ways: dict[str, Vectors] = dict(vectors.items())
        asked = complete(ways)
        if len({products[i] for i in asked}) > 1:
            for part in PARTS:
                wrong = swapped([listings[i] for i in asked], [products[i] for i in asked], part)
                ways[f"wrong {part}"] = np.zeros_like(vectors["both"])
                seen = encode_modalities(self.engine, wrong, f"queries with wrong {part}", ("both",))
                ways[f"wrong {part}"][asked] = seen.vectors["both"]
        return ways


def view_of(name: str, engine: Engine, exam: Exam, seen: Seen, offered: Seen) -> View:
    """The view of the model that saw the exam's catalogue and its offers."""
    rows = {modality: vectors[exam.rows] for modality, vectors in seen.vectors.items()}
    queries = rows if exam.offers is None else offered.vectors
    return View(name=name, engine=engine, exam=exam, catalog=seen.vectors, queries=queries)


def view_again(name: str, engine: Engine, exam: Exam) -> View:
    """The view of another model.

    Raises:
        ModelError: it refuses a listing that is in the exam.
    """
    seen = encode_modalities(engine, exam.catalog, f"the catalogue by {name}")
    offered = encode_modalities(engine, exam.offers or [], f"offers by {name}")
    for refused in (*seen.refused, *offered.refused):
        said = f"{refused.field}: {refused.reason}"
        raise ModelError(f"{name}: refuses listing {refused.product_id!r} that the model reads ({said}); leave it out")
    return view_of(name, engine, exam, seen, offered)
