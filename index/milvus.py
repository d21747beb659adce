"""Collections in Milvus, for catalogues beyond one machine: a `VectorStore` on Milvus's own client.

    item_collections             a row for each collection of ITEm: what it holds, and which generation counts
    item_20261126_204005_123456  a generation: a row for each product

URI is that of a cluster, as http://milvus:19530, or a file NAME.db, which Milvus Lite serves from this process. Any
number of processes may write: of two that write to one product at once, one wins. Install with the extra `milvus`.
Decision 12 says what is kept how, and what Milvus does not promise.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from pydantic import TypeAdapter
from pymilvus import DataType, MilvusClient, MilvusException

from index.about import About
from index.choosing import FLAT_ROWS
from index.exact import Vectors, unit
from index.filters import Filter
from index.generations import NAME
from index.milvus_terms import DIGEST_CHARACTERS, digest, expression, numbers_of, one_of, terms_of
from index.planner import Plan
from index.product import Product
from index.search import Found
from index.vector_store import checked, per_query
from item.errors import ConfigError, ListingError, ReadOnlyError, StoreError, UnavailableError

logger = logging.getLogger(__name__)

COLLECTIONS, PREFIX = "item_collections", "item_"
TIMEOUT_S, BUILD_TIMEOUT_S = 10.0, 600.0
# Milvus's limits.
MAX_HITS = 16_384  # of a query
MAX_TEXT_BYTES = 65_535  # of a string
MAX_TERMS = 4_096  # elements of an array
# Ours.
READ_AT_ONCE, WRITE_AT_ONCE = 512, 256  # rows, up to 32 MiB of them: Milvus's messages have up to 64
HITS_AT_ONCE = 131_072
WRITER_BITS = 12  # of a key: 4,096 writers that write in the same microsecond
BUILD = "build one with: python -m index.build --model M --catalog C --index WORK --milvus URI"
STRONG = {"consistency_level": "Strong"}  # a read sees what any process has written before

# What Milvus's and gRPC's codes are where the same call may succeed later: unavailable, too many requests, rate limit.
TRANSIENT = {2, 4, 8, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of a collection. current, previous: Milvus's names of generations, empty for none. exact: whether
    the one that counts is searched without an approximate index."""

    about: About
    current: str
    previous: str
    exact: bool


ENTRY = TypeAdapter(Entry)


class MilvusStore:
    """An open collection in Milvus; see `VectorStore`. It stays with the generation that counted when it was opened."""

    def __init__(self, server: Milvus, entry: Entry, writable: bool) -> None:
        """`open` makes one; it closes the connection when it is closed."""
        self._server, self._entry, self._writable = server, entry, writable
        self._writing = threading.Lock()  # from reading what is there to writing what was made of it
        self._new_key = _Keys()

    @classmethod
    def open(cls, uri: str, name: str, *, token: str = "", writable: bool = False) -> MilvusStore:
        """Opens a collection.

        Raises:
            StoreError: it is not there.
            UnavailableError: Milvus cannot be reached.
        """
        server = Milvus(uri, token)
        try:
            entries = server.entries()
            if name not in entries:
                there = ", ".join(map(repr, sorted(entries))) or "none"
                raise StoreError(f"{server}: no collection {name!r}, of those that ITEm has made: {there}")
            with server.errors():
                server.client.load_collection(entries[name].current, timeout=BUILD_TIMEOUT_S)
            return cls(server, entries[name], writable)
        except BaseException:
            server.close()
            raise

    @classmethod
    def create(
        cls,
        uri: str,
        name: str,
        about: About,
        blocks: Iterable[tuple[Sequence[Product], Vectors]] = (),
        *,
        token: str = "",
    ) -> MilvusStore:
        """Writes a generation of blocks of products and vectors, (n, D), lets it count, and opens it to write.

        Up to 20,000 products are searched exactly, more by the index that Milvus chooses. A generation that was there
        is kept as the one before, for those who have it open. One process at a time may create a collection.

        Raises:
            StoreError: a vector of another width or not of unit norm, an id that comes twice; what was there before
                stays.
            ListingError: a product that is larger than Milvus takes.
            UnavailableError: Milvus cannot be reached.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"collection: {name!r}; a name is letters, digits, dots, dashes, underscores")
        server = Milvus(uri, token)
        try:
            before = server.entries().get(name)
            generation = PREFIX + datetime.now(UTC).strftime("%Y%m%d_%H%M%S_%f")
            try:
                count = server.write_generation(generation, about, blocks)
                server.index_generation(generation, exact=count <= FLAT_ROWS)
                previous = "" if before is None else before.current
                entry = Entry(about=about, current=generation, previous=previous, exact=count <= FLAT_ROWS)
                server.publish(name, entry)
            except BaseException:
                with suppress(StoreError):
                    server.drop(generation)
                raise
            if before is not None and before.previous:
                server.drop(before.previous)
            return cls(server, entry, True)
        except BaseException:
            server.close()
            raise

    def __enter__(self) -> MilvusStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def about(self) -> About:
        return self._entry.about

    @property
    def generation(self) -> str:
        return self._entry.current

    def __len__(self) -> int:
        with self._server.errors():
            (row,) = self._server.client.query(
                self.generation, filter="", output_fields=["count(*)"], timeout=TIMEOUT_S, **STRONG
            )
        return int(row["count(*)"])

    # Reading

    def product(self, product_id: str) -> Product | None:
        rows = self._rows("id", [digest(product_id)], ["product_id", "body"])
        return next((Product.from_json(row["product_id"], row["body"]) for row in rows), None)

    def products(self, keys: Sequence[int]) -> dict[int, Product]:
        rows = self._rows("key", sorted(set(keys)), ["key", "product_id", "body"])
        return {row["key"]: Product.from_json(row["product_id"], row["body"]) for row in rows}

    def vector(self, product_id: str) -> Vectors | None:
        rows = self._rows("id", [digest(product_id)], ["vector"])
        return next((np.array(row["vector"], np.float32) for row in rows), None)

    def search(
        self,
        queries: Vectors,
        k: int,
        leave_out: Sequence[Collection[str]] | None = None,
        filters: Sequence[Filter | None] | None = None,
    ) -> list[Found]:
        """See `VectorStore.search`. Raises ConfigError too where k and what one query leaves out are above 16,384."""
        unit_queries = unit(queries, self.about.vector_width)
        unwanted, conditions = per_query(len(queries), k, leave_out, filters)
        most = max(map(len, unwanted), default=0)
        if k + most > MAX_HITS:
            raise ConfigError(f"k: {k} beside {most} products left out is above {MAX_HITS:,}, what Milvus returns")
        by_condition: dict[Filter | None, list[int]] = {}
        for query, condition in enumerate(conditions):
            by_condition.setdefault(condition, []).append(query)
        found: dict[int, Found] = {}
        for condition, members in by_condition.items():
            for some in _batches(members, max(1, HITS_AT_ONCE // (k + most))):
                found |= dict(zip(some, self._nearest(unit_queries[some], k + most, condition), strict=True))
        return [found[query].without(ids, k) for query, ids in enumerate(unwanted)]

    def _nearest(self, queries: Vectors, fetch: int, condition: Filter | None) -> list[Found]:
        """The nearest of a few queries, (Q, D) of unit norm, with one filter."""
        with self._server.errors():
            answers = self._server.client.search(
                self.generation,
                data=list(queries),
                anns_field="vector",
                filter="" if condition is None else expression(condition),
                limit=fetch,
                output_fields=["product_id", "key"],
                timeout=TIMEOUT_S,
                **STRONG,
            )
        plan = Plan.EXACT if self._entry.exact else Plan.APPROXIMATE if condition is None else Plan.MASKED
        return [_found(answer, plan) for answer in answers]

    # Writing

    def upsert(self, products: Sequence[Product], vectors: Vectors) -> list[bool]:
        """See `VectorStore.upsert`. Raises ListingError too for a product that is larger than Milvus takes."""
        self._check_writable()
        for _ in checked([(products, vectors)], self.about.vector_width):
            pass
        ids = [digest(product.product_id) for product in products]
        rows: dict[str, dict[str, Any]] = {}
        with self._writing:
            there = {row["id"] for row in self._rows("id", ids, ["id"])}
            for product_id, product, vector in zip(ids, products, vectors, strict=True):
                rows.pop(product_id, None)  # so that the later one also comes later
                rows[product_id] = _row(product, self._new_key(), vector)
            self._write(list(rows.values()))
        return [product_id not in there for product_id in ids]

    def update(self, products: Sequence[Product]) -> None:
        """See `VectorStore.update`. Raises ListingError too for a product that is larger than Milvus takes."""
        self._check_writable()
        ids = [digest(product.product_id) for product in products]
        with self._writing:
            there = {row["id"]: row for row in self._rows("id", ids, ["id", "key", "vector"])}
            for product_id, product in zip(ids, products, strict=True):
                if product_id not in there:
                    raise StoreError(f"product_id: {product.product_id!r} is not there to be updated")
            rows = {
                product_id: _row(product, there[product_id]["key"], np.array(there[product_id]["vector"], np.float32))
                for product_id, product in zip(ids, products, strict=True)
            }
            self._write(list(rows.values()))

    def delete(self, product_ids: Sequence[str]) -> list[bool]:
        """See `VectorStore.delete`."""
        self._check_writable()
        ids = [digest(product_id) for product_id in product_ids]
        with self._writing:
            there = {row["id"] for row in self._rows("id", ids, ["id"])}
            for some in _batches(sorted(there), WRITE_AT_ONCE):
                with self._server.errors():
                    self._server.client.delete(self.generation, filter=one_of("id", some), timeout=TIMEOUT_S)
        return [product_id in there for product_id in ids]

    def _rows(self, field: str, values: Sequence[str] | Sequence[int], fields: list[str]) -> list[dict[str, Any]]:
        """The rows whose field is one of these digests, or integers."""
        rows: list[dict[str, Any]] = []
        for some in _batches(values, READ_AT_ONCE):
            with self._server.errors():
                rows += self._server.client.query(
                    self.generation, filter=one_of(field, some), output_fields=fields, timeout=TIMEOUT_S, **STRONG
                )
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        for some in _batches(rows, WRITE_AT_ONCE):
            with self._server.errors():
                self._server.client.upsert(self.generation, some, timeout=TIMEOUT_S)

    def _check_writable(self) -> None:
        if not self._writable:
            raise ReadOnlyError(f"{self._server}: {self.generation} is open to read; open it to write")


class Milvus:
    """A connection to Milvus, and what is done to generations as a whole. As text: its URI without user and password.

    Raises:
        UnavailableError: (methods too) it cannot be reached.
        StoreError: (methods too) it refuses.
    """

    def __init__(self, uri: str, token: str = "") -> None:
        self._uri = uri
        with self.errors():
            self.client = MilvusClient(uri, token=token, timeout=TIMEOUT_S)

    def __str__(self) -> str:
        return re.sub(r"//[^/]*@", "//", self._uri)

    def close(self) -> None:
        self.client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What Milvus says, as a StoreError."""
        try:
            yield
        except MilvusException as error:
            kind = UnavailableError if error.code in TRANSIENT else StoreError
            raise kind(f"{self}: {error.message}") from error
        except grpc.RpcError as error:
            raise UnavailableError(f"{self}: {error.details()}") from error

    def entries(self) -> dict[str, Entry]:
        """The collections that are there, by name."""
        with self.errors():
            if not self.client.has_collection(COLLECTIONS, timeout=TIMEOUT_S):
                return {}
            self.client.load_collection(COLLECTIONS, timeout=BUILD_TIMEOUT_S)
            rows = self.client.query(
                COLLECTIONS, filter='name != ""', output_fields=["name", "entry"], timeout=TIMEOUT_S, **STRONG
            )
        try:
            return {row["name"]: ENTRY.validate_json(row["entry"]) for row in rows}
        except ValueError as error:  # pydantic's errors are ValueErrors
            raise StoreError(f"{self}: {COLLECTIONS}: {error}; build the collection again") from error

    def publish(self, name: str, entry: Entry) -> None:
        """Lets a generation count."""
        with self.errors():
            if not self.client.has_collection(COLLECTIONS, timeout=TIMEOUT_S):
                schema = self.client.create_schema(auto_id=False)
                schema.add_field("name", DataType.VARCHAR, max_length=128, is_primary=True)
                schema.add_field("entry", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one in every collection
                self.client.create_collection(COLLECTIONS, schema=schema, timeout=TIMEOUT_S, **STRONG)
                self.index_generation(COLLECTIONS, exact=True, columns=False)
            row = {"name": name, "entry": ENTRY.dump_json(entry).decode(), "vector": [1.0, 0.0]}
            self.client.upsert(COLLECTIONS, [row], timeout=TIMEOUT_S)

    def write_generation(
        self, generation: str, about: About, blocks: Iterable[tuple[Sequence[Product], Vectors]]
    ) -> int:
        """Makes a generation of blocks, not to be searched yet; returns its products."""
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", DataType.VARCHAR, max_length=DIGEST_CHARACTERS, is_primary=True)  # of the product's id
        schema.add_field("key", DataType.INT64)
        schema.add_field("product_id", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
        schema.add_field("body", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)  # Product.to_json
        schema.add_field(
            "terms",
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=MAX_TERMS,
            max_length=DIGEST_CHARACTERS,
        )
        schema.add_field("numbers", DataType.JSON)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=about.vector_width)
        with self.errors():
            self.client.create_collection(generation, schema=schema, timeout=TIMEOUT_S, **STRONG)
        new_key, known = _Keys(), set[str]()
        for products, vectors in checked(blocks, about.vector_width):
            rows = [_row(product, new_key(), vector) for product, vector in zip(products, vectors, strict=True)]
            for row in rows:
                if row["id"] in known:
                    raise StoreError(f"product_id: {row['product_id']!r} comes twice; ids are unique")
                known.add(row["id"])
            for some in _batches(rows, WRITE_AT_ONCE):
                with self.errors():
                    self.client.insert(generation, some, timeout=BUILD_TIMEOUT_S)
        return len(known)

    def index_generation(self, generation: str, *, exact: bool, columns: bool = True) -> None:
        """Makes the index of the vectors and, with `columns`, of what filters and hits are looked up by."""
        params = self.client.prepare_index_params()
        params.add_index("vector", index_type="FLAT" if exact else "AUTOINDEX", metric_type="IP")
        if columns and not self._uri.endswith(".db"):  # Milvus Lite has none over arrays, and looks at every row
            for field in ("key", "terms"):
                params.add_index(field, index_type="INVERTED", index_name=field)
        with self.errors():
            self.client.create_index(generation, params, timeout=BUILD_TIMEOUT_S)
            self.client.load_collection(generation, timeout=BUILD_TIMEOUT_S)

    def drop(self, generation: str) -> None:
        """Removes a generation, if it is there."""
        with self.errors():
            self.client.drop_collection(generation, timeout=TIMEOUT_S)


class _Keys:
    """Numbers that no call has given before: microseconds since 1970, and at random which writer this is."""

    def __init__(self) -> None:
        self._microsecond, self._writer = 0, secrets.randbits(WRITER_BITS)

    def __call__(self) -> int:
        self._microsecond = max(self._microsecond + 1, time.time_ns() // 1000)
        return self._microsecond << WRITER_BITS | self._writer


def collection_names(uri: str, token: str = "") -> list[str]:
    """The collections that ITEm has made. Raises StoreError where there is none."""
    server = Milvus(uri, token)
    try:
        names = sorted(server.entries())
    finally:
        server.close()
    if not names:
        raise StoreError(f"{server}: has no collections; {BUILD}")
    return names


def _row(product: Product, key: int, vector: Vectors) -> dict[str, Any]:
    """A product as a row. Raises ListingError for one that is larger than Milvus takes."""
    body, terms, product_id = product.to_json(), terms_of(product), product.product_id
    for field, text in (("product_id", product_id), ("product", body)):
        if (size := len(text.encode())) > MAX_TEXT_BYTES:
            raise ListingError(
                field, f"{product_id[:50]!r}: {size:,} bytes; Milvus keeps up to {MAX_TEXT_BYTES:,}; shorten it"
            )
    if len(terms) > MAX_TERMS:
        raise ListingError(
            "attributes",
            f"{product_id[:50]!r}: {len(terms):,} values; Milvus keeps up to {MAX_TERMS:,}; leave some out",
        )
    return {
        "id": digest(product_id),
        "key": key,
        "product_id": product_id,
        "body": body,
        "terms": terms,
        "numbers": numbers_of(product),
        "vector": vector,
    }


def _found(answer: Iterable[dict[str, Any]], plan: Plan) -> Found:
    """One query's answer, by score, then by key."""
    hits = sorted((-min(1.0, max(-1.0, one["distance"])), one["entity"]["key"], one["entity"]) for one in answer)
    return Found(
        product_ids=[entity["product_id"] for _, _, entity in hits],
        scores=[-negated for negated, _, _ in hits],
        keys=[key for _, key, _ in hits],
        plan=plan,
    )


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """The items in order, up to `size` at a time."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
