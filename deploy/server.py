"""The gRPC server: a model, an index where there is one, health and reflection.

    python -m deploy.server --model M                        vectors alone
    python -m deploy.server --model M --index INDEX          search, categories and writing as well
    python -m deploy.server --model M --index INDEX --read-only
    python -m deploy.server --model M --index INDEX --variant int8
    python -m deploy.server --model M --adapters 500
    python -m deploy.server --model M --index INDEX --backups DIR
    python -m deploy.server --model M --index INDEX --host 0.0.0.0 --port 50051
    MILVUS_TOKEN=user:password python -m deploy.server --model M --milvus http://milvus:19530

INDEX has a folder for each collection. It listens at once and answers UNAVAILABLE, health NOT_SERVING, until model and
index are loaded. SIGTERM and SIGINT end it gracefully: health says NOT_SERVING, calls in flight get a grace period, the
exit status is 0. One process writes to a collection: while another does, as in a rolling restart, this one reads it,
answers writes UNAVAILABLE, and takes over when that one has ended. Any number of servers may be --read-only beside it.
Collections in Milvus may be written to by any number of servers.

The adapters of the model folder are read before it serves, as many as --adapters says; others are read when they are
first named, in place of the one that was named longest ago. Where categories are predicted by heads, let all fit.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from deploy.admin import AdminHandlers, AdminService
from deploy.collections import Collections
from deploy.errors import Deadline
from deploy.handlers import TAKE_OVER_RETRY_S, Handlers, Limits
from deploy.interceptor import StatusInterceptor
from deploy.service import ItemService
from deploy.worker import Worker
from index.choosing import Choice, add_choice
from index.gpu import find_gpu
from index.store import CHOICE
from item.engine.interface import Engine
from item.engine.loading import load_engine, warm_up
from item.errors import ConfigError, ItemError
from item.v1 import item_pb2_grpc

logger = logging.getLogger(__name__)

SERVICES = ("item.v1.ItemService", "item.v1.AdminService")
HEALTH_NAMES = ("", SERVICES[0])
MIB = 2**20

Loaded = tuple[Engine, Collections]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a server listens and how much it takes on.

    Args:
        host: the address to listen on; 0.0.0.0 for all.
        port: 0 takes a free one.
        limits: what one call may ask for.
        max_waiting: calls that may wait for the model before further ones are refused.
        grace_s: how long calls in flight may go on once the server is told to stop.
        backups: the folder that Backup writes to; None: there is none.
        allow_private_addresses: whether Reembed may fetch pictures from those of an intranet or of this machine.
        device, num_threads: where models run (item.engine.loading), and where the index is searched (index.gpu).
        num_adapters: adapters of a model that are kept in memory.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    limits: Limits = field(default_factory=Limits)
    max_waiting: int = 64
    grace_s: float = 10.0
    backups: Path | None = None
    allow_private_addresses: bool = False
    device: str = "auto"
    num_threads: int | None = None
    num_adapters: int = 64

    def __post_init__(self) -> None:
        if self.num_adapters < 1:
            raise ConfigError(f"num_adapters: {self.num_adapters} is below 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} is not within 0 to 65535")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting: {self.max_waiting} is below 0")
        if not 0 <= self.grace_s < float("inf"):
            raise ConfigError(f"grace_s: {self.grace_s} is below 0 or endless")


class Server:
    """Binds its port when it is made, inside a running event loop; `start`, then `serve`, then `stop`."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.worker = Worker("model", config.max_waiting)
        self.reader = Worker("reader", config.max_waiting)
        self.service = ItemService(self.worker, self.reader)
        self.admin = AdminService(self.drain)
        self.collections = Collections({})
        self._stopping = asyncio.Event()
        self._taking_over: asyncio.Task[None] | None = None
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stubs know threads alone
        options = [
            ("grpc.max_receive_message_length", config.limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared in silence
        ]
        self.grpc = grpc.aio.server(interceptors=[StatusInterceptor()], options=options)
        item_pb2_grpc.add_ItemServiceServicer_to_server(self.service, self.grpc)
        item_pb2_grpc.add_AdminServiceServicer_to_server(self.admin, self.grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc)
        self.port = self._bind()

    async def start(self) -> None:
        """Listens; calls are answered UNAVAILABLE until `serve`."""
        if self.service.handlers is None:
            await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.grpc.start()

    async def load(self, load: Callable[[], Loaded]) -> Handlers:
        """Loads model and index in the model's thread, and serves them. Raises what loading raises, and SpaceError."""
        engine, collections = (await self.worker.run(load, Deadline())).result
        return await self.serve(engine, collections)

    async def serve(self, engine: Engine, collections: Collections) -> Handlers:
        """Answers from now on; `stop` closes the collections. Raises SpaceError for one of another model."""
        self.collections = collections
        config = self.config

        handlers = await asyncio.to_thread(
            Handlers,
            engine,
            collections,
            config.limits,
            read_only=collections.read_only,
            load=partial(load_model, config),
        )
        self.service.handlers = handlers
        self.admin.handlers = AdminHandlers(handlers, config.backups, private_addresses=config.allow_private_addresses)
        self._taking_over = asyncio.create_task(self._take_over())
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return handlers

    async def stop(self) -> None:
        """Takes no further calls, lets those in flight finish within the grace period, closes the collections."""
        await self.health.enter_graceful_shutdown()
        self.admin.stop()
        await self.grpc.stop(self.config.grace_s)
        self._stopping.set()
        if self._taking_over is not None:
            await self._taking_over
        await self.admin.close()
        for close in (self.worker.close, self.reader.close, self.collections.close):
            await asyncio.to_thread(close)

    async def _take_over(self) -> None:
        """Lets collections be written to as soon as other processes have stopped writing to them."""
        while awaited := self.collections.awaited():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TAKE_OVER_RETRY_S)
                return
            for name in awaited:
                try:
                    before = await asyncio.to_thread(self.collections.take_over, name)
                except (ItemError, OSError) as error:
                    logger.error("collection %r cannot be written to: %s", name, error)
                    continue
                if before is not None:
                    await self.drain()
                    await asyncio.to_thread(before.close)

    async def drain(self) -> None:
        """Waits for the calls that began before, and use a store that was replaced."""
        await self.worker.drain()
        await self.reader.drain()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in HEALTH_NAMES:
            await self.health.set(name, status)

    def _bind(self) -> int:
        host, port = self.config.host, self.config.port
        try:
            return self.grpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise ConfigError(f"port: cannot listen on {host}:{port}; is it taken? choose another --port") from error


async def create_server(
    config: ServerConfig, engine: Engine, collections: Collections | None = None
) -> tuple[Server, int]:
    """A server over a loaded engine and collections, which it closes when it stops; not started yet. And its port."""
    server = Server(config)
    await server.serve(engine, Collections({}) if collections is None else collections)
    return server, server.port


async def run(config: ServerConfig, load: Callable[[], Loaded]) -> None:
    """Listens, loads, serves until SIGTERM or SIGINT, and stops gracefully."""
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    server = Server(config)
    await server.start()
    logger.info("listening on %s:%d, loading", config.host, server.port)
    loading, stopping = asyncio.create_task(server.load(load)), asyncio.create_task(told_to_stop.wait())
    try:
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            log_start(config.host, server.port, loading.result())
        await stopping
        logger.info("stopping: calls in flight have %g s", config.grace_s)
    finally:
        stopping.cancel()
        await server.stop()
    logger.info("stopped")


def load_model(config: ServerConfig, model: str | Path, variant: str | None) -> Engine:
    """The engine of a model, with its heads and adapters in memory; adapters that cannot be used are logged.

    Raises:
        ModelError: the model or its heads cannot be used.
    """
    engine = load_engine(model, config.device, config.num_threads, variant, config.num_adapters)
    logger.info("categories are predicted by %s", "votes" if engine.heads is None else "heads")
    for name, fault in engine.adapters.preload().items():
        logger.error("adapter %r cannot be used: %s", name, fault)
    return engine


def log_start(host: str, port: int, handlers: Handlers) -> None:
    """One line that says what is served and where."""
    engine = handlers.engine
    logger.info(
        "serving address=%s:%d engine=%r space=%s width=%d adapters=%d collections=%s",
        *(host, port, engine.name, engine.space, engine.vector_width, len(engine.adapters.names())),
        ", ".join(f"{name!r} of {len(store)} products" for name, store in handlers.collections.items()) or "none",
    )


def open_collections(
    index: Path | None, milvus: str | None, *, read_only: bool, device: str = "cpu", choice: Choice = CHOICE
) -> Collections:
    """Those of a folder, searched on a device, those in Milvus, or none. Raises StoreError, ConfigError."""
    if milvus is not None:
        if choice != CHOICE:
            raise ConfigError("recall, bytes_per_row: Milvus chooses its own index; leave them out")
        return Collections.open_milvus(milvus, token=os.environ.get("MILVUS_TOKEN", ""), read_only=read_only)
    if index is None:
        return Collections({})
    gpu = find_gpu(device)
    logger.info("the index is searched on %s", "the CPU" if gpu is None else f"GPU {gpu.number}")
    return Collections.open(index, read_only=read_only, gpu=gpu, choice=choice)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults, limits = ServerConfig(), Limits()
    parser = argparse.ArgumentParser(
        prog="python -m deploy.server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="M", help="model folder, or hub repository as owner/name")
    index = parser.add_mutually_exclusive_group()
    index.add_argument("--index", type=Path, metavar="DIR", help="folder of collections (index.build makes it)")
    index.add_argument("--milvus", metavar="URI", help="collections in Milvus; its token is in MILVUS_TOKEN")
    parser.add_argument("--read-only", action="store_true", help="never write to the index; others may")
    add_choice(parser)
    parser.add_argument("--backups", type=Path, metavar="DIR", help="folder that the rpc Backup writes to (none)")
    parser.add_argument(
        "--allow-private-addresses", action="store_true", help="Reembed may fetch pictures from an intranet, too"
    )
    parser.add_argument("--host", default=defaults.host, help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=defaults.port, help="0 takes a free one (%(default)s)")
    parser.add_argument("--variant", metavar="NAME", help="a variant that deploy.export made (full precision)")
    parser.add_argument("--device", default="auto", help="of model and index: auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of one encoding on the CPU (all cores)")
    parser.add_argument(
        "--adapters",
        type=int,
        default=defaults.num_adapters,
        metavar="N",
        help="adapters in memory (%(default)s)",
    )
    parser.add_argument("--max-inputs", type=int, default=limits.max_inputs, help="inputs of a call (%(default)s)")
    parser.add_argument("--max-k", type=int, default=limits.max_k, help="hits of a query (%(default)s)")
    parser.add_argument(
        "--max-message-mib", type=int, default=limits.max_message_bytes // MIB, help="size of a request (%(default)s)"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=defaults.max_waiting, help="calls that may wait (%(default)s)"
    )
    parser.add_argument(
        "--grace-s", type=float, default=defaults.grace_s, help="for calls in flight at the end (%(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until it is told to stop; 0 after a graceful stop, 2 where it cannot serve."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    def load() -> Loaded:
        choice = Choice(recall=args.recall, bytes_per_row=args.bytes_per_row)
        collections = open_collections(
            args.index, args.milvus, read_only=args.read_only, device=args.device, choice=choice
        )
        try:
            engine = load_model(config, args.model, args.variant)
            warm_up(engine)
        except BaseException:
            collections.close()
            raise
        return engine, collections

    try:
        limits = Limits(
            max_inputs=args.max_inputs,
            max_k=args.max_k,
            max_message_bytes=args.max_message_mib * MIB,
            max_window=max(Limits().max_window, args.max_k),
        )
        config = ServerConfig(
            host=args.host,
            port=args.port,
            limits=limits,
            max_waiting=args.max_waiting,
            grace_s=args.grace_s,
            backups=args.backups,
            allow_private_addresses=args.allow_private_addresses,
            device=args.device,
            num_threads=args.threads,
            num_adapters=args.adapters,
        )
        asyncio.run(run(config, load))
    except ItemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
