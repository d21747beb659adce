# ruff: noqa: N802  (the names are the contract's)
"""What the operators of a running server call: adapters, the model loaded anew, another model for a collection, the way
back, a copy.

It is slow work, in threads of its own: searches and writes go on meanwhile. Of a collection one Reembed,
SwitchGeneration or Rollback runs at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deploy.adapters import adapter_info, all_adapters, load_adapter, unload_adapter
from deploy.collections import DEFAULT
from deploy.errors import ExistsError, InvalidRequestError, NotFoundError, NotServingError, PreconditionError
from deploy.handlers import Handlers, model_info
from deploy.service import LOADING_RETRY_S
from index.about import About
from index.files import BESIDE
from index.generations import NAME, Generations, read_generations
from index.overlap import Sample
from index.pictures import Pictures
from index.product import Product
from index.reembed import ChangeOver, Progress, Reencoder, RefusedError, is_finished, reembed
from index.store import Store
from index.truth import Truth, read_level
from item.catalog.reader import find_files
from item.engine.interface import Engine
from item.engine.loading import warm_up
from item.errors import CatalogError, StoreError
from item.fetching.fetcher import Fetcher
from item.fetching.hosts import AllowedHosts, is_public, is_public_or_intranet
from item.v1 import item_pb2, item_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]  # generic in its stubs alone

logger = logging.getLogger(__name__)

MAX_CALLS = 16  # that run at once, one a collection and backups; further ones wait
MAX_REFUSED = 100  # products that a response names
PROGRESS_EVERY_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """The generation that is searched now, that of before, and the store of it, to close when its calls have ended."""

    generation: str
    previous: str
    num_encoded: int
    before: Store


class AdminHandlers:
    """The rpcs as functions of a request, without a word of gRPC; what is wrong is raised as a RequestError.

    backups: the folder that backups go to; None: there is none. private_addresses: whether pictures may be fetched from
    those of an intranet or of this machine.
    """

    def __init__(self, handlers: Handlers, backups: Path | None, *, private_addresses: bool = False) -> None:
        self.handlers, self.backups, self.private_addresses = handlers, backups, private_addresses
        self._busy: dict[tuple[str, str], threading.Event] = {}  # what runs, and whether it was told to stop
        self._ended = threading.Condition()

    def list_adapters(self, request: item_pb2.ListAdaptersRequest) -> item_pb2.ListAdaptersResponse:
        """The adapters of the model folder."""
        return item_pb2.ListAdaptersResponse(adapters=all_adapters(self.handlers.engine))

    def load_adapter(self, request: item_pb2.LoadAdapterRequest) -> item_pb2.LoadAdapterResponse:
        """Loads an adapter, and warms it up."""
        engine = self.handlers.engine
        load_adapter(engine, adapter_name(request))
        warm_up(engine)
        logger.info("adapter %r is loaded", request.name)
        return item_pb2.LoadAdapterResponse(adapter=adapter_info(engine, request.name))

    def unload_adapter(self, request: item_pb2.UnloadAdapterRequest) -> item_pb2.UnloadAdapterResponse:
        """Unloads an adapter."""
        engine = self.handlers.engine
        unload_adapter(engine, adapter_name(request))
        logger.info("adapter %r is unloaded", request.name)
        return item_pb2.UnloadAdapterResponse(adapter=adapter_info(engine, request.name))

    def reload(self, request: item_pb2.ReloadRequest) -> item_pb2.ReloadResponse:
        """Loads the folder of the model anew, and serves what it holds by now."""
        before = self.handlers.engine
        folder = before.adapters.model
        with self._alone(str(folder), "is being loaded anew", kind="model"):
            engine = self.handlers.load_model(
                str(folder), request.variant if request.HasField("variant") else before.variant
            )
            self.handlers.check_replaceable(before, engine)
            warm_up(engine)
            self.handlers.replace_engine(before, engine)
        logger.info("model: %s is loaded anew, engine=%r space=%s", folder, engine.name, engine.space)
        return item_pb2.ReloadResponse(model=model_info(engine))

    def reembed(self, request: item_pb2.ReembedRequest, stop: threading.Event) -> Iterator[item_pb2.ReembedResponse]:
        """Encodes a collection anew, saying now and then how far it is, until `stop`."""
        start = last = time.monotonic()
        rate = request.max_rate if request.HasField("max_rate") else None
        if rate is not None and not 0 < rate < math.inf:
            raise InvalidRequestError("max_rate", f"{rate} is not above 0 and finite")
        name = request.collection or DEFAULT
        with self._alone(name, "is being encoded anew or changed over", stop), store_errors():
            store = self._local(name)
            model, variant = request.model, request.variant
            if not model:
                model, variant = store.about.model, variant or store.about.variant
            engine = self.handlers.load_model(model, variant)
            catalog = catalog_of(store, request.catalog)
            about = About(
                space=engine.space,
                vector_width=engine.vector_width,
                model=str(Path(model).absolute()),
                variant=variant,
                engine=engine.name,
                catalog=request.catalog or store.about.catalog,
                catalog_sha256=store.about.catalog_sha256,
                splits=store.about.splits,
                hosts=store.about.hosts,
            )
            with (
                self._reencoder(store, about, engine, catalog, request.words_alone) as reencoder,
                closing(reembed(store, about, reencoder, stop, rate)) as steps,
            ):
                first = True
                for step in steps:
                    now = time.monotonic()
                    if first or step.done or step.refused or now - last >= PROGRESS_EVERY_S:
                        yield reembed_response(step, now - start)
                        first, last = False, now

    def switch_generation(self, request: item_pb2.SwitchGenerationRequest) -> Changed:
        """Lets the generation that is coming count."""
        name = request.collection or DEFAULT
        with self._alone(name, "is being encoded anew or changed over"), store_errors():
            store = self._local(name)
            generation = self._finished(store, request.generation)
            about = about_of(store, generation)
            engine, catalog = self._ready_engine(about), find_again(about.catalog)
            with self._reencoder(store, about, engine, catalog, request.words_alone) as reencoder:
                return self._change(name, store, generation, engine, reencoder)

    def rollback(self, request: item_pb2.RollbackRequest) -> Changed:
        """Lets the generation before count again."""
        name = request.collection or DEFAULT
        with self._alone(name, "is being encoded anew or changed over"), store_errors():
            store = self._local(name)
            generation = read_generations(store.folder).previous
            if not generation:
                raise PreconditionError("collection", f"{name!r} has no generation before the present one")
            about, level = about_of(store, generation), read_level(store.folder / generation)
            if not request.discard_writes and (level is None or level.source != store.generation):
                raise PreconditionError(
                    "discard_writes",
                    f"{generation} was not the source of {store.generation}: what was written since cannot be told from"
                    " the rest; set it to go back to the products as they were then",
                )
            engine, catalog = self._ready_engine(about, request.model), find_again(about.catalog)
            with self._reencoder(store, about, engine, catalog, request.words_alone) as reencoder:
                return self._change(name, store, generation, engine, None if request.discard_writes else reencoder)

    def backup(self, request: item_pb2.BackupRequest) -> item_pb2.BackupResponse:
        """Copies a collection to a folder of its own."""
        if self.backups is None:
            raise PreconditionError("", "this server has no folder for backups; start it with --backups DIR")
        name = request.name
        if not NAME.fullmatch(name) or name.startswith(".") or name.endswith(BESIDE):
            raise InvalidRequestError(
                "name",
                f"{name!r} is none; give 1 to 128 letters, digits, dots, dashes and underscores, no dot at the start"
                f" and no {BESIDE} at the end",
            )
        store = self._local(request.collection)
        folder = self.backups / name
        with self._alone(name, "is being written", kind="backup"), store_errors():
            if folder.exists():
                raise ExistsError("name", f"{name!r} is there already; give a new name")
            num_products = store.backup(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        logger.info("backup: %s holds %d products, %d bytes", folder, num_products, size)
        return item_pb2.BackupResponse(path=str(folder.absolute()), num_products=num_products, size_bytes=size)

    def _local(self, name: str) -> Store:
        """A collection of this machine, to write. Raises RequestError for one in Milvus, or that is only read."""
        store, _ = self.handlers.writable(name)
        if not isinstance(store, Store):
            raise PreconditionError(
                "collection", "is in Milvus, which has its own copies; build it again for a new model"
            )
        return store

    def _finished(self, store: Store, generation: str) -> str:
        """The generation to switch to. Raises RequestError for one that is not there, or not finished."""
        there = read_generations(store.folder)
        name = generation or there.coming
        if not name:
            raise PreconditionError("generation", "none is finished; call Reembed first")
        if name == there.current:
            raise PreconditionError("generation", f"{name!r} is searched already")
        if name == there.previous:
            raise PreconditionError("generation", f"{name!r} is the one before; call Rollback to return to it")
        if name != there.coming:
            raise NotFoundError("generation", f"{name!r} is not there; {known(there)}")
        if not is_finished(store.folder / name):
            raise PreconditionError(
                "generation", f"{name!r} is not finished; call Reembed again, which goes on with it"
            )
        return name

    @contextmanager
    def _reencoder(
        self, store: Store, about: About, engine: Engine, catalog: Sequence[Path], words_alone: bool
    ) -> Iterator[Reencoder]:
        """Fetches pictures from the hosts that the collection's own were fetched from, and from no others."""
        with ExitStack() as held:
            fetcher = None
            if about.hosts:
                is_allowed = is_public_or_intranet if self.private_addresses else is_public
                max_bytes = engine.preprocessor.config.max_picture_bytes
                fetcher = held.enter_context(
                    Fetcher(AllowedHosts(about.hosts), max_bytes=max_bytes, is_allowed=is_allowed)
                )
            pictures = Pictures(store.folder, catalog, fetcher)
            yield Reencoder(engine=engine, pictures=pictures, words_alone=words_alone)

    def _ready_engine(self, about: About, model: str = "") -> Engine:
        engine = self.handlers.engine_of(about, model)
        warm_up(engine)
        return engine

    def _change(self, name: str, store: Store, generation: str, engine: Engine, reencoder: Reencoder | None) -> Changed:
        with closing(ChangeOver(store, generation, reencoder)) as change:
            try:
                change.prepare()
                before = self.handlers.change(name, engine, change.finish)
            except RefusedError as error:
                way_out = "write them again, delete them, or set words_alone"
                raise PreconditionError("words_alone", f"{error}; {way_out}") from error
        logger.info("collection %r: %s is searched in place of %s", name, generation, before.generation)
        return Changed(generation=generation, previous=before.generation, num_encoded=change.num_encoded, before=before)

    @contextmanager
    def _alone(
        self, name: str, doing: str, stop: threading.Event | None = None, kind: str = "collection"
    ) -> Iterator[None]:
        """Refuses what would come into the way of another call; waits for one that was told to stop."""
        with self._ended:
            while (other := self._busy.get((kind, name))) is not None:
                if not other.is_set():
                    reason = f"the {kind} {name!r} {doing} by another call; wait for it, or cancel it"
                    raise PreconditionError("", reason)
                self._ended.wait()
            self._busy[kind, name] = stop or threading.Event()
        try:
            yield
        finally:
            with self._ended:
                del self._busy[kind, name]
                self._ended.notify_all()


class AdminService(item_pb2_grpc.AdminServiceServicer):
    """Answers UNAVAILABLE until `handlers` is set."""

    def __init__(self, drain: Callable[[], Awaitable[None]]) -> None:
        """drain: waits for the calls that may use a store that was replaced, or an adapter that was unloaded."""
        self.drain = drain
        self.handlers: AdminHandlers | None = None
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="admin")
        self._reembeddings: set[_Steps] = set()
        self._changes: set[asyncio.Task[Changed]] = set()

    async def ListAdapters(
        self, request: item_pb2.ListAdaptersRequest, context: Context
    ) -> item_pb2.ListAdaptersResponse:
        return await self._run(partial(self._loaded().list_adapters, request))

    async def LoadAdapter(self, request: item_pb2.LoadAdapterRequest, context: Context) -> item_pb2.LoadAdapterResponse:
        return await self._run(partial(self._loaded().load_adapter, request))

    async def UnloadAdapter(
        self, request: item_pb2.UnloadAdapterRequest, context: Context
    ) -> item_pb2.UnloadAdapterResponse:
        unloaded = await self._run(partial(self._loaded().unload_adapter, request))
        await self.drain()
        return unloaded

    async def Reload(self, request: item_pb2.ReloadRequest, context: Context) -> item_pb2.ReloadResponse:
        return await self._run(partial(self._loaded().reload, request))

    async def Reembed(
        self, request: item_pb2.ReembedRequest, context: Context
    ) -> AsyncIterator[item_pb2.ReembedResponse]:
        steps = _Steps(partial(self._loaded().reembed, request))
        self._reembeddings.add(steps)
        running = self._threads.submit(steps.run)
        try:
            while (step := await steps.queue.get()) is not None:
                yield step
            await asyncio.wrap_future(running)
            if steps.stop.is_set():
                raise NotServingError("the server is stopping; call again, which goes on where it was", LOADING_RETRY_S)
        finally:  # the caller has gone, or all is said
            steps.stop.set()
            self._reembeddings.discard(steps)

    async def SwitchGeneration(
        self, request: item_pb2.SwitchGenerationRequest, context: Context
    ) -> item_pb2.SwitchGenerationResponse:
        changed = await self._change(partial(self._loaded().switch_generation, request))
        return item_pb2.SwitchGenerationResponse(
            generation=changed.generation, previous_generation=changed.previous, num_encoded=changed.num_encoded
        )

    async def Rollback(self, request: item_pb2.RollbackRequest, context: Context) -> item_pb2.RollbackResponse:
        changed = await self._change(partial(self._loaded().rollback, request))
        return item_pb2.RollbackResponse(
            generation=changed.generation, previous_generation=changed.previous, num_encoded=changed.num_encoded
        )

    async def Backup(self, request: item_pb2.BackupRequest, context: Context) -> item_pb2.BackupResponse:
        return await self._run(partial(self._loaded().backup, request))

    def stop(self) -> None:
        """Ends what goes on where it was another time."""
        for steps in self._reembeddings:
            steps.stop.set()

    async def close(self) -> None:
        """Waits for what runs."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)

    async def _change(self, change: Callable[[], Changed]) -> Changed:
        """Changes over to the end, even if nobody waits any more, and closes the store of before."""

        async def whole() -> Changed:
            changed = await self._run(change)
            await self.drain()
            await self._run(changed.before.close)
            return changed

        task = asyncio.create_task(whole())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._threads.submit(call))

    def _loaded(self) -> AdminHandlers:
        if self.handlers is None:
            raise NotServingError("the server is loading its model; come again later", LOADING_RETRY_S)
        return self.handlers


class _Steps:
    """A function's steps, run in another thread, for a coroutine to await: `queue` has them, and None at the end."""

    def __init__(self, steps: Callable[[threading.Event], Iterator[item_pb2.ReembedResponse]]) -> None:
        self.steps, self.stop = steps, threading.Event()
        self.queue: asyncio.Queue[item_pb2.ReembedResponse | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def run(self) -> None:
        try:
            for step in self.steps(self.stop):
                self._loop.call_soon_threadsafe(self.queue.put_nowait, step)
        finally:
            self._loop.call_soon_threadsafe(self.queue.put_nowait, None)


@contextmanager
def store_errors() -> Iterator[None]:
    """What is wrong with folders and disks is the operator's to put right: its message goes to the caller."""
    try:
        yield
    except (StoreError, OSError) as error:
        raise PreconditionError("", str(error)) from error


def adapter_name(request: item_pb2.LoadAdapterRequest | item_pb2.UnloadAdapterRequest) -> str:
    """The adapter that is meant. Raises InvalidRequestError."""
    if not request.name:
        raise InvalidRequestError("name", "is empty; give an adapter's name")
    return request.name


def catalog_of(store: Store, given: str) -> tuple[Path, ...]:
    """The catalogue to read pictures in: the one that is given, or that of the generation if it is still there."""
    if not given:
        return find_again(store.about.catalog)
    try:
        return find_files(given)
    except CatalogError as error:
        raise InvalidRequestError("catalog", str(error)) from error


def find_again(catalog: str) -> tuple[Path, ...]:
    """The files of a generation's catalogue, if they are still there."""
    if not catalog:
        return ()
    try:
        return find_files(catalog)
    except CatalogError:
        return ()


def about_of(store: Store, generation: str) -> About:
    """What another generation of a collection holds."""
    with closing(Truth(store.folder / generation, writable=False)) as truth:
        return truth.about


def known(generations: Generations) -> str:
    """The generations that there are, for people."""
    named = (("current", generations.current), ("before", generations.previous), ("coming", generations.coming))
    return ", ".join(f"{name!r} ({role})" for role, name in named if name)


def reembed_response(step: Progress, elapsed_s: float) -> item_pb2.ReembedResponse:
    """How far encoding anew is."""
    overlap = step.overlap
    return item_pb2.ReembedResponse(
        generation=step.generation,
        num_encoded=step.num_encoded,
        num_products=step.num_products,
        elapsed_s=elapsed_s,
        done=step.done,
        num_refused=len(step.refused),
        refused=[
            item_pb2.RefusedProduct(product_id=product_id, reason=reason)
            for product_id, reason in islice(step.refused.items(), MAX_REFUSED)
        ],
        num_words_alone=step.num_words_alone,
        overlap_at_10=None if overlap is None else overlap.value,
        samples=[] if overlap is None else [sample_message(one) for one in overlap.samples],
    )


def sample_message(sample: Sample) -> item_pb2.OverlapSample:
    """A product with its nearest ones."""
    return item_pb2.OverlapSample(
        product=named_message(sample.product),
        overlap=sample.overlap,
        before=[named_message(one) for one in sample.before],
        after=[named_message(one) for one in sample.after],
    )


def named_message(product: Product) -> item_pb2.Product:
    """Id and title of a product."""
    return item_pb2.Product(product_id=product.product_id, title=product.title)
