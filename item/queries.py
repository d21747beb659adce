"""What is encoded and what is looked for: inputs, the parts of a query, and its terms."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from item.errors import ConfigError
from item.filters import Conditions, filter_message
from item.products import read_image
from item.results import Vectors
from item.v1 import item_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What is encoded: words, a picture, or both. `text` is a query or a title; `image` a file or its bytes.

    `adapter` is the name of one that is loaded (`Client.adapters`); empty: the model alone. Its vectors are of a
    space of their own.
    """

    text: str = ""
    description: str = ""
    image: bytes | str | Path | None = None
    adapter: str = ""

    def message(self, field: str) -> item_pb2.Input:
        """As a message. Raises ConfigError, naming the field, for text or a picture that cannot be read."""
        try:
            image = read_image(self.image)
            return item_pb2.Input(
                text=self.text, description=self.description, image=image, adapter=self.adapter or None
            )
        except OSError as error:
            raise ConfigError(f"{field}.image: {self.image!s} cannot be read: {error.strerror}") from error
        except (TypeError, ValueError) as error:  # no str, or one that UTF-8 cannot hold
            raise ConfigError(f"{field}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Input):
    """One point of the space that a query is made of: an input, a stored product, or a vector with its space.

    `vector` is (D,); `weight` counts where a query has several parts.
    """

    product_id: str = ""
    vector: Vectors | None = None
    space: str = ""
    weight: float = 1.0

    def part_message(self, field: str) -> item_pb2.QueryPart:
        """As a message. Raises ConfigError, naming the field, unless exactly one source is given."""
        has_input = bool(self.text or self.description or self.image is not None)
        if has_input + bool(self.product_id) + (self.vector is not None) != 1:
            raise ConfigError(f"{field}: give words and/or a picture, or product_id, or vector; parts can be combined")
        if has_input:
            return item_pb2.QueryPart(input=self.message(f"{field}.input"), weight=self.weight)
        if self.vector is None:
            return item_pb2.QueryPart(product_id=self.product_id, weight=self.weight)
        if not self.space:
            raise ConfigError(f"{field}.space: a vector comes with its space, for instance EmbedResult.space")
        values = np.asarray(self.vector, "<f4").tobytes()
        return item_pb2.QueryPart(vector=item_pb2.Vector(values=values, space=self.space), weight=self.weight)


class Terms(TypedDict, total=False):
    """The fields of `Query` that say what may be a hit, and in which order; by keyword to `Client.search`."""

    filter: Conditions
    leave_out: Collection[str]
    lexical_weight: float | None
    min_score: float | None
    collapse_groups: bool
    diversity: float | None
    sort: str
    facets: Sequence[str]
    window: int | None
    page_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for: the weighted sum of its parts, drawn to positive examples and away from negative ones.

    Positive examples need no parts.

    Args:
        filter: what hits have to pass: all conditions of a list, for instance ``["price<=20", "under:Home"]``
            (`item.filters.filter_message`), or a message of the contract.
        leave_out: ids that are never hits.
        lexical_weight: within [0, 1], of full-text search beside vectors in the order of hits.
        min_score: the least score of a hit.
        collapse_groups: one hit of each `group_id`.
        diversity: within [0, 1], how much hits should differ from those before them.
        sort: an attribute by which the window's hits come, ``"price"``, or ``"-price"`` for the largest first.
        facets: what to count over the window's hits: attributes, or ``"category:2"`` for paths of up to two levels.
        window: how many of the closest products are sorted, chosen from, fused with words' and counted (100).
        page_token: `SearchResult.next_page_token` of the page before.
    """

    parts: Sequence[Part] = ()
    positive_examples: Sequence[Part] = ()
    negative_examples: Sequence[Part] = ()
    filter: Conditions = ()
    leave_out: Collection[str] = ()
    lexical_weight: float | None = None
    min_score: float | None = None
    collapse_groups: bool = False
    diversity: float | None = None
    sort: str = ""
    facets: Sequence[str] = ()
    window: int | None = None
    page_token: str = ""

    def query_message(self, field: str) -> item_pb2.Query:
        """As a message. Raises ConfigError as its parts and `filter_message` do."""

        def messages(name: str) -> list[item_pb2.QueryPart]:
            return [part.part_message(f"{field}.{name}[{number}]") for number, part in enumerate(getattr(self, name))]

        return item_pb2.Query(
            parts=messages("parts"),
            positive_examples=messages("positive_examples"),
            negative_examples=messages("negative_examples"),
            filter=filter_message(self.filter, f"{field}.filter"),
            leave_out_ids=self.leave_out,
            lexical_weight=self.lexical_weight,
            min_score=self.min_score,
            collapse_groups=self.collapse_groups,
            diversity=self.diversity,
            sort=sort_message(self.sort) if self.sort else None,
            facets=map(facet_request, self.facets),
            window=self.window,
            page_token=self.page_token,
        )


def sort_message(text: str) -> item_pb2.Sort:
    """``"price"`` as a message, ``"-price"`` for the largest first."""
    return item_pb2.Sort(attribute=text.removeprefix("-"), descending=text.startswith("-"))


def facet_request(text: str) -> item_pb2.FacetRequest:
    """An attribute's name, or ``"category:2"``, as a message."""
    name, _, level = text.partition(":")
    if name == "category" and level.isdecimal():
        return item_pb2.FacetRequest(category_level=int(level))
    return item_pb2.FacetRequest(attribute=text)
