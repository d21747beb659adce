"""The exact store: an index folder on disk, searched by cosine without approximation.

    INDEX/
      manifest.json               what the index is and which files it consists of; replaced as the last step
      vectors-<sha256>.faiss      FAISS IndexFlatIP: (N, D) float32 of unit norm
      products-<sha256>.parquet   N rows in the same order: what a hit shows

Files are named by their content and only the manifest says which of them count. Replacing an index is thus one rename,
that of the manifest: whoever opens the folder gets the old index or the new one, whole, and a writer that dies leaves
nothing but files that nobody names; the next writer removes them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from index.files import BESIDE, FileDigest, digest, rename_durably
from index.manifest import Manifest, read_manifest, write_manifest
from item.catalog.listing import AttributeValue, Listing
from item.errors import ConfigError, SpaceError, StoreError

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

SCHEMA = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("category", pa.list_(pa.string()), nullable=False),
        pa.field("group_id", pa.string()),
        pa.field("attributes", pa.string(), nullable=False),  # a JSON object
        pa.field("image", pa.string(), nullable=False),
    ]
)
NORM_TOLERANCE = 1e-3
# FAISS sums float32 in an order that depends on the number of queries: two of its scores of one pair differ by less.
ROUNDING = 1e-5
# Rows of one matrix product. FAISS's 1,024 makes its threads meet four times as often.
ROWS_AT_ONCE = 4096
# Asked for beyond k, so that a tie at the last hit is seldom cut by the first search.
SPARE = 8
# Scores of one FAISS call at most: with their rows 48 MiB.
MAX_SCORES = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One answer: the product's id, its cosine in [-1, 1], its row in the store."""

    product_id: str
    score: float
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What the store knows of a product beside its vector; `image` is the catalogue's reference to its main picture."""

    product_id: str
    title: str
    category: tuple[str, ...]
    group_id: str | None
    attributes: dict[str, AttributeValue]
    image: str

    @classmethod
    def from_listing(cls, listing: Listing) -> Product:
        return cls(
            product_id=listing.product_id,
            title=listing.title,
            category=listing.category,
            group_id=listing.group_id,
            attributes=dict(listing.attributes),
            image=listing.images[0].reference if listing.images else "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive rows on their way into a store: (n, D) float32 of unit norm and n products (`SCHEMA`)."""

    vectors: Vectors
    products: pa.Table


def product_table(products: Sequence[Product]) -> pa.Table:
    """Products as a table of `SCHEMA`."""
    rows = [
        asdict(product) | {"attributes": json.dumps(product.attributes, ensure_ascii=False)} for product in products
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


class Store:
    """An open index. Searching it from several threads at once is safe; it never changes.

    Shapes: Q queries, N = `len(store)` rows, D = `store.manifest.vector_width`.
    """

    def __init__(self, manifest: Manifest, index: Any, products: pa.Table) -> None:
        """Takes over what `open` has read. Raises StoreError where the parts do not belong together."""
        for name, found in (("vectors", index.ntotal), ("products", products.num_rows)):
            if found != manifest.count:
                raise StoreError(f"{found:,} {name}, but the manifest says {manifest.count:,}; build the index again")
        if index.d != manifest.vector_width:
            raise StoreError(f"vectors of width {index.d}, but the manifest says {manifest.vector_width}")
        self.manifest = manifest
        self._index = index
        self._products = products
        # FAISS owns this memory: the view is good as long as the index is.
        size = index.ntotal * index.d
        self._vectors: Vectors = faiss.rev_swig_ptr(index.get_xb(), size).reshape(index.ntotal, index.d)
        self._ids: list[str] = products["product_id"].to_pylist()
        self._row_of = {product_id: row for row, product_id in enumerate(self._ids)}
        if len(self._row_of) != manifest.count:
            raise StoreError(f"{manifest.count - len(self._row_of):,} product ids appear twice; build the index again")

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Reads an index folder and checks every file against the manifest.

        Raises:
            StoreError: a missing folder; a missing, damaged or other-version manifest; a missing or damaged file.
        """
        manifest = read_manifest(folder)
        while True:
            try:
                return cls._read(folder, manifest)
            except StoreError:
                # A writer that replaced the index meanwhile has removed the files of the one before.
                before, manifest = manifest, read_manifest(folder)
                if manifest == before:
                    raise

    @classmethod
    def _read(cls, folder: Path, manifest: Manifest) -> Store:
        manifest.check_files(folder)
        # Matrix products from two queries on. By default FAISS 1.15 scans for each alone until all together have
        # 128,000 numbers: 64 queries over 300,000 rows of width 384 took 3.3 s on one core instead of 0.2 s.
        faiss.cvar.distance_compute_blas_threshold = 2 * manifest.vector_width
        faiss.cvar.distance_compute_blas_database_bs = ROWS_AT_ONCE
        try:
            index = faiss.read_index(str(folder / manifest.file(".faiss")))
            products = pq.read_table(folder / manifest.file(".parquet"), schema=SCHEMA)
        except (OSError, RuntimeError, pa.ArrowException) as error:
            raise StoreError(f"{folder}: cannot be read ({error}); build the index again") from error
        return cls(manifest, index, products)

    def __len__(self) -> int:
        return self.manifest.count

    def product(self, product_id: str) -> Product | None:
        """The product with this id, or None."""
        row = self._row_of.get(product_id)
        return None if row is None else self.product_at(row)

    def product_at(self, row: int) -> Product:
        """The product of a row in [0, N), as hits name it."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        (values,) = self._products.slice(row, 1).to_pylist()
        category, attributes = tuple(values.pop("category")), json.loads(values.pop("attributes"))
        return Product(category=category, attributes=attributes, **values)

    def vector(self, product_id: str) -> Vectors | None:
        """(D,) the vector of a product, or None."""
        row = self._row_of.get(product_id)
        return None if row is None else self._vectors[row].copy()

    def search(self, queries: Vectors, k: int, leave_out: Sequence[Collection[str]] | None = None) -> list[list[Hit]]:
        """The nearest k products of each query, the best first, ties in the order of rows.

        Args:
            queries: (Q, D) float32 of any length but zero.
            k: at least 1; fewer hits come back only where the store holds fewer products.
            leave_out: for each query the ids of products that are not wanted; k others are found all the same.

        Raises:
            SpaceError: queries of another width, or not finite, or of length zero.
            ConfigError: k below 1, or not one collection of `leave_out` for each query.
        """
        unit = self._unit(queries)
        if k < 1:
            raise ConfigError(f"k: {k} is below 1")
        if leave_out is not None and len(leave_out) != len(unit):
            raise ConfigError(f"leave_out: {len(leave_out)} collections for {len(unit)} queries")
        unwanted = [self._rows(ids) for ids in leave_out or [()] * len(unit)]
        fetch = min(len(self), k + max(map(len, unwanted), default=0) + SPARE)
        step = max(1, MAX_SCORES // max(1, fetch))
        hits = []
        for start in range(0, len(unit), step):
            block = slice(start, start + step)
            hits += self._search_block(unit[block], k, unwanted[block], fetch)
        return hits

    def _search_block(self, unit: Vectors, k: int, unwanted: Sequence[Rows], fetch: int) -> list[list[Hit]]:
        if fetch == 0:
            return [[] for _ in unit]
        scores, rows = self._index.search(unit, fetch)
        return [self._hits(*found, k, fetch) for found in zip(unit, scores, rows, unwanted, strict=True)]

    def _hits(self, query: Vectors, scores: Vectors, rows: Rows, unwanted: Rows, k: int, fetch: int) -> list[Hit]:
        """Hits of one query from its best `fetch` candidates; searched wider where they end within a tie."""
        wanted = ~np.isin(rows, unwanted)
        last = scores[wanted][k - 1] - ROUNDING if wanted.sum() >= k else -np.inf
        if scores[-1] >= last and fetch < len(self):
            fetch = min(len(self), 4 * fetch)
            return self._search_block(query[None], k, [unwanted], fetch)[0]
        rows = rows[wanted & (scores >= last)]
        cosines = self._cosines(query, rows)
        best = np.lexsort((rows, -cosines))[:k]
        return [
            Hit(product_id=self._ids[row], score=score, row=row)
            for row, score in zip(rows[best].tolist(), cosines[best].tolist(), strict=True)
        ]

    def _cosines(self, query: Vectors, rows: Rows) -> Vectors:
        """(n,) scores that depend on the pair alone: each row summed by itself, in float64."""
        sums = (self._vectors[rows] * query.astype(np.float64)).sum(axis=1)
        return np.clip(sums, -1.0, 1.0).astype(np.float32)

    def _rows(self, product_ids: Collection[str]) -> Rows:
        found = {self._row_of[product_id] for product_id in product_ids if product_id in self._row_of}
        return np.fromiter(found, np.int64, len(found))

    def _unit(self, queries: Vectors) -> Vectors:
        width = self.manifest.vector_width
        if queries.ndim != 2 or queries.shape[1] != width:
            raise SpaceError(
                f"queries of shape {queries.shape}: the index holds vectors of width {width}, (Q, {width})"
            )
        exact = queries.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1, keepdims=True)
        if bad := np.flatnonzero(~np.isfinite(lengths) | (lengths == 0)).tolist():
            raise SpaceError(f"query {bad[0]}: its length is {lengths[bad[0], 0]}: no direction to search in")
        return (exact / lengths).astype(np.float32)


def write_store(
    folder: Path,
    blocks: Iterable[Block],
    *,
    space: str,
    model: str,
    engine: str,
    vector_width: int,
    catalog: str,
    catalog_sha256: str = "",
    splits: tuple[str, ...] = (),
) -> Manifest:
    """Writes an index folder, or replaces the index in it, from blocks of rows; see `Manifest` for the fields.

    Raises:
        StoreError: vectors of another width, not of unit norm, or not as many as products; nothing is replaced then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = faiss.IndexFlatIP(vector_width)
    products, vectors = folder / f"products.parquet{BESIDE}", folder / f"vectors.faiss{BESIDE}"
    with pq.ParquetWriter(products, SCHEMA, compression="zstd") as writer:
        for block in blocks:
            _check_block(block, vector_width, index.ntotal)
            index.add(block.vectors)
            writer.write_table(block.products)
    faiss.write_index(index, str(vectors))
    manifest = Manifest(
        space=space,
        model=model,
        engine=engine,
        catalog=catalog,
        catalog_sha256=catalog_sha256,
        splits=splits,
        vector_width=vector_width,
        count=index.ntotal,
        files=dict([_name_by_content(vectors), _name_by_content(products)]),
    )
    write_manifest(folder, manifest)
    _remove_unnamed(folder, manifest)
    return manifest


def is_unit(lengths: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(n,) whether vectors of these lengths are of unit norm."""
    return np.abs(lengths - 1) <= NORM_TOLERANCE


def _check_block(block: Block, vector_width: int, first_row: int) -> None:
    """Raises StoreError for vectors that could not be searched."""
    shape, expected = block.vectors.shape, (block.products.num_rows, vector_width)
    if shape != expected:
        raise StoreError(f"vectors of shape {shape} from row {first_row}, expected {expected}")
    lengths = np.linalg.norm(block.vectors, axis=1)
    if wrong := np.flatnonzero(~is_unit(lengths)).tolist():
        raise StoreError(f"row {first_row + wrong[0]}: a vector of length {lengths[wrong[0]]}, expected 1")


def _name_by_content(path: Path) -> tuple[str, FileDigest]:
    """Renames `stem.suffix.writing` to `stem-<sha256>.suffix`."""
    found = digest(path)
    stem, suffix = path.name.removesuffix(BESIDE).split(".")
    name = f"{stem}-{found.sha256[:12]}.{suffix}"
    rename_durably(path, path.with_name(name))
    return name, found


def _remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Removes files of indexes that were replaced or never finished."""
    for pattern in ("vectors-*.faiss", "products-*.parquet", f"*{BESIDE}"):
        for path in folder.glob(pattern):
            if path.name not in manifest.files:
                path.unlink()
