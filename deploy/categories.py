"""Categories by the vote of the closest products."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from deploy.errors import Deadline
from deploy.hits import find
from deploy.messages import category_message
from deploy.queries import Sought, Terms
from index.filters import Categorised, Under
from index.vector_store import VectorStore
from item.engine.interface import Vectors
from item.neighbours import vote
from item.v1 import item_pb2

NUM_NEIGHBOURS = 5

Path = tuple[str, ...]


def predict(
    store: VectorStore, vector: Vectors, top_k: int, start: Path, deadline: Deadline
) -> item_pb2.CategoryPrediction:
    """The most probable paths under `start` for one vector, (D,) float32; abstains where nobody can vote."""
    voters = closest_voters(store, vector, start, deadline)
    shares = vote([path for path, _ in voters], [similarity for _, similarity in voters])
    return item_pb2.CategoryPrediction(
        paths=[
            category_message(path, [shares[path[:level]] for level in range(1, len(path) + 1)])
            for path in ranked_paths(voters)[:top_k]
        ],
        abstained=not shares,
        method=item_pb2.PREDICTION_METHOD_NEIGHBOUR_VOTE,
    )


def closest_voters(store: VectorStore, vector: Vectors, start: Path, deadline: Deadline) -> list[tuple[Path, float]]:
    """Category and similarity of the closest products that have a category, one under `start` where that is given."""
    condition = Under(start) if start else Categorised()
    (hits,) = find(store, [Sought(vector=vector, terms=Terms(filter=condition))], NUM_NEIGHBOURS, deadline)
    return [(product.category, score) for product, score in hits if product.category]


def ranked_paths(voters: Sequence[tuple[Path, float]]) -> list[Path]:
    """The voters' own paths, the one given most similarity first; then by the closest voter, then by name."""
    given: dict[Path, list[float]] = {}
    for path, similarity in voters:
        if similarity > 0:
            given.setdefault(path, []).append(similarity)
    return sorted(given, key=lambda path: (-fsum(given[path]), -max(given[path]), path))
