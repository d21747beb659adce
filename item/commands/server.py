"""`item adapters`, `load-adapter`, `unload-adapter`, `reload` and `info`: what the server serves."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from item.admin import AdapterInfo
from item.client import Client
from item.commands.options import Commands, server_options
from item.commands.output import Answer, as_json, table
from item.info import CollectionInfo, Info


def add_commands(commands: Commands) -> None:
    """Adds `adapters`, `load-adapter`, `unload-adapter`, `reload` and `info`."""
    every = server_options()

    adapters = commands.add_parser("adapters", parents=[every], help="the adapters of the server's model")
    adapters.set_defaults(run=run_adapters)

    load = commands.add_parser("load-adapter", parents=[every], help="let inputs name an adapter, or read it anew")
    load.add_argument("name", metavar="NAME")
    load.set_defaults(run=run_load_adapter)

    unload = commands.add_parser("unload-adapter", parents=[every], help="let inputs no longer name an adapter")
    unload.add_argument("name", metavar="NAME")
    unload.set_defaults(run=run_unload_adapter)

    reload = commands.add_parser("reload", parents=[every], help="load the server's model folder anew")
    reload.add_argument("--variant", metavar="NAME", help="another variant, '' for full precision (the present one)")
    reload.set_defaults(run=run_reload)

    info = commands.add_parser("info", parents=[every], help="what the server serves")
    info.set_defaults(run=run_info)


def run_adapters(client: Client, args: argparse.Namespace) -> Answer:
    """`item adapters`"""
    adapters = client.adapters()
    return as_json(adapters) if args.json else adapters_table(adapters), 0


def run_load_adapter(client: Client, args: argparse.Namespace) -> Answer:
    """`item load-adapter`"""
    adapter = client.load_adapter(args.name)
    return as_json(adapter) if args.json else adapters_table([adapter]), 0


def run_unload_adapter(client: Client, args: argparse.Namespace) -> Answer:
    """`item unload-adapter`"""
    adapter = client.unload_adapter(args.name)
    return as_json(adapter) if args.json else adapters_table([adapter]), 0


def adapters_table(adapters: Sequence[AdapterInfo]) -> str:
    """Adapters, a line each."""
    if not adapters:
        return "the model has no adapters"
    rows = [
        [
            one.name,
            one.fault or ("loaded" if one.loaded else "not loaded"),
            one.method,
            "/".join(one.category),
            f"{one.num_parameters:,}" if one.num_parameters else "",
            one.space[:12],
        ]
        for one in adapters
    ]
    return table(["name", "state", "method", "category", "parameters", "space"], rows)


def run_reload(client: Client, args: argparse.Namespace) -> Answer:
    """`item reload`"""
    model = client.reload(args.variant)
    text = f"{model.engine} encodes, variant {model.variant or 'none'}, space {model.space}"
    return as_json(model) if args.json else text, 0


def run_info(client: Client, args: argparse.Namespace) -> Answer:
    """`item info`"""
    info = client.info()
    return as_json(info) if args.json else info_table(info, args.server), 0


def info_table(info: Info, address: str) -> str:
    """What a server serves, a line each."""
    rows = [
        ["server", f"{address}, version {info.server_version}"],
        ["engine", info.engine],
        ["variant", info.variant or "none: the model itself"],
        ["space", info.space],
        ["vector width", str(info.vector_width)],
        ["adapters", ", ".join(info.adapters) or "none"],
    ]
    rows += [["collection", collection_line(one)] for one in info.collections] or [
        ["collection", "none: the server only encodes"]
    ]
    rows += [[name, f"{value:,}"] for name, value in dataclasses.asdict(info.limits).items()]
    return table(["", ""], rows).lstrip("\n")


def collection_line(one: CollectionInfo) -> str:
    """A collection and how it is searched."""
    indexes = ", ".join(f"{kind} over {count:,}" for kind, count in one.indexes) or "none yet"
    recall = "" if one.recall_estimate is None else f", recall {one.recall_estimate:.4f} in a sample of answers"
    built = f"{one.created:%Y-%m-%d %H:%M} UTC"
    return f"{one.name}: {one.num_products:,} products, built {built}; index: {indexes}{recall}"
