"""Categories by the vote of the closest products."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from deploy.messages import category_message
from index.store import Store
from item.engine.interface import Vectors
from item.neighbours import vote
from item.v1 import item_pb2

NUM_NEIGHBOURS = 5
MAX_CANDIDATES = 2048  # the closest products among which voters are looked for
WIDEN = 8  # how many times more candidates when voters are too few

Path = tuple[str, ...]


def predict(store: Store, vector: Vectors, top_k: int, start: Path) -> item_pb2.CategoryPrediction:
    """The most probable paths under `start` for one vector, (D,) float32; abstains where nobody can vote."""
    voters = closest_voters(store, vector, start)
    shares = vote([path for path, _ in voters], [similarity for _, similarity in voters])
    return item_pb2.CategoryPrediction(
        paths=[
            category_message(path, [shares[path[:level]] for level in range(1, len(path) + 1)])
            for path in ranked_paths(voters)[:top_k]
        ],
        abstained=not shares,
        method=item_pb2.PREDICTION_METHOD_NEIGHBOUR_VOTE,
    )


def closest_voters(store: Store, vector: Vectors, start: Path) -> list[tuple[Path, float]]:
    """Category and similarity of the closest products that have a category under `start`, looked for ever wider."""
    candidates = NUM_NEIGHBOURS
    while True:
        (hits,) = store.search(vector[None], candidates)
        voters: list[tuple[Path, float]] = []
        for hit in hits:
            path = store.product_at(hit.row).category
            if path and path[: len(start)] == start:
                voters.append((path, hit.score))
            if len(voters) == NUM_NEIGHBOURS:
                return voters
        if len(hits) < candidates or candidates == MAX_CANDIDATES:
            return voters
        candidates = min(WIDEN * candidates, MAX_CANDIDATES)


def ranked_paths(voters: Sequence[tuple[Path, float]]) -> list[Path]:
    """The voters' own paths, the one given most similarity first; then by the closest voter, then by name."""
    given: dict[Path, list[float]] = {}
    for path, similarity in voters:
        if similarity > 0:
            given.setdefault(path, []).append(similarity)
    return sorted(given, key=lambda path: (-fsum(given[path]), -max(given[path]), path))
