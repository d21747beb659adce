"""The adapters of a model as inputs name them, and as operators see them."""

from __future__ import annotations

from deploy.errors import NotFoundError, PreconditionError
from item.adapters.adapter import Adapter
from item.adapters.files import names_of
from item.engine.interface import Engine
from item.errors import ModelError
from item.v1 import item_pb2


def find_adapter(engine: Engine, name: str, field: str) -> Adapter:
    """The adapter that an input names.

    Raises:
        NotFoundError: it is not loaded.
        PreconditionError: it cannot be read.
    """
    try:
        return engine.adapters.get(name)
    except ModelError as error:
        loaded = engine.adapters.names()
        if name in loaded:
            raise PreconditionError(field, str(error)) from error
        there = f"this server has {', '.join(map(repr, loaded))}" if loaded else "this server has none"
        raise NotFoundError(field, f"{name!r} is not loaded; {there}") from error


def load_adapter(engine: Engine, name: str) -> None:
    """Reads an adapter anew and lets inputs name it; where it cannot be read, all stays as it was.

    Raises:
        NotFoundError: the model folder has none of this name.
        PreconditionError: it cannot be read.
    """
    try:
        engine.adapters.load(name)
    except ModelError as error:
        there = names_of(engine.adapters.model)
        if name in there:
            raise PreconditionError("name", str(error)) from error
        reason = f"the model folder has {', '.join(map(repr, there)) or 'none'}"
        raise NotFoundError("name", f"{name!r} is not there; {reason}") from error


def unload_adapter(engine: Engine, name: str) -> None:
    """Lets inputs no longer name an adapter. Raises NotFoundError where it is not loaded."""
    try:
        engine.adapters.unload(name)
    except ModelError as error:
        loaded = ", ".join(map(repr, engine.adapters.names())) or "none"
        raise NotFoundError("name", f"{name!r} is not loaded; this server has {loaded}") from error


def all_adapters(engine: Engine) -> list[item_pb2.AdapterInfo]:
    """Those of the model folder and those that are loaded, by name."""
    names = {*names_of(engine.adapters.model), *engine.adapters.names()}
    return [adapter_info(engine, name) for name in sorted(names)]


def loaded_adapters(engine: Engine) -> list[item_pb2.AdapterInfo]:
    """Those that inputs may name, by name."""
    return [one for name in engine.adapters.names() if (one := adapter_info(engine, name)).loaded]


def adapter_info(engine: Engine, name: str) -> item_pb2.AdapterInfo:
    """An adapter as it is in memory, or else in the model folder."""
    try:
        adapter = engine.adapters.look_at(name)
    except ModelError as error:
        return item_pb2.AdapterInfo(name=name, fault=str(error))
    return item_pb2.AdapterInfo(
        name=name,
        method=adapter.method,
        space=adapter.space(engine.space),
        category=adapter.category,
        num_parameters=adapter.num_parameters,
        loaded=name in engine.adapters.names(),
    )
