"""`variants/<name>/` of a model folder: what an exported variant is, what it costs, and whether it is whole.

`variant.json` is written last, with the digest of every other file, so that a folder is either complete or refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from item.errors import ModelError

FORMAT = 2  # of variant.json; another one is refused
VARIANTS_FOLDER, VARIANT_FILE = "variants", "variant.json"
STEM_FILE, LAYERS_FILE, ADAPTED_FILE, VECTOR_FILE = "stem.onnx", "layers.onnx", "layers_adapted.onnx", "vector.onnx"
WEIGHTS_FILE = "weights.bin"
GRAPH_FILES = (STEM_FILE, LAYERS_FILE, ADAPTED_FILE, VECTOR_FILE, WEIGHTS_FILE)

Runtime = Literal["onnxruntime", "torch"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What `variant.json` holds.

    runtime: what runs it. precision: of weights and activations, for people: "float32", "int8", "bf16", "fp16".
    model_space: the space of the model that it was made of; space: of its own vectors. They are the same where the
        variant's results are (item.export.loss.keeps_space).
    opset: of the ONNX graphs; 0 without any. files: file name -> sha256 (hex).
    method: how it was made, in a line. measured: name -> figure, on how many listings and of which catalogue included.
    """

    name: str
    runtime: Runtime
    precision: str
    model_space: str
    space: str
    opset: int = 0
    files: dict[str, str] = field(default_factory=dict)
    method: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes `variant.json`."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2)
        (folder / VARIANT_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Variant:
        """Reads `variant.json`; ModelError where it is missing, damaged or of another format."""
        path = folder / VARIANT_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if (version := values.pop("format", None)) != FORMAT:
                raise ModelError(
                    f"{path}: format {version!r} is not the {FORMAT} that this version reads; {again(folder)}"
                )
            variant = cls(**values)
        except FileNotFoundError as error:
            raise ModelError(f"{path}: no such file, the export was not finished; {again(folder)}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path}: damaged ({error}); {again(folder)}") from error
        if faults := variant.faults(folder.name):
            raise ModelError(f"{path}: damaged ({', '.join(faults)}); {again(folder)}")
        return variant

    def faults(self, name: str) -> list[str]:
        """What is wrong with the values of a variant in the folder `name`."""
        texts = ("name", "precision", "model_space", "space", "method")
        faults = [
            f"{text}: {value!r} is no text" for text in texts if not isinstance(value := getattr(self, text), str)
        ]
        if self.name != name:
            faults.append(f"name: {self.name!r} is not its folder's")
        needed = {"onnxruntime": set(GRAPH_FILES), "torch": set[str]()}
        if self.runtime not in needed:
            faults.append(f"runtime: {self.runtime!r} is none of {', '.join(needed)}")
        elif not isinstance(self.files, dict) or needed[self.runtime] - self.files.keys():
            faults.append(f"files: {self.files!r} are not {', '.join(GRAPH_FILES)}")
        return faults


def again(folder: Path) -> str:
    """The way out of a variant that cannot be used."""
    return f"run python -m deploy.export --variant {folder.name} again, or remove the folder"


def names_of(model: Path) -> list[str]:
    """The variants that a model folder has."""
    return sorted(path.name for path in (model / VARIANTS_FOLDER).glob("*/") if not path.name.startswith("."))


def find_variant(model: Path, name: str) -> tuple[Path, Variant]:
    """The folder of a variant and what it says.

    Raises:
        ModelError: there is no such variant, or it is not whole.
    """
    folder = model / VARIANTS_FOLDER / name
    if not re.fullmatch(r"[\w-]+", name) or not folder.is_dir():
        there = ", ".join(names_of(model)) or "none"
        raise ModelError(
            f"variant: {model} has no variant {name!r} (it has: {there}); "
            f"make it with python -m deploy.export --model {model} --variant {name}"
        )
    variant = Variant.load(folder)
    for file, digest in variant.files.items():
        path = folder / file
        if not path.is_file():
            raise ModelError(f"{path}: no such file; {again(folder)}")
        if sha256(path) != digest:
            raise ModelError(f"{path}: damaged, its digest is not the one in {VARIANT_FILE}; {again(folder)}")
    return folder, variant


def check_model(folder: Path, variant: Variant, space: str) -> None:
    """ModelError where a variant was made of another model than the one in its folder."""
    if variant.model_space != space:
        raise ModelError(
            f"{folder}: was made of another model (space {variant.model_space[:12]}, not {space[:12]}); {again(folder)}"
        )


def sha256(path: Path) -> str:
    """The digest of a file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
