"""`adapters/<name>/` of a model folder: what HF PEFT reads (RoAd with group_size=2), and what it has no place for.

    adapter_config.json          PEFT's: the variant, the pairing, the modules
    adapter_model.safetensors    PEFT's: base_model.model.<module>.road_alpha and .road_theta, our modules' names
    heads.json                   and heads.safetensors, ours: the head of its category, where it has one
    adapter.json                 ours: the model that it was made for, its category, figures of its training, digests

`adapter.json` is written last and the folder put in its place by renaming: an adapter is whole or refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from item.adapters.adapter import (
    VALUES,
    Adapter,
    Array,
    check_variant,
    check_widths,
    digest_of,
    linears_of,
    num_rotations,
    rotations,
)
from item.adapters.head import HEADS_FILE, Category, Heads
from item.errors import ConfigError, ModelError
from item.model.config import ItemConfig

FORMAT = 1  # of adapter.json; another one is refused
ADAPTERS_FOLDER, ADAPTER_FILE = "adapters", "adapter.json"
CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
GROUP_SIZE = 2  # PEFT's name for the pairing: element k with k + group_size / 2 in each group
PREFIX = "base_model.model."  # of PEFT's tensors
AGAIN = "train it again or remove the folder"

Values = Mapping[str, tuple[Array, Array]]  # module -> its alpha and its theta, (outputs / 2 * VALUES[method],) each


def names_of(model: Path) -> list[str]:
    """The adapters that a model folder has."""
    return sorted(path.name for path in (model / ADAPTERS_FOLDER).glob("*/") if not path.name.startswith("."))


def specialty_of(model: Path, name: str) -> Category | None:
    """The category that an adapter has a head for, by what `adapter.json` says; None: none, or it cannot be read."""
    try:
        description = read_description(model / ADAPTERS_FOLDER / name)
    except ModelError:
        return None
    return tuple(description["category"]) if HEADS_FILE in description["files"] else None


def write_adapter(
    model: Path,
    name: str,
    values: Values,
    *,
    method: str,
    config: ItemConfig,
    model_space: str,
    category: tuple[str, ...] = (),
    trained: Mapping[str, Any] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Writes an adapter into a model folder, in place of one of the same name. Returns its folder.

    Args:
        values: of the modules that it adapts.
        trained: figures of its training, for people.
        write_more: writes further files into the folder, which `adapter.json` then covers.

    Raises:
        ConfigError: the name or the variant cannot be used.
        ModelError: the values do not fit the model, or are not finite.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"name: {name!r} is no name of an adapter; use letters, digits, _ and -")
    check_variant(method)
    place = model / ADAPTERS_FOLDER / name
    rotations_of(values, method, config, place)
    beside, before = place.with_name(f".{name}.partial"), place.with_name(f".{name}.before")
    for folder in (beside, before):
        shutil.rmtree(folder, ignore_errors=True)
    beside.mkdir(parents=True)
    write_peft(beside, values, method)
    if write_more is not None:
        write_more(beside)
    description = {
        "format": FORMAT,
        "name": name,
        "method": method,
        "model_space": model_space,
        "category": list(category),
        "num_parameters": count(values),
        "trained": dict(trained or {}),
        "files": {path.name: sha256(path.read_bytes()) for path in sorted(beside.iterdir())},
    }
    write_json(beside / ADAPTER_FILE, description)
    if place.exists():
        place.replace(before)
    beside.replace(place)
    shutil.rmtree(before, ignore_errors=True)
    return place


def write_peft(folder: Path, values: Values, method: str) -> None:
    """Writes PEFT's two files."""
    tensors = {
        f"{PREFIX}{module}.{name}": np.ascontiguousarray(value, dtype=np.float32)
        for module, both in values.items()
        for name, value in zip(("road_alpha", "road_theta"), both, strict=True)
    }
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    (folder / TENSORS_FILE).chmod(0o644)  # the library makes it private, and a server often runs as another user
    config = {
        "peft_type": "ROAD",
        "variant": method,
        "group_size": GROUP_SIZE,
        "target_modules": list(values),
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    write_json(folder / CONFIG_FILE, config)


def read_adapter(model: Path, name: str, config: ItemConfig, model_space: str) -> Adapter:
    """Reads an adapter of a model folder.

    Raises:
        ModelError: there is none of this name; it was made for another model; it is damaged; it was written by PEFT
            and not brought in (`import_adapter`); its variant, pairing, modules, shapes or values cannot be used.
    """
    folder = model / ADAPTERS_FOLDER / name
    if not re.fullmatch(r"[\w-]+", name) or not folder.is_dir():
        raise ModelError(f"adapter: there is no adapter {name!r} ({model} has: {', '.join(names_of(model)) or 'none'})")
    description = read_description(folder)
    if (space := description["model_space"]) != model_space:
        raise ModelError(
            f"{folder}: was made for another model (space {space[:12]}, not {model_space[:12]}); train it on this one"
        )
    contents = {file: checked(folder / file, digest) for file, digest in description["files"].items()}
    method, values = parse_peft(folder, contents)
    if method != description["method"]:
        raise ModelError(f"{folder}: {ADAPTER_FILE} says {description['method']!r}, {CONFIG_FILE} {method!r}; {AGAIN}")
    r1, r2 = rotations_of(values, method, config, folder)
    return Adapter(
        name=name,
        method=method,
        model_space=model_space,
        category=tuple(description["category"]),
        r1=r1,
        r2=r2,
        num_parameters=count(values),
        digest=digest_of(method, r1, r2),
        heads=Heads.parse(folder, contents, model_space) if HEADS_FILE in contents else None,
    )


def read_values(folder: Path) -> tuple[str, dict[str, tuple[Array, Array]]]:
    """The variant and the values of an adapter that PEFT or we wrote, by the names of the modules as they stand there.

    Raises:
        ModelError: it is none of RoAd's, its pairing is not ours, or its files are missing or damaged.
    """
    try:
        contents = {file: (folder / file).read_bytes() for file in (CONFIG_FILE, TENSORS_FILE)}
    except OSError as error:
        raise ModelError(f"{folder}: not a whole PEFT adapter ({error}); save it again with save_pretrained") from error
    return parse_peft(folder, contents)


def import_adapter(
    source: Path, model: Path, name: str, *, config: ItemConfig, model_space: str, category: tuple[str, ...] = ()
) -> Path:
    """Brings an adapter that PEFT wrote into a model folder. Returns its folder.

    PEFT does not record which weights an adapter belongs to, so that only the caller can know that it was trained on
    this model: either with the names of our modules, or with BERT's, on the very weights that its layers now have.

    Raises:
        ModelError: as `read_values`; or modules or shapes are not this model's.
    """
    method, values = read_values(source)
    ours = {our_name(module): both for module, both in values.items()}
    return write_adapter(model, name, ours, method=method, config=config, model_space=model_space, category=category)


def our_name(module: str) -> str:
    """A module's name in our encoder; those of BERT's layers are translated, all others stay."""
    from item.model.starting import LAYER_NAMES  # needs torch; a server imports nothing

    found = re.fullmatch(r"(?:bert\.)?encoder\.layer\.(\d+)\.(.+)", module)
    theirs = {bert: ours for ours, bert in LAYER_NAMES.items()}
    return f"layers.{found[1]}.{theirs[found[2]]}" if found and found[2] in theirs else module


def parse_peft(folder: Path, contents: Mapping[str, bytes]) -> tuple[str, dict[str, tuple[Array, Array]]]:
    """As `read_values`, of files that have been read: name -> content."""
    if missing := {CONFIG_FILE, TENSORS_FILE} - contents.keys():
        raise ModelError(f"{folder}: no {' and no '.join(sorted(missing))}; {AGAIN}")
    config = parse_json(folder / CONFIG_FILE, contents[CONFIG_FILE])
    if (kind := config.get("peft_type")) != "ROAD":
        raise ModelError(f"{folder / CONFIG_FILE}: peft_type {kind!r} is not 'ROAD'; only RoAd adapters are served")
    method, group_size = config.get("variant"), config.get("group_size")
    if method not in VALUES:
        raise ModelError(f"{folder / CONFIG_FILE}: variant {method!r} is none of {', '.join(VALUES)}")
    if group_size != GROUP_SIZE:
        raise ModelError(
            f"{folder / CONFIG_FILE}: group_size {group_size!r} pairs other elements than ours, which are adjacent, "
            f"and cannot be converted; train it again with RoadConfig(group_size={GROUP_SIZE})"
        )
    return method, parse_tensors(folder / TENSORS_FILE, contents[TENSORS_FILE])


def parse_tensors(path: Path, content: bytes) -> dict[str, tuple[Array, Array]]:
    """Module -> alpha and theta, float32, out of a safetensors file."""
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: damaged, or not float32 ({error!r}); {AGAIN}") from error
    modules: dict[str, None] = {}
    for name in sorted(tensors):
        if not (found := re.fullmatch(re.escape(PREFIX) + r"(.+)\.road_(alpha|theta)", name)):
            raise ModelError(f"{path}: {name} is no alpha or theta of RoAd; save the adapter without modules_to_save")
        modules[found[1]] = None
    needed = [f"{PREFIX}{module}.road_{part}" for module in modules for part in ("alpha", "theta")]
    if missing := [name for name in needed if name not in tensors]:
        raise ModelError(f"{path}: no {missing[0]}; {AGAIN}")
    values = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return {m: (values[f"{PREFIX}{m}.road_alpha"], values[f"{PREFIX}{m}.road_theta"]) for m in modules}


def rotations_of(values: Values, method: str, config: ItemConfig, folder: Path) -> tuple[Array, Array]:
    """R1 and R2, (S,) float32 each, of an adapter's values; ModelError where they do not fit the model."""
    check_widths(config)
    linears = linears_of(config)
    r1, r2 = np.ones(num_rotations(config), np.float32), np.zeros(num_rotations(config), np.float32)
    if not values:
        raise ModelError(f"{folder}: adapts no module; {AGAIN}")
    for module, (alpha, theta) in values.items():
        if module not in linears:
            raise ModelError(
                f"{folder}: adapts {module!r}, which is no linear layer of this encoder (as {next(iter(linears))})"
            )
        place = linears[module]
        expected = ((place.stop - place.start) // 2 * VALUES[method],)
        for name, value in (("road_alpha", alpha), ("road_theta", theta)):
            if value.shape != expected:
                raise ModelError(
                    f"{folder}: {module}.{name} has shape {value.shape}, not {expected} as this model needs"
                )
            if not np.isfinite(value).all():
                raise ModelError(f"{folder}: {module}.{name} has values that are not finite; {AGAIN}")
        r1[place], r2[place] = rotations(method, alpha, theta)
    return r1, r2


def read_description(folder: Path) -> dict[str, Any]:
    """What `adapter.json` says, its values checked."""
    path = folder / ADAPTER_FILE
    try:
        description = parse_json(path, path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{path}: no such file. An adapter that PEFT wrote does not say which model it belongs to: bring it in "
            "with item.adapters.files.import_adapter. Another was not written to its end: train it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    if (version := description.get("format")) != FORMAT:
        raise ModelError(f"{path}: format {version!r} is not the {FORMAT} that this version reads; {AGAIN}")
    kinds = {"name": str, "method": str, "model_space": str, "category": list, "files": dict}
    faults = [key for key, kind in kinds.items() if not isinstance(description.get(key), kind)]
    if faults or not all(isinstance(one, str) for one in [*description["category"], *description["files"].values()]):
        raise ModelError(f"{path}: damaged ({', '.join(faults) or 'category, files'}); {AGAIN}")
    if description["name"] != folder.name:
        raise ModelError(f"{path}: name {description['name']!r} is not its folder's; rename the folder back")
    return description


def checked(path: Path, digest: str) -> bytes:
    """A file's content; ModelError where it is not the one that was written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    if sha256(content) != digest:
        raise ModelError(f"{path}: damaged, its digest is not the one in {ADAPTER_FILE}; {AGAIN}")
    return content


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """A JSON object."""
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ModelError(f"{path}: damaged ({error}); {AGAIN}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: damaged (no JSON object); {AGAIN}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def count(values: Values) -> int:
    """The numbers that an adapter stores."""
    return sum(alpha.size + theta.size for alpha, theta in values.values())


def sha256(content: bytes) -> str:
    """The digest of a file's content (hex)."""
    return hashlib.sha256(content).hexdigest()
