"""How a query wants its hits ranked, and what was counted, between the contract and index.ranking."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.errors import InvalidRequestError
from index.filters import Value
from index.ranking import Facet, Ranking, Sort
from item.errors import ConfigError
from item.products import attribute_message
from item.v1 import item_pb2

WINDOW = 100
FACET_VALUES, MAX_FACET_VALUES = 10, 1000
RANKED = ("lexical_weight", "min_score", "diversity", "sort", "window")  # fields that may be unset


def ranking_of(query: item_pb2.Query, k: int, max_window: int, field: str) -> Ranking | None:
    """What a query asks for beyond the closest k; None: nothing. Raises InvalidRequestError."""
    is_set = any(query.HasField(name) for name in RANKED)
    if not (is_set or query.collapse_groups or query.facets or query.page_token):
        return None
    if query.HasField("window") and not k <= query.window <= max_window:
        raise InvalidRequestError(f"{field}.window", f"{query.window} is not within k, {k}, and {max_window}")
    words = " ".join(text for part in query.parts for text in (part.input.text, part.input.description) if text)
    if query.lexical_weight and not words.strip():
        raise InvalidRequestError(f"{field}.lexical_weight", "no part has words; give an input with text, or leave it")
    if query.HasField("min_score") and not -1 <= query.min_score <= 1:
        raise InvalidRequestError(f"{field}.min_score", f"{query.min_score} is not within [-1, 1]")
    try:
        return Ranking(
            min_score=query.min_score if query.HasField("min_score") else -1.0,
            collapse_groups=query.collapse_groups,
            words=words,
            lexical_weight=query.lexical_weight,
            diversity=query.diversity,
            sort=Sort(attribute=query.sort.attribute, descending=query.sort.descending)
            if query.HasField("sort")
            else None,
            facets=tuple(facet_of(one, f"facets[{place}]") for place, one in enumerate(query.facets)),
            window=query.window if query.HasField("window") else min(max(WINDOW, k), max_window),
        )
    except ConfigError as error:
        name, _, reason = str(error).partition(": ")  # they begin with the field
        raise InvalidRequestError(f"{field}.{name}", reason) from error


def facet_of(message: item_pb2.FacetRequest, field: str) -> Facet:
    """One facet. Raises ConfigError."""
    limit = message.limit if message.HasField("limit") else FACET_VALUES
    if not 1 <= limit <= MAX_FACET_VALUES:
        raise ConfigError(f"{field}.limit: {limit} is not within 1 to {MAX_FACET_VALUES}")
    match message.WhichOneof("by"):
        case "attribute" if message.attribute:
            return Facet(attribute=message.attribute, limit=limit)
        case "category_level" if message.category_level >= 1:
            return Facet(category_level=message.category_level, limit=limit)
    raise ConfigError(f"{field}: give an attribute's name, or a category_level of at least 1")


def facet_message(counts: Sequence[tuple[Value | tuple[str, ...], int]]) -> item_pb2.Facet:
    """What was counted."""
    return item_pb2.Facet(
        values=[
            item_pb2.FacetValue(category=value, count=count)
            if isinstance(value, tuple)
            else item_pb2.FacetValue(value=attribute_message(value), count=count)
            for value, count in counts
        ]
    )
