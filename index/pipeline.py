"""The indexing job on Ray Data: read -> prepare -> embed -> write, a shard of consecutive rows at a time.

Pictures that are URLs are fetched where they are decoded, ahead of the decoder. A worker whose process ends is started
anew and its shard done again, a few times.

Every block is one row, and that row is one shard: a stage hands a shard on as soon as it is done with it. Pictures
given as bytes leave the pipeline where they are decoded, and the encoder reads the pixels where they lie.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from index.exact import Vectors, is_unit
from index.product import Product
from index.shards import Mark, Shard, write_shard
from item.catalog.listing import Listing, Place
from item.catalog.reader import Refused, iterate_rows
from item.catalog.splits import assign_splits
from item.engine import load_engine
from item.errors import ItemError, ListingError, SpaceError
from item.fetching.fetcher import Fetcher
from item.fetching.hosts import AllowedHosts, is_public, is_public_or_intranet
from item.preprocessing.prepared import Prepared
from item.preprocessing.preprocessor import Preprocessor
from item.ray_settings import set_ray_defaults

# Shards that wait between the stages, beside one for each process.
SHARDS_WAITING = 6
# Times that a shard is done again when the process that had it ended, and that such a process is started anew.
RETRIES = 3
MIN_OBJECT_STORE_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the stages need to know.

    splits: only listings of these are embedded; empty for all.
    has_splits: whether the catalogue names splits itself; `assign_splits` decides otherwise.
    catalog: the catalogue's files. hosts: those that pictures may be fetched from; none: URLs are refused.
    private_addresses: whether these hosts may be at addresses that are not public.
    num_workers: processes that prepare. num_gpus: GPUs, each with a process that embeds; 0: as many processes embed on
    the CPU as prepare, each with one thread, which is a third faster than one process with all threads.
    """

    model: Path
    variant: str | None
    space: str
    catalog: tuple[Path, ...]
    hosts: AllowedHosts
    private_addresses: bool
    splits: tuple[str, ...]
    has_splits: bool
    shard_rows: int
    picture_size: int
    num_workers: int
    num_gpus: int
    folder: Path

    @property
    def num_encoders(self) -> int:
        """Processes that embed."""
        return self.num_gpus or self.num_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A shard as it was read: listings with their places."""

    shard: Shard
    listings: list[tuple[Place, Listing]]
    refused: list[Refused]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A shard made ready for the encoder: products with their places, and what is encoded of each."""

    shard: Shard
    products: list[tuple[Place, Product]]
    prepared: list[Prepared]
    refused: list[Refused]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A shard with its (n, D) vectors, in the order of its products."""

    shard: Shard
    products: list[tuple[Place, Product]]
    vectors: Vectors
    refused: list[Refused]
    engine: str


def embed_catalog(job: Job, done: frozenset[int]) -> Generator[Mark]:
    """Embeds all shards of the catalogue but those that are done, in any order, and yields their marks.

    Raises:
        ItemError, OSError: what a stage raised, for instance for a full disk; or that a worker's process ended.
    """
    with ray_session(job):
        try:
            for table in pipeline(job, done).iter_batches(batch_size=1, batch_format="pyarrow"):
                yield unpack(table)
        except RayTaskError as error:
            if isinstance(error.cause, ItemError | OSError):
                raise error.cause from error
            raise
        except RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ItemError(f"a worker's process ended ({reason}); start again to go on") from error


def pipeline(job: Job, done: frozenset[int]) -> ray.data.Dataset:
    """The four stages. Whatever ends a process, too little memory or a picture, may end it again: a few tries."""
    each = {"batch_size": 1, "batch_format": "pyarrow"}
    workers = ray.data.TaskPoolStrategy(size=job.num_workers)
    encoders = ray.data.ActorPoolStrategy(size=job.num_encoders)
    with warnings.catch_warnings():
        # Ray deprecates max_retries and max_restarts without another way to say so; pyproject.toml keeps below 2.64.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return (
            ray.data.range(1)
            .map_batches(read, fn_kwargs={"job": job, "done": done}, **each)
            .map_batches(prepare, fn_kwargs={"job": job}, compute=workers, max_retries=RETRIES, **each)
            .map_batches(
                Embed,
                fn_constructor_args=(job,),
                compute=encoders,
                num_gpus=min(1, job.num_gpus),
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
                **each,
            )
            .map_batches(write, fn_kwargs={"folder": job.folder}, **each)
        )


def read(_: pa.Table, job: Job, done: frozenset[int]) -> Iterator[pa.Table]:
    """Cuts the catalogue into shards and hands on those that are not done."""
    rows = iterate_rows(job.catalog, urls=bool(job.hosts.patterns))
    chunk, number, first_row = list(islice(rows, job.shard_rows)), 0, 0
    while chunk:
        following = list(islice(rows, job.shard_rows))
        shard = Shard(number=number, first_row=first_row, end_row=first_row + len(chunk), last=not following)
        if number not in done:
            listings = [(place, row) for place, row in chunk if isinstance(row, Listing) and is_wanted(row, job)]
            refused = [row for _, row in chunk if isinstance(row, Refused)]
            yield pack(Rows(shard=shard, listings=listings, refused=refused))
        chunk, number, first_row = following, number + 1, shard.end_row


def is_wanted(listing: Listing, job: Job) -> bool:
    """Whether a listing is of one of the job's splits."""
    if not job.splits:
        return True
    return (listing if job.has_splits else assign_splits([listing])[0]).split in job.splits


def prepare(table: pa.Table, job: Job) -> pa.Table:
    """Tokenises words, fetches and decodes pictures. A listing that cannot be read is refused; its neighbours go on."""
    preprocessor, rows = load_preprocessor(job.model), unpack(table)
    ready = Ready(shard=rows.shard, products=[], prepared=[], refused=rows.refused)
    is_allowed = is_public_or_intranet if job.private_addresses else is_public
    with Fetcher(job.hosts, max_bytes=preprocessor.config.max_picture_bytes, is_allowed=is_allowed) as fetcher:
        with_bytes = fetcher.with_bytes(listing for _, listing in rows.listings)
        for (place, listing), fetched in zip(rows.listings, with_bytes, strict=True):
            try:
                if isinstance(fetched, ListingError):
                    raise fetched
                ready.prepared.append(preprocessor(fetched))
                ready.products.append((place, Product.from_listing(listing)))
            except ListingError as error:
                ready.refused.append(Refused.at(place, listing.product_id, error))
    return pack(ready)


@cache
def load_preprocessor(model: Path) -> Preprocessor:
    """One for each process, whatever number of shards it prepares."""
    return Preprocessor.from_pretrained(model)


class Embed:
    """Holds the engine. Raises SpaceError where the model is no longer the one that the job was planned with."""

    def __init__(self, job: Job) -> None:
        self.engine = load_engine(job.model, "cuda" if job.num_gpus else "cpu", 1, job.variant)
        if self.engine.space != job.space:
            raise SpaceError(f"{job.model}: the model changed while the job was starting; start again")

    def __call__(self, table: pa.Table) -> pa.Table:
        ready: Ready = unpack(table)
        return pack(
            Embedded(
                shard=ready.shard,
                products=ready.products,
                vectors=self.engine.encode_prepared(ready.prepared),
                refused=ready.refused,
                engine=self.engine.name,
            )
        )


def write(table: pa.Table, folder: Path) -> pa.Table:
    """Writes a shard and its done-mark. A vector that could not be searched refuses its listing alone."""
    done: Embedded = unpack(table)
    lengths = np.linalg.norm(done.vectors, axis=1)
    usable = is_unit(lengths)
    refused = done.refused + [
        Refused.at(place, product.product_id, ListingError("row", f"its vector has length {length}, not 1"))
        for (place, product), length, good in zip(done.products, lengths, usable, strict=True)
        if not good
    ]
    products = [product for (_, product), good in zip(done.products, usable, strict=True) if good]
    refused.sort(key=lambda row: row.place)
    return pack(write_shard(folder, done.shard, done.vectors[usable], products, refused, done.engine))


def pack(message: object) -> pa.Table:
    """A message as a table of one row; its arrays are copied once and never again."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    raw = pa.array([[array.raw() for array in arrays]], pa.list_(pa.large_binary()))
    return pa.table({"content": pa.array([content], pa.large_binary()), "arrays": raw})


def unpack(table: pa.Table) -> Any:
    """The message of a table; its arrays lie in the table and are read-only."""
    arrays = [array.as_buffer() for array in table["arrays"][0].values]
    return pickle.loads(table["content"][0].as_buffer(), buffers=arrays)


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def ray_session(job: Job) -> Iterator[None]:
    """Uses the Ray that runs in this process, or starts one, or joins the cluster that RAY_ADDRESS names.

    A cluster must share the file system. Ray's CPUs are only its count of what may run at once: every process of every
    stage gets one, so that none waits for another on a small machine. The stages decide how many threads really run.
    """
    starts = not ray.is_initialized()
    if starts:
        set_ray_defaults()
        num_waiting = job.num_workers + job.num_encoders + SHARDS_WAITING
        here = {
            "num_cpus": job.num_workers + job.num_encoders + 2,
            "num_gpus": job.num_gpus,
            "object_store_memory": MIN_OBJECT_STORE_BYTES + 2 * num_waiting * job.shard_rows * 3 * job.picture_size**2,
            "include_dashboard": False,
        }
        ray.init(**({} if "RAY_ADDRESS" in os.environ else here), log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # bytes: a block for each row
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well
    try:
        yield
    finally:
        if starts:
            ray.shutdown()
