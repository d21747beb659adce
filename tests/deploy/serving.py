"""A tiny real model, an index of what it encoded, and servers over both."""

from __future__ import annotations

import asyncio
import io
import queue
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from deploy.collections import DEFAULT, Collections
from deploy.server import Server, ServerConfig, create_server
from index.about import About
from index.product import Product
from index.store import Store
from item.adapters.bank import Named
from item.adapters.head import Heads
from item.catalog.listing import Listing, Picture
from item.engine.interface import Encoded, Engine, Vectors
from item.errors import ListingError
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from item.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from item.preprocessing.words import train_tokenizer

COLOURS = {"red": "#c00", "green": "#0a0", "blue": "#00c", "black": "#111", "white": "#eee", "yellow": "#dd0"}
KINDS = {
    "shirt": ("Clothing", "Tops", "Shirts"),
    "shoe": ("Clothing", "Shoes"),
    "mug": ("Home", "Kitchen", "Mugs"),
    "chair": ("Home", "Chairs"),
    "lamp": (),
}

T = TypeVar("T")


def png(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def shop() -> list[Listing]:
    """30 products of 5 kinds in 6 colours; lamps have no category."""
    return [
        Listing(
            product_id=f"{colour}-{kind}",
            title=f"{colour} {kind}",
            description=f"a {kind} in {colour} for every day",
            images=(Picture(data=png(shade), reference=f"images/{colour}-{kind}.png"),),
            category=category,
            group_id=f"group-{kind}" if kind == "mug" else None,
            attributes={"price": 9.5, "in_stock": colour != "red", "colour": colour, "sizes": ["S", "M"]},
        )
        for kind, category in KINDS.items()
        for colour, shade in COLOURS.items()
    ]


def write_model(folder: Path) -> None:
    """A model folder with random weights of width 32."""
    texts = [f"{listing.title} {listing.description}" for listing in shop()]
    settings = PreprocessorConfig(picture_size=32, max_words=16)
    preprocessor = Preprocessor(settings, train_tokenizer(texts, vocab_size=200))
    torch.manual_seed(0)
    config = ItemConfig(
        vocab_size=preprocessor.vocab_size,
        cls_id=preprocessor.cls_id,
        sep_id=preprocessor.sep_id,
        width=32,
        num_layers=1,
        num_heads=2,
        mlp_width=64,
        max_words=16,
        picture_size=32,
        vector_width=32,
    )
    model = ITEm(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.ndim > 1 else 1)  # so that vectors of different listings differ well
    model.save_pretrained(folder)
    preprocessor.save_pretrained(folder)


def write_index(index: Path, engine: Engine, listings: list[Listing], collection: str = DEFAULT) -> None:
    """A collection of some listings in an index folder."""
    about = About(space=engine.space, vector_width=engine.vector_width, model="tiny", engine=engine.name)
    products = [Product.from_listing(listing) for listing in listings]
    blocks = [(products, engine.encode(listings).vectors)] if listings else []
    Store.create(index / collection, about, blocks).close()


def space_of(engine: Engine, name: str | None) -> str:
    """The space of the vectors that an adapter makes; None: of the model alone."""
    return engine.space if name is None else engine.adapters.get(name).space(engine.space)


class RecordingEngine:
    """An engine that remembers the titles that it was asked to encode, call by call."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name, self.space, self.vector_width = inner.name, inner.space, inner.vector_width
        self.variant, self.preprocessor, self.adapters = inner.variant, inner.preprocessor, inner.adapters
        self.model_space, self.features_width = inner.model_space, inner.features_width
        self.calls: list[list[str]] = []

    def encode(self, listings: Sequence[Listing], adapter: Named | Sequence[Named] = None) -> Encoded:
        self.calls.append([listing.title for listing in listings])
        return self.inner.encode(listings, adapter)

    def prepare_all(self, listings: Sequence[Listing]) -> list[Prepared | ListingError]:
        return self.inner.prepare_all(listings)

    def encode_prepared(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        return self.inner.encode_prepared(prepared, adapters)

    def encode_modalities(
        self, prepared: Sequence[Prepared], modalities: Sequence[Modality] = MODALITIES
    ) -> dict[Modality, Vectors]:
        return self.inner.encode_modalities(prepared, modalities)

    def features_of(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        return self.inner.features_of(prepared, adapters)

    def adapt_features(self, prepared: Sequence[Prepared], features: Vectors, adapters: Sequence[Named]) -> Vectors:
        return self.inner.adapt_features(prepared, features, adapters)

    @property
    def heads(self) -> Heads | None:
        return self.inner.heads


class GatedEngine(RecordingEngine):
    """An engine that begins each encoding only when the test lets it, and says what it was asked."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.gate = threading.Semaphore(0)
        self.begun: queue.Queue[list[str]] = queue.Queue()

    def encode(self, listings: Sequence[Listing], adapter: Named | Sequence[Named] = None) -> Encoded:
        self.begun.put([listing.title for listing in listings])
        assert self.gate.acquire(timeout=20)
        return super().encode(listings, adapter)


class Hosting:
    """Servers in the event loop of a thread, so that tests call them from outside as clients do."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.servers: list[Server] = []

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = 30) -> T:
        """Runs a coroutine in the loop and waits for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def serve(
        self, engine: Engine, index: Path | Collections | None = None, *, read_only: bool = False, **config: Any
    ) -> Server:
        """A started server on a free port, over collections, or those of an index folder."""
        collections = Collections.open(index, read_only=read_only) if isinstance(index, Path) else index

        async def start() -> Server:
            server, _ = await create_server(ServerConfig(**{"port": 0, **config}), engine, collections)
            await server.start()
            return server

        self.servers.append(self.run(start()))
        return self.servers[-1]

    def close(self) -> None:
        """Stops all servers and ends the loop."""
        for server in self.servers:
            self.run(server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
