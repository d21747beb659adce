"""A variant's folder on disk: graphs that share their large constants in one file, digests, and `variant.json` last."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from item.engine.variant import VARIANTS_FOLDER, WEIGHTS_FILE, Variant, sha256

INLINE_BYTES = 1024  # constants up to this size stay in the graph
ALIGNMENT = 4096  # of constants in the file, so that they can be mapped into memory


class SharedWeights:
    """Moves the constants of graphs into one file; a constant that several graphs have lies there once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / WEIGHTS_FILE
        self.places: dict[tuple[str, bytes], int] = {}

    def move(self, model: onnx.ModelProto) -> None:
        """Takes the large constants out of a model."""
        with self.path.open("ab") as file:
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                if len(data) <= INLINE_BYTES:
                    continue
                key = (tensor.name, data)
                if key not in self.places:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    self.places[key] = file.tell()
                    file.write(data)
                set_external_data(tensor, WEIGHTS_FILE, offset=self.places[key], length=len(data))
                tensor.ClearField("raw_data")


def write_graphs(folder: Path, graphs: dict[str, onnx.ModelProto]) -> None:
    """Writes models, file name -> model, and their weights."""
    shared = SharedWeights(folder)
    for name, model in graphs.items():
        shared.move(model)
        (folder / name).write_bytes(model.SerializeToString())


def publish(model: Path, name: str, write: Callable[[Path], Variant]) -> tuple[Path, Variant]:
    """Has a variant written into a folder beside and puts it in its place, as a whole. Returns place and variant.

    write: fills the folder and returns what `variant.json` is to say.
    """
    place = model / VARIANTS_FOLDER / name
    beside = place.with_name(f".{name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    variant = write(beside)
    variant.save(beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.replace(place)
    return place, variant


def digests(folder: Path) -> dict[str, str]:
    """File name -> sha256 (hex) of all files in a folder."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
