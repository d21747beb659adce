"""Embeds a catalogue and makes an index of it: the batch job.

    python -m index.build --model M --catalog C --index DIR
    python -m index.build --model demo/model --catalog demo/shop --index demo/index      a minute on two cores
    MILVUS_TOKEN=user:password python -m index.build --model M --catalog C --index DIR --milvus http://milvus:19530

C is a catalogue file (Parquet, JSON lines, CSV), a folder with one or many, or a pattern such as 'shop/part-*.parquet'.
Rows that cannot be used are left out and listed in DIR/default/refused.jsonl; listings that come twice under one title
in DIR/default/twins.jsonl. Pictures may be URLs where their hosts
are allowed: --allow-host shop.example, or --allow-host '*.shop.example' for all hosts below it. A job that was
interrupted goes on where it was when it is started again with the same arguments. The collection appears in DIR/default
when it is whole, in place of the one that was there and of all that was written to that one, which is kept as the
generation before. With --milvus it appears there instead, and DIR holds the partial work and what was refused. Pictures
are taken as they are when they are read: the job notices a changed catalogue file or model, but not a changed picture.

On several machines: start a Ray cluster on them (`ray start`), share the folders of model, catalogue and index, and set
RAY_ADDRESS; --workers then counts the processes of all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import torch

from index.about import About
from index.choosing import Choice, add_choice
from index.exact import Vectors
from index.files import digest
from index.generations import NAME
from index.lease import Lease
from index.pipeline import Job, embed_catalog, num_cores
from index.product import Product
from index.shards import (
    Mark,
    Plan,
    agree_on_plan,
    discard_partial_work,
    is_complete,
    lock_partial_work,
    read_blocks,
    read_marks,
    read_plan,
    read_refused,
    remove_partial_work,
)
from index.store import Store, read_about
from index.twins import find_twins, write_twins
from item.catalog.listing import Listing
from item.catalog.reader import Refused, find_files, iterate_rows, raw_rows, write_refused
from item.engine import Engine, load_engine
from item.errors import CatalogError, ConfigError, ItemError, SpaceError, StoreError, UnavailableError
from item.fetching.hosts import AllowedHosts
from item.model.folder import resolve_folder
from item.progress import Progress

if TYPE_CHECKING:
    from index.milvus import MilvusStore

REFUSED_FILE, TWINS_FILE = "refused.jsonl", "twins.jsonl"
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to build.

    model: a model folder, or a hub repository as owner/name.
    catalog: a catalogue's file, the folder of its files, or a pattern that names them (item.catalog.reader.find_files).
    index: the folder that holds the collections.
    collection: the name of the one that is built.
    splits: only listings of these splits; empty for all.
    allow_hosts: hosts that pictures may be fetched from (item.fetching.hosts.AllowedHosts); none: URLs are refused.
    allow_private_addresses: whether these may be at addresses of an intranet or of this machine.
    shard_rows: rows that are done, or lost to an interruption, together.
    num_workers: processes that decode pictures, and on the CPU as many that encode; None: one for each core.
    variant: the model's variant that encodes (deploy.export makes them); None: full precision.
    device: where the encoder runs: "auto" (every GPU there is, else the CPU), "cpu" or "cuda".
    restart: discards the partial work of an interrupted job.
    replace: replaces an index of another space.
    milvus: the URI of a Milvus that holds the collection instead of `index`, which keeps the partial work.
    milvus_token: what Milvus asks for, as user:password.
    """

    model: str
    catalog: Path
    index: Path
    collection: str = "default"
    splits: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    allow_private_addresses: bool = False
    shard_rows: int = 256
    num_workers: int | None = None
    variant: str | None = None
    device: str = "auto"
    restart: bool = False
    replace: bool = False
    milvus: str | None = None
    milvus_token: str = field(default="", repr=False)
    recall: float = Choice().recall
    bytes_per_row: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("shard_rows", self.shard_rows), ("num_workers", self.num_workers)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is below 1")
        if self.device not in DEVICES:
            raise ConfigError(f"device: {self.device!r} is none of {', '.join(DEVICES)}")
        if not NAME.fullmatch(self.collection) or self.collection in (".", ".."):
            raise ConfigError(f"collection: {self.collection!r}; a name is letters, digits, dots, dashes, underscores")
        if not self.hosts.patterns and self.allow_private_addresses:
            raise ConfigError("allow_private_addresses: no host is allowed; add --allow-host")
        if self.choice != Choice() and self.milvus:
            raise ConfigError("recall, bytes_per_row: Milvus chooses its own index; leave them out")

    @property
    def hosts(self) -> AllowedHosts:
        """Those of `allow_hosts`. Raises ConfigError."""
        return AllowedHosts(self.allow_hosts)

    @property
    def choice(self) -> Choice:
        """Of indexes. Raises ConfigError."""
        return Choice(recall=self.recall, bytes_per_row=self.bytes_per_row)

    @property
    def folder(self) -> Path:
        """That of the collection, or of its partial work."""
        return self.index / self.collection

    def __str__(self) -> str:
        """Where the collection is."""
        return f"{self.collection!r} in Milvus" if self.milvus else str(self.folder)

    def read_about(self) -> About | None:
        """What the collection holds, None where there is none or it is damaged. Raises UnavailableError."""
        try:
            if self.milvus is None:
                return read_about(self.folder)
            with milvus_store().open(self.milvus, self.collection, token=self.milvus_token) as store:
                return store.about
        except UnavailableError:
            raise
        except StoreError:
            return None

    def create(self, about: About, blocks: Iterable[tuple[Sequence[Product], Vectors]]) -> int:
        """Makes the collection of blocks of products and vectors, (n, D). Returns its products."""
        with (
            Store.create(self.folder, about, blocks, choice=self.choice)
            if self.milvus is None
            else milvus_store().create(self.milvus, self.collection, about, blocks, token=self.milvus_token)
        ) as store:
            return len(store)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a job did.

    num_rows: of the catalogue, num_refused of them left out, num_products of them in the collection. num_twins: groups
    of listings that are there more than once (index.twins). num_embedded:
    listings embedded in this run, in embed_s seconds with the start of its processes. steady_rate: listings a second
    between the first finished shard and the last; NaN where fewer than two were embedded.
    """

    about: About
    num_products: int
    num_rows: int
    num_refused: int
    num_twins: int
    num_embedded: int
    embed_s: float
    steady_rate: float

    def lines(self) -> str:
        """The summary for people."""
        about, elsewhere = self.about, self.num_rows - self.num_refused - self.num_products
        rows = f"{self.num_products:,} of {self.num_rows:,} rows"
        if about.splits:
            rows += f", {elsewhere:,} of other splits than {', '.join(about.splits)}"
        if self.num_refused:
            rows += f", {self.num_refused:,} refused: see {REFUSED_FILE}"
        twins = f", {self.num_twins:,} groups of twins: see {TWINS_FILE}" if self.num_twins else ""
        done = f"{self.num_embedded:,} listings in {self.embed_s:.1f} s"
        if not math.isnan(self.steady_rate):
            done += f", {self.steady_rate:,.1f} listings/s once it ran"
        return (
            f"index     {rows}{twins}\n"
            f"vectors   width {about.vector_width}, space {about.space[:12]}, {about.engine}\n"
            f"embedded  {done}"
        )


def milvus_store() -> type[MilvusStore]:
    """The class, which needs Milvus's client. Raises ConfigError where that is not installed."""
    try:
        from index.milvus import MilvusStore
    except ModuleNotFoundError as error:
        raise ConfigError(f"milvus: {error}; install the extra: pip install 'item-embeddings[milvus]'") from error
    return MilvusStore


def build(config: BuildConfig) -> Summary | None:
    """Builds the index; None where it is there already, of this catalogue in this space.

    Raises:
        ItemError: its kinds say whether it is the model, the catalogue, the index folder, or a space that differs.
    """
    catalog = find_files(config.catalog)
    for file in catalog:
        next(raw_rows([file]), None)  # a file that cannot be read at all is found before anything is started
    next(iterate_rows(catalog))
    before = states(catalog)
    engine = load_engine(config.model, "cpu", variant=config.variant)
    plan = Plan(
        space=engine.space,
        catalog_sha256=catalog_digest(catalog),
        splits=config.splits,
        hosts=config.hosts.patterns,
        shard_rows=config.shard_rows,
    )
    check_replaceable(config, plan)
    with lock_partial_work(config.folder) as folder:
        Lease.acquire(config.folder).release()  # who writes to it now is known before the work, not after
        if config.restart:
            discard_partial_work(folder)
        if is_built(config, plan):
            if read_plan(folder) in (None, plan):
                remove_partial_work(folder)
            return None
        agree_on_plan(folder, plan)
        marks = read_marks(folder)
        num_before, start, steady_rate = num_embedded(marks), time.monotonic(), math.nan
        if not is_complete(marks):
            steady_rate = embed(make_job(config, catalog, engine, folder), marks)
        embed_s = time.monotonic() - start
        if states(find_files(config.catalog)) != before:
            raise CatalogError(f"{config.catalog}: changed while it was read; start again with --restart")
        about, num_products, num_twins = publish(config, plan, folder, marks, engine.vector_width)
        remove_partial_work(folder)
    return Summary(
        about=about,
        num_products=num_products,
        num_rows=max(mark.shard.end_row for mark in marks.values()),
        num_refused=sum(mark.num_refused for mark in marks.values()),
        num_twins=num_twins,
        num_embedded=num_products - num_before,
        embed_s=embed_s,
        steady_rate=steady_rate,
    )


def states(files: Sequence[Path]) -> list[tuple[Path, int, int]]:
    """Of each file what changes when it is written: path, size, time."""
    return [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def catalog_digest(files: Sequence[Path]) -> str:
    """The sha256 of a file; of several that of their names and digests, in order."""
    if len(files) == 1:
        return digest(files[0]).sha256
    base = os.path.commonpath([file.parent for file in files])
    lines = [f"{digest(file).sha256} {file.relative_to(base).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def make_job(config: BuildConfig, catalog: Sequence[Path], engine: Engine, folder: Path) -> Job:
    """What the workers need to know. Raises ConfigError for a device that is not there."""
    return Job(
        model=resolve_folder(config.model).resolve(),
        variant=config.variant,
        space=engine.space,
        catalog=tuple(file.absolute() for file in catalog),  # not resolved: pictures lie beside a file that is a link
        hosts=config.hosts,
        private_addresses=config.allow_private_addresses,
        splits=config.splits,
        has_splits=has_splits(catalog, bool(config.allow_hosts)) if config.splits else False,
        shard_rows=config.shard_rows,
        picture_size=engine.preprocessor.config.picture_size,
        num_workers=config.num_workers or num_cores(),
        num_gpus=count_gpus(config.device),
        folder=folder.resolve(),
    )


def embed(job: Job, marks: dict[int, Mark]) -> float:
    """Embeds the shards that have no mark, and adds theirs. Returns the steady rate, see `Summary`."""
    finished: list[tuple[float, int]] = []  # when, how many listings
    num_done = sum(mark.shard.end_row - mark.shard.first_row for mark in marks.values())
    if num_done:
        print(f"going on: {num_done:,} rows are done", file=sys.stderr)
    with (
        closing(Progress("indexing", count_rows(job.catalog), "rows", initial=num_done)) as progress,
        closing(embed_catalog(job, done=frozenset(marks))) as embedded,
    ):
        for mark in embedded:
            marks[mark.shard.number] = mark
            finished.append((time.monotonic(), mark.count))
            progress.update(mark.shard.end_row - mark.shard.first_row)
    if not is_complete(marks):
        raise StoreError(f"{job.folder}: {len(marks)} shards are done, but not all; start again to go on")
    if len(finished) < 2:
        return math.nan
    return sum(count for _, count in finished[1:]) / (finished[-1][0] - finished[0][0])


def publish(
    config: BuildConfig, plan: Plan, folder: Path, marks: dict[int, Mark], vector_width: int
) -> tuple[About, int, int]:
    """Makes a generation of the shards. Returns what it is, its products, and groups of twins.

    Raises CatalogError where there are no products.
    """
    write_refused(read_refused(folder, marks), config.folder / REFUSED_FILE)
    if num_embedded(marks) == 0:
        reason = why_empty(read_refused(folder, marks), plan.splits)
        remove_partial_work(folder)
        raise CatalogError(f"{config.catalog}: nothing to index: {reason}")
    about = About(
        space=plan.space,
        model=config.model,
        engine=", ".join(sorted({mark.engine for mark in marks.values()})),
        vector_width=vector_width,
        catalog=str(config.catalog),
        catalog_sha256=plan.catalog_sha256,
        splits=plan.splits,
        hosts=plan.hosts,
    )
    num_twins = write_twins(find_twins(folder, marks), config.folder / TWINS_FILE)
    return about, config.create(about, read_blocks(folder, marks)), num_twins


def why_empty(refused: Iterable[Refused], splits: Sequence[str]) -> str:
    """What became of the rows where none was embedded."""
    reasons = Counter((row.field, row.reason) for row in refused)
    if not reasons:
        return f"no listing is of the splits {', '.join(splits)}"
    (field, reason), count = reasons.most_common(1)[0]
    return f"{reasons.total():,} rows are refused (see {REFUSED_FILE}), {count:,} of them for: {field}: {reason}"


def is_built(config: BuildConfig, plan: Plan) -> bool:
    """Whether there is a whole collection of what is planned."""
    about = config.read_about()
    planned = (plan.space, plan.catalog_sha256, plan.splits, plan.hosts)
    return about is not None and (about.space, about.catalog_sha256, about.splits, about.hosts) == planned


def check_replaceable(config: BuildConfig, plan: Plan) -> None:
    """Raises SpaceError where an index of another space would be lost. A damaged index may always be replaced."""
    about = config.read_about()
    if about is not None and about.space != plan.space and not config.replace:
        raise SpaceError(
            f"{config}: holds an index of space {about.space[:12]} (model {about.model}), and"
            f" {config.model} is of space {plan.space[:12]}; give another folder, or add --replace"
        )


def num_embedded(marks: dict[int, Mark]) -> int:
    """Listings in these shards."""
    return sum(mark.count for mark in marks.values())


def has_splits(catalog: Sequence[Path], urls: bool) -> bool:
    """Whether the catalogue itself names splits; where it does, the first rows usually show it."""
    return any(isinstance(row, Listing) and row.split is not None for _, row in iterate_rows(catalog, urls=urls))


def count_rows(catalog: Sequence[Path]) -> int:
    """The catalogue's rows; of CSV and JSON lines its lines, which may be more. For the progress alone."""
    return sum(map(count_rows_of, catalog))


def count_rows_of(file: Path) -> int:
    """Those of one file."""
    if file.suffix.lower() == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    with file.open("rb") as lines:
        return sum(1 for _ in lines)


def count_gpus(device: str) -> int:
    """GPUs to encode on; 0: the CPU. Raises ConfigError for "cuda" where there is none."""
    num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and num_gpus == 0:
        raise ConfigError("device: 'cuda', but this machine has no GPU that torch can use; give --device cpu")
    return num_gpus


def parser() -> argparse.ArgumentParser:
    """The command line; its names are the fields of `BuildConfig`."""
    described = argparse.ArgumentParser(prog="python -m index.build", description="Embed a catalogue and index it.")
    add = described.add_argument
    add("--model", required=True, help="model folder, or a hub repository as owner/name")
    add("--catalog", required=True, type=Path, help="catalogue file, folder of files, or pattern")
    add("--index", required=True, type=Path, help="folder of the collections")
    add("--collection", default=BuildConfig.collection, help="name of the one that is built (%(default)s)")
    add("--split", dest="splits", type=split_names, default=(), help="only these splits, for instance train,val")
    add(
        "--allow-host", dest="allow_hosts", action="append", default=[], help="fetch pictures from it; *. for all below"
    )
    add("--allow-private-addresses", action="store_true", help="these hosts may be of an intranet or this machine")
    add("--shard-rows", type=int, default=BuildConfig.shard_rows, help="rows done together (%(default)s)")
    add("--workers", dest="num_workers", type=int, help="decoders, and on the CPU as many encoders (one for each core)")
    add("--variant", help="a variant of the model that deploy.export made (full precision)")
    add("--device", choices=DEVICES, default="auto", help="where the encoder runs (%(default)s)")
    add("--restart", action="store_true", help="discard the partial work of an interrupted job")
    add("--replace", action="store_true", help="replace an index of another space")
    add("--milvus", metavar="URI", help="make the collection in Milvus; its token is in MILVUS_TOKEN")
    add_choice(described)
    return described


def split_names(text: str) -> tuple[str, ...]:
    """ "train,val" -> the names, in a fixed order."""
    return tuple(sorted({name.strip() for name in text.split(",")} - {""}))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        allowed = {"allow_hosts": tuple(arguments.allow_hosts), "milvus_token": os.environ.get("MILVUS_TOKEN", "")}
        config = BuildConfig(**vars(arguments) | allowed)
        summary = build(config)
    except (ItemError, OSError) as error:  # OSError: what a full disk or a missing permission raises
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start again with the same arguments to go on", file=sys.stderr)
        return 130
    print(summary.lines() if summary else f"{config}: holds this catalogue in this space already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
