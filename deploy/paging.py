"""Pages of one query's hits: a token says after which hit a page begins, whatever is written between two pages."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.errors import InvalidRequestError
from item.v1 import item_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Begins after the product `after`, the hit before it, or, where that is no hit any more, at place `offset`.

    query: tells the query that it belongs to from others.
    """

    query: str
    offset: int = 0
    after: str = ""

    def is_found(self, product_ids: Sequence[str]) -> bool:
        """Whether the hit before it, if there is one, is there."""
        return self.offset == 0 or self.after in product_ids

    def begin(self, product_ids: Sequence[str]) -> int:
        """The place of the first of its hits among all hits."""
        if self.after in product_ids:
            return product_ids.index(self.after) + 1
        return min(self.offset, len(product_ids))

    def token(self) -> str:
        """As a text that `page_of` reads."""
        text = json.dumps([self.query, self.offset, self.after], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode()


def page_of(query: item_pb2.Query, collection: str, k: int, field: str) -> Page:
    """The page that a query asks for. Raises InvalidRequestError for a token that is none, or of another query."""
    asked = query
    if query.page_token:
        asked = item_pb2.Query()
        asked.CopyFrom(query)
        asked.ClearField("page_token")
    content = asked.SerializeToString(deterministic=True) + f"{k} {collection}".encode()
    first = Page(query=hashlib.sha256(content).hexdigest()[:16])
    if not query.page_token:
        return first
    try:
        name, offset, after = json.loads(base64.urlsafe_b64decode(query.page_token))
        page = Page(query=str(name), offset=int(offset), after=str(after))
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"{field}.page_token", "is no token; give next_page_token as it came") from error
    if page.query != first.query or page.offset < 0:
        raise InvalidRequestError(
            f"{field}.page_token", "belongs to another query; give the same query, collection and k as for its page"
        )
    return page
