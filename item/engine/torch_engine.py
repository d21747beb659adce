"""The engine on torch: full precision on CPU or GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from item.catalog.listing import Listing
from item.engine.interface import Encoded, Vectors
from item.errors import ConfigError, ListingError, ModelError
from item.model.batch import collate
from item.model.encoder import ITEm
from item.model.folder import resolve_folder, space_of
from item.preprocessing.prepared import Prepared
from item.preprocessing.preprocessor import Preprocessor

TOKEN_BUDGET = 4096  # tokens of one run through the layers: enough to fill the cores, small enough for the caches


class TorchEngine:
    """Runs `ITEm.embed` on listings of like length together, so that little is padded."""

    def __init__(self, model: ITEm, preprocessor: Preprocessor, device: torch.device) -> None:
        check_agreement(model, preprocessor)
        self.space = space_of(model, preprocessor)
        self.model = model.to(device).eval()
        self.preprocessor = preprocessor
        self.device = device
        self.vector_width = model.config.vector_width
        self.name = f"torch {device.type} float32"
        self.num_cells = model.stem.num_cells
        self.readers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prepare")

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", num_threads: int | None = None) -> TorchEngine:
        """See `item.engine.load_engine`."""
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        folder = resolve_folder(folder)
        return cls(ITEm.from_pretrained(folder), Preprocessor.from_pretrained(folder), choose_device(device))

    def encode(self, listings: Sequence[Listing], adapter: str | None = None) -> Encoded:
        """Vectors of listings; see `item.engine.interface.Engine`."""
        if adapter is not None:
            raise ModelError(f"adapter: there is no adapter {adapter!r}; this model has none")
        start = time.perf_counter()
        outcomes = list(self.readers.map(self.prepare, listings))
        prepared = {row: one for row, one in enumerate(outcomes) if isinstance(one, Prepared)}
        middle = time.perf_counter()
        vectors = np.full((len(listings), self.vector_width), np.nan, dtype=np.float32)
        if prepared:
            vectors[list(prepared)] = self.encode_prepared(list(prepared.values()))
        return Encoded(
            vectors=vectors,
            refused={row: one for row, one in enumerate(outcomes) if isinstance(one, ListingError)},
            prepare_s=middle - start,
            encode_s=time.perf_counter() - middle,
        )

    def prepare(self, listing: Listing) -> Prepared | ListingError:
        """A listing made ready, or why it is refused."""
        try:
            return self.preprocessor(listing)
        except ListingError as error:
            return error

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Prepared]) -> Vectors:
        """(N, V) float32 of unit norm; see `item.engine.interface.Engine`."""
        vectors = np.empty((len(prepared), self.vector_width), dtype=np.float32)
        for rows in self.buckets(prepared):
            batch = collate([prepared[row] for row in rows]).to(self.device)
            vectors[rows] = self.model.embed(batch).cpu().numpy()
        return vectors

    def buckets(self, prepared: Sequence[Prepared]) -> Iterator[list[int]]:
        """Rows of like length, with or without a picture, as many as the token budget allows."""
        cost = [
            (one.pixels is not None, 1 + (0 if one.word_ids is None else len(one.word_ids))) for one in prepared
        ]  # whether there are cells, text tokens
        bucket: list[int] = []
        for row in sorted(range(len(prepared)), key=cost.__getitem__):
            has_picture, num_text = cost[row]
            tokens = num_text + has_picture * self.num_cells  # of the longest: rows come in ascending order
            if bucket and ((len(bucket) + 1) * tokens > TOKEN_BUDGET or cost[bucket[0]][0] != has_picture):
                yield bucket
                bucket = []
            bucket.append(row)
        if bucket:
            yield bucket


def check_agreement(model: ITEm, preprocessor: Preprocessor) -> None:
    """A model and a preprocessor of different folders do not fit together."""
    pairs = {
        "picture_size": (model.config.picture_size, preprocessor.config.picture_size),
        "max_words": (model.config.max_words, preprocessor.config.max_words),
        "vocab_size": (model.config.vocab_size, preprocessor.vocab_size),
    }
    for name, (models, preprocessors) in pairs.items():
        if models != preprocessors:
            raise ModelError(f"{name}: the model has {models}, its preprocessing {preprocessors}; restore the folder")


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" -> a device that is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is none of auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is none of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} is not there; this machine has {torch.cuda.device_count()} GPUs")
    return device
