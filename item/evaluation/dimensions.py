"""What is left of the search for the same product when the vectors are cut to their first dimensions."""

from __future__ import annotations

from collections.abc import Iterator

from item.evaluation.bootstrap import ratio_interval
from item.evaluation.exam import SAME_PRODUCT
from item.evaluation.result import Result, result_of
from item.evaluation.retrieval import unit
from item.evaluation.sitting import Sitting

DIMENSIONS = (64, 128, 256)


def kept_dimensions(sitting: Sitting, name: str) -> Iterator[Result]:
    """The recall@10 on the first k dimensions of `both`, renormalised, as a share of that on all: `dims{k}_kept`.

    Paired: a resample draws the same products for both figures. Where the recall on all is zero there is no result, and
    none for a k that is not below the vector's width.
    """
    found = sitting.find(name, "both", SAME_PRODUCT)
    if found is None:
        return
    contestant, full = found
    for k in (k for k in DIMENSIONS if k < contestant.catalog.shape[1]):
        short = sitting.exam.same_product(unit(contestant.catalog[:, :k]), unit(contestant.queries[:, :k]))
        for subset, part in sitting.parts(full):
            recall, full_recall = (one.only(part.positions).values["recall@10"] for one in (short, full))
            if full_recall.any():
                interval = ratio_interval(recall, full_recall, part.products)
                yield result_of(part, f"dims{k}_kept", interval, system=name, inputs="both", subset=subset)
