"""A tiny real model, an index that it built, and a server over both."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from deploy.server import Server, ServerConfig, create_server
from index.store import Block, Product, Store, product_table, write_store
from item.catalog.listing import Listing, Picture
from item.engine.interface import Engine
from item.model.config import ItemConfig
from item.model.encoder import ITEm
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


def write_index(folder: Path, engine: Engine, listings: list[Listing]) -> None:
    """An index folder of some listings."""
    block = Block(
        vectors=engine.encode(listings).vectors,
        products=product_table([Product.from_listing(listing) for listing in listings]),
    )
    write_store(
        folder,
        iter([block]),
        space=engine.space,
        model="tiny",
        engine=engine.name,
        catalog="shop",
        vector_width=engine.vector_width,
    )


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

    def serve(self, engine: Engine, store: Store | None = None, **config: Any) -> Server:
        """A started server on a free port."""

        async def start() -> Server:
            server, _ = await create_server(ServerConfig(**{"port": 0, **config}), engine, store)
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
