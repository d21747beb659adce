"""A frozen stem's features, computed once and kept on disk, with masked views whose pixels are hidden from the stem."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from item.catalog.listing import Listing, Picture
from item.errors import ConfigError
from item.model.encoder import ITEm
from item.model.objectives import blank_cells
from item.preprocessing.preprocessor import Preprocessor
from training.cache import Arrays, Layout, fill_arrays

CHUNK = 32  # pictures a pass through the stem


class FeatureCache:
    """Features of N pictures: `whole` of the pictures as they are, view v with the cells `masked(v)` blanked.

    whole, view v: (N, ...) float16 as the stem lays them out; masked: (N, m) bool. Row i is the i-th listing's; the
    rows of listings without a picture stay zero and are never read.
    """

    def __init__(self, folder: Path, num_views: int) -> None:
        self.folder = folder
        self.num_views = num_views
        self.arrays: dict[str, npt.NDArray[np.float16]] = {}

    def read(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of `whole`, `view0`, `view1`, ..., `mask0`, `mask1`, ..."""
        if name not in self.arrays:
            self.arrays[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return torch.from_numpy(self.arrays[name][np.asarray(rows, dtype=np.int64)])

    def __getstate__(self) -> dict[str, object]:
        """Sent to another process as a path; the arrays stay on disk."""
        return {"folder": self.folder, "num_views": self.num_views, "arrays": {}}


def draw_patch_mask(rng: np.random.Generator, num_cells: int, rate: float) -> npt.NDArray[np.bool_]:
    """(m,) bool with round(rate * m) cells masked, at least one and not all."""
    masked = np.zeros(num_cells, dtype=np.bool_)
    masked[rng.permutation(num_cells)[: min(num_cells - 1, max(1, round(rate * num_cells)))]] = True
    return masked


def read_pictures(preprocessor: Preprocessor, listings: Sequence[Listing], readers: Executor) -> Tensor:
    """The main pictures of listings that have one: (P, 3, S, S) uint8. Pillow releases the lock, threads are enough."""
    pictures = readers.map(preprocessor.picture, listings)
    return torch.from_numpy(np.stack([pixels for pixels in pictures if pixels is not None]))


def cache_features(
    folder: Path,
    model: ITEm,
    preprocessor: Preprocessor,
    listings: Sequence[Listing],
    rate: float,
    views: int,
    seed: int,
) -> FeatureCache:
    """Computes what is missing of the features of `listings`, and goes on from where an interrupted run stopped.

    The folder's name within `folder` is a digest of the stem, the preprocessing, the pictures and the masks.
    """
    target = folder / cache_key(model, preprocessor, listings, (rate, views, seed))
    with ThreadPoolExecutor() as pool:

        def fill(rows: range, arrays: Arrays) -> None:
            there = [row for row in rows if listings[row].images]
            if there:
                pixels = read_pictures(preprocessor, [listings[row] for row in there], pool)
                compute(model, pixels, there, arrays, (rate, views, seed))

        layout = feature_layout(model, views)
        fill_arrays(target, layout, len(listings), fill, chunk=CHUNK, name="stem features", unit="pictures")
    return FeatureCache(target, views)


@torch.inference_mode()
def compute(model: ITEm, pixels: Tensor, rows: list[int], writers: Arrays, settings: tuple[float, int, int]) -> None:
    """Writes the features of whole and masked pictures of one chunk. pixels: (P, 3, S, S) uint8."""
    rate, views, seed = settings
    device, m = model.gates.device, model.stem.num_cells
    writers["whole"][rows] = model.stem(pixels.to(device)).half().cpu().numpy()
    for view in range(views):
        masks = np.stack([draw_patch_mask(np.random.default_rng([seed, view, row]), m, rate) for row in rows])
        writers[f"mask{view}"][rows] = masks
        blanked = blank_cells(pixels, torch.from_numpy(masks))
        writers[f"view{view}"][rows] = model.stem(blanked.to(device)).half().cpu().numpy()


def feature_layout(model: ITEm, views: int) -> Layout:
    """The arrays of a cache: features of the whole pictures, and of each masked view with its mask."""
    S = model.config.picture_size
    with torch.inference_mode():
        shape = tuple(model.stem(torch.zeros(1, 3, S, S, device=model.gates.device)).shape[1:])
    layout: dict[str, tuple[type, tuple[int, ...]]] = {"whole": (np.float16, shape)}
    for view in range(views):
        layout |= {f"view{view}": (np.float16, shape), f"mask{view}": (np.bool_, (model.stem.num_cells,))}
    return layout


def cache_key(
    model: ITEm, preprocessor: Preprocessor, listings: Sequence[Listing], settings: tuple[object, ...]
) -> str:
    """A digest of everything that the features depend on."""
    digest = hashlib.sha256(repr((settings, preprocessor.digest(), model.config.stem, model.config.mean)).encode())
    stem = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("stem.")}
    for name, tensor in sorted(stem.items()):
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for listing in listings:
        digest.update(repr(picture_identity(listing.images[0]) if listing.images else None).encode())
    return digest.hexdigest()[:16]


def picture_identity(picture: Picture) -> tuple[object, ...]:
    """Path, size and time of a file, or the digest of bytes."""
    if picture.data is not None:
        return (hashlib.sha256(picture.data).hexdigest(),)
    assert picture.path is not None
    try:
        status = picture.path.stat()
    except OSError as error:
        raise ConfigError(f"catalog: {picture.path} disappeared while training was prepared ({error})") from error
    return (str(picture.path), status.st_size, status.st_mtime_ns)
