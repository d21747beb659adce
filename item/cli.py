"""The command `item`: vectors, search and categories from a running server, and products written to it.

    item info
    item search --text "red canvas shoe" --k 5
    item search --text "red canvas shoe" --filter 'price<=50' --filter under:Clothing/Shoes --filter brand=Acme
    item search --image shoe.jpg --text "in blue"
    item search --text "acme x200" --lexical-weight 0.5 --collapse-groups --facet brand --facet category:1
    item search --text "red canvas shoe" --min-score 0.4 --sort price --window 200
    item search --product-id 8123 --json
    item predict --text "red canvas shoe" --under Clothing/Shoes
    item embed --text "red canvas shoe" --output vector.npy
    item embed --text "red canvas shoe" --adapter shoes
    item upsert --catalog shop/catalog.jsonl
    item upsert --catalog prices.jsonl --update attributes.price
    item delete --catalog discontinued.csv
    item delete --product-id 8123
    item reembed --model M2 --max-rate 50
    item switch
    item rollback
    item backup --name monday
    item adapters
    item load-adapter shoes
    item unload-adapter shoes
    item reload --variant int8

The server is localhost:50051 unless --server says otherwise. Prints tables, or JSON with --json. Exit status: 0; 1
where rows or products were refused, a line each on standard error, and all others written, deleted or encoded; 2 where
the request cannot be answered; the reason is one line on standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from item.admin import AdapterInfo, Reembedding, Switched
from item.catalog.listing import Listing, Place
from item.client import ENCODED, Client
from item.errors import ConfigError, ItemError
from item.filters import category_of
from item.info import CollectionInfo, Info
from item.products import product_message
from item.progress import Progress
from item.queries import Input
from item.results import EmbedResult, Prediction, SearchResult, StageTimes, WriteResult
from item.sending import FRAME_BYTES, MAX_ENCODED, WriteReport, catalog_rows, write_rows
from item.tables import cell_text, format_table
from item.v1 import item_pb2

Answer = tuple[str, int]  # what is printed, and the exit status

SHOWN_HITS = 5  # of each sample of `item reembed`


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="item", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--server", default="localhost:50051", metavar="HOST:PORT", help="(%(default)s)")
    every.add_argument("--timeout-s", type=float, default=30.0, metavar="S", help="seconds to wait (%(default)s)")
    every.add_argument("--json", action="store_true", help="print JSON")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--collection", default="", metavar="NAME", help="(default)")
    content = argparse.ArgumentParser(add_help=False)
    content.add_argument("--text", default="", help="words")
    content.add_argument("--image", type=Path, metavar="FILE", help="a picture")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    embed = commands.add_parser("embed", parents=[content, every], help="the vector of words and/or a picture")
    embed.add_argument("--dimensions", type=int, metavar="D", help="keep that many dimensions (all)")
    embed.add_argument("--adapter", default="", metavar="NAME", help="encode with it (the model alone)")
    embed.add_argument("--output", type=Path, metavar="FILE.npy", help="write the vector, (1, D) float32")
    embed.set_defaults(run=run_embed)

    search = commands.add_parser("search", parents=[content, data, every], help="the closest products")
    search.add_argument("--product-id", default="", metavar="ID", help="products like this one")
    search.add_argument("--k", type=int, default=10, help="number of hits (%(default)s)")
    search.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="CONDITION",
        help="name=value, name<=number, <, >=, > (in quotes) or under:A/B; may be repeated: all have to hold",
    )
    search.add_argument("--leave-out", action="append", default=[], metavar="ID", help="never a hit; may be repeated")
    search.add_argument("--lexical-weight", type=float, metavar="W", help="0 to 1: of letters beside vectors (0)")
    search.add_argument("--min-score", type=float, metavar="S", help="only hits with at least this score")
    search.add_argument("--collapse-groups", action="store_true", help="one hit of each group_id")
    search.add_argument("--diversity", type=float, metavar="D", help="0 to 1: how much hits should differ (0)")
    search.add_argument("--sort", default="", metavar="NAME", help="order by an attribute; --sort=-NAME: largest first")
    search.add_argument(
        "--facet", action="append", default=[], metavar="NAME", help="count its values, or category:LEVEL; repeatable"
    )
    search.add_argument("--window", type=int, metavar="N", help="closest products that are sorted and counted (100)")
    search.add_argument("--page-token", default="", metavar="TOKEN", help="of the page before, to go on from there")
    search.set_defaults(run=run_search)

    predict = commands.add_parser("predict", parents=[content, data, every], help="the most probable categories")
    predict.add_argument("--top-k", type=int, default=5, help="number of categories (%(default)s)")
    predict.add_argument("--under", default="", metavar="A/B", help="only categories under this one")
    predict.set_defaults(run=run_predict)

    upsert = commands.add_parser("upsert", parents=[data, every], help="add products, or replace known ones")
    upsert.add_argument("--catalog", type=Path, required=True, metavar="C", help="catalogue file, or its folder")
    upsert.add_argument(
        "--update",
        default="",
        metavar="FIELDS",
        help="write only these of stored products: title,attributes.price (all of them)",
    )
    upsert.set_defaults(run=run_upsert)

    delete = commands.add_parser("delete", parents=[data, every], help="delete products")
    which = delete.add_mutually_exclusive_group(required=True)
    which.add_argument("--catalog", type=Path, metavar="C", help="file with a column product_id, or its folder")
    which.add_argument("--product-id", action="append", metavar="ID", help="may be repeated")
    delete.set_defaults(run=run_delete)

    reembed = commands.add_parser(
        "reembed", parents=[data, every], help="encode all products anew, beside what is searched; goes on where it was"
    )
    reembed.add_argument("--model", default="", metavar="M", help="model folder on the server (the present one)")
    reembed.add_argument("--variant", default="", metavar="NAME", help="a variant of it (full precision)")
    reembed.add_argument("--max-rate", type=float, metavar="R", help="products a second (as many as possible)")
    reembed.add_argument(
        "--catalog", default="", metavar="C", help="where the server reads pictures again (the index's catalogue)"
    )
    add_words_alone(reembed)
    reembed.set_defaults(run=run_reembed)

    switch = commands.add_parser("switch", parents=[data, every], help="search what reembed has made")
    switch.add_argument("generation", nargs="?", default="", metavar="GENERATION", help="(the latest)")
    add_words_alone(switch)
    switch.set_defaults(run=run_switch)

    rollback = commands.add_parser("rollback", parents=[data, every], help="search the generation before again")
    rollback.add_argument("--model", default="", metavar="M", help="its model folder, where it was moved since")
    add_words_alone(rollback)
    rollback.add_argument("--discard-writes", action="store_true", help="leave behind all that was written since")
    rollback.set_defaults(run=run_rollback)

    backup = commands.add_parser("backup", parents=[data, every], help="a copy of a collection, on the server")
    backup.add_argument("--name", required=True, help="of the copy, under the server's --backups")
    backup.set_defaults(run=run_backup)

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
    return parser


def add_words_alone(command: argparse.ArgumentParser) -> None:
    """What happens to products whose picture cannot be read again."""
    command.add_argument(
        "--words-alone", action="store_true", help="encode products whose picture cannot be read again without it"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command."""
    args = build_parser().parse_args(argv)
    try:
        with Client(args.server, timeout_s=args.timeout_s) as client:
            text, status = args.run(client, args)
            print(text)
            sys.stdout.flush()
    except ItemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status)


def run_embed(client: Client, args: argparse.Namespace) -> Answer:
    """`item embed`"""
    given = Input(text=args.text, image=args.image, adapter=args.adapter)
    result = client.embed([given], dimensions=args.dimensions)
    if result.errors:
        raise result.errors[0]
    if args.output is not None:
        write_vectors(result, args.output)
    vector = result.vectors[0]
    if args.json:
        shown = None if args.output is not None else vector.tolist()
        return as_json({"space": result.space, "dimensions": len(vector), "vector": shown, "times": result.times}), 0
    first = " ".join(f"{value:+.4f}" for value in vector[:8])
    rows = [["dimensions", str(len(vector))], ["space", result.space], ["first values", f"{first} ..."]]
    if args.output is not None:
        rows.append(["written to", str(args.output)])
    return f"{table(['vector', ''], rows)}\n{time_line(result.times)}", 0


def run_search(client: Client, args: argparse.Namespace) -> Answer:
    """`item search`"""
    (result,) = client.search(
        text=args.text,
        image=args.image,
        product_id=args.product_id,
        k=args.k,
        collection=args.collection,
        filter=args.filter,
        leave_out=args.leave_out,
        lexical_weight=args.lexical_weight,
        min_score=args.min_score,
        collapse_groups=args.collapse_groups,
        diversity=args.diversity,
        sort=args.sort,
        facets=args.facet,
        window=args.window,
        page_token=args.page_token,
    )
    return as_json(result) if args.json else search_table(result, args.facet), 0


def run_predict(client: Client, args: argparse.Namespace) -> Answer:
    """`item predict`"""
    inputs = [Input(text=args.text, image=args.image)]
    (prediction,) = client.predict(
        inputs, top_k=args.top_k, start_category=category_of(args.under), collection=args.collection
    )
    if prediction.error is not None:
        raise prediction.error
    return as_json(prediction) if args.json else prediction_table(prediction), 0


def run_upsert(client: Client, args: argparse.Namespace) -> Answer:
    """`item upsert`"""
    update = [path.strip() for path in args.update.split(",")] if args.update else None
    encodes = update is None or not ENCODED.isdisjoint(update)
    limits = client.info().limits
    report = write_rows(
        catalog_rows(args.catalog, ids_suffice=not encodes),
        partial(product_message, field="row", with_picture=encodes),
        partial(client.upsert, update=update, collection=args.collection),
        max_rows=min(MAX_ENCODED, limits.max_inputs) if encodes else limits.max_inputs,
        max_bytes=limits.max_message_bytes - FRAME_BYTES,
    )
    return write_answer(report, f"{report.done:,} products written, {report.created:,} of them new", args)


def run_delete(client: Client, args: argparse.Namespace) -> Answer:
    """`item delete`"""

    def send(products: Sequence[item_pb2.Product]) -> list[WriteResult]:
        return client.delete([product.product_id for product in products], collection=args.collection)

    given = [Listing(product_id=one) for one in args.product_id or ()]
    limits = client.info().limits
    report = write_rows(
        listed(given) if given else catalog_rows(args.catalog, ids_suffice=True),
        lambda listing: item_pb2.Product(product_id=listing.product_id),
        send,
        max_rows=limits.max_inputs,
        max_bytes=limits.max_message_bytes - FRAME_BYTES,
    )
    return write_answer(report, f"{report.done:,} products deleted", args)


def listed(given: Sequence[Listing]) -> Iterator[tuple[Place, Listing]]:
    """Listings of the command line, as rows."""
    return ((Place("", number), listing) for number, listing in enumerate(given, start=1))


def run_reembed(client: Client, args: argparse.Namespace) -> Answer:
    """`item reembed`"""
    progress: Progress | None = None
    last: Reembedding | None = None
    for last in client.reembed(
        args.model,
        variant=args.variant,
        max_rate=args.max_rate,
        catalog=args.catalog,
        words_alone=args.words_alone,
        collection=args.collection,
    ):
        if progress is None:
            progress = Progress("encoding", last.num_products, "products", initial=last.num_encoded)
        progress.update(last.num_encoded - progress.count)
    assert last is not None
    assert progress is not None
    progress.close()
    for product_id, reason in last.refused.items():
        print(cell_text(f"{product_id!r}: {reason}"), file=sys.stderr)
    return as_json(last) if args.json else reembed_text(last), 0 if last.done else 1


def run_switch(client: Client, args: argparse.Namespace) -> Answer:
    """`item switch`"""
    switched = client.switch_generation(args.generation, words_alone=args.words_alone, collection=args.collection)
    return as_json(switched) if args.json else switched_text(switched), 0


def run_rollback(client: Client, args: argparse.Namespace) -> Answer:
    """`item rollback`"""
    switched = client.rollback(
        model=args.model,
        words_alone=args.words_alone,
        discard_writes=args.discard_writes,
        collection=args.collection,
    )
    return as_json(switched) if args.json else switched_text(switched), 0


def run_backup(client: Client, args: argparse.Namespace) -> Answer:
    """`item backup`"""
    backup = client.backup(args.name, collection=args.collection)
    text = f"{backup.path}: {backup.num_products:,} products, {backup.size_bytes:,} bytes"
    return as_json(backup) if args.json else text, 0


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


def run_reload(client: Client, args: argparse.Namespace) -> Answer:
    """`item reload`"""
    model = client.reload(args.variant)
    text = f"{model.engine} encodes, variant {model.variant or 'none'}, space {model.space}"
    return as_json(model) if args.json else text, 0


def run_info(client: Client, args: argparse.Namespace) -> Answer:
    """`item info`"""
    info = client.info()
    return as_json(info) if args.json else info_table(info, args.server), 0


def write_answer(report: WriteReport, summary: str, args: argparse.Namespace) -> Answer:
    """What was done; status 1 where rows were refused."""
    refused = f"; {len(report.refused):,} rows refused" if report.refused else ""
    return as_json(report) if args.json else f"{summary}{refused}", 1 if report.refused else 0


def reembed_text(last: Reembedding) -> str:
    """What was encoded, and the products whose neighbours have changed the most."""
    summary = f"{last.generation}: {last.num_encoded:,} of {last.num_products:,} products encoded"
    if last.num_words_alone:
        summary += f", {last.num_words_alone:,} of them by their words alone"
    if last.num_refused:
        return f"{summary}, {last.num_refused:,} refused: it cannot be switched to"
    if last.overlap_at_10 is None:
        return summary
    rows = [
        [sample.product.title or sample.product.product_id, sample.overlap, before.title, after.title]
        for sample in last.samples
        for before, after in zip(sample.before[:SHOWN_HITS], sample.after[:SHOWN_HITS], strict=False)
    ]
    return (
        f"{table(['product', 'overlap', 'nearest before', 'nearest after'], rows)}\n"
        f"{summary}; {last.overlap_at_10:.3f} of the ten nearest are the same as before"
    )


def switched_text(switched: Switched) -> str:
    """What is searched now."""
    written = f"; {switched.num_encoded:,} products written meanwhile encoded" if switched.num_encoded else ""
    return f"{switched.generation} is searched in place of {switched.previous_generation}{written}"


def search_table(result: SearchResult, facets: Sequence[str] = ()) -> str:
    """Hits with a line about the search below, then what was counted, and where to go on."""
    rows = [
        [rank, hit.score, hit.product_id, hit.title, "/".join(hit.category), hit.image]
        for rank, hit in enumerate(result.hits, start=1)
    ]
    header = ["rank", "score", "product_id", "title", "category", "image"]
    lines = [table(header, rows), f"{len(rows)} hits, {result.plan} search, {time_line(result.times)}"]
    for name, values in zip(facets, result.facets, strict=True):
        shown = ("/".join(one.value) if isinstance(one.value, tuple) else one.value for one in values)
        counts = [f"{value} {one.count}" for value, one in zip(shown, values, strict=True)]
        lines.append(f"{name}: {', '.join(counts) or 'none'}")
    if result.next_page_token:
        lines.append(f"next page: --page-token {result.next_page_token}")
    return "\n".join(lines)


def prediction_table(prediction: Prediction) -> str:
    """Categories with the probability of the whole path and of each level."""
    times = time_line(prediction.times)
    if not prediction.paths:
        by_vote = prediction.method == "neighbour_vote"
        why = "no product close by has a category" if by_vote else "the heads know no category there"
        return f"no prediction: {why}\n{times}"
    rows = [
        [path.probabilities[-1], "/".join(path.category), " ".join(f"{p:.3f}" for p in path.probabilities)]
        for path in prediction.paths
    ]
    lines = [table(["probability", "category", "levels"], rows)]
    if prediction.abstained:
        lines.append("not to be relied upon: it resembles little that the heads learned from")
    how = [prediction.method]
    if prediction.adapter:
        how.append(f"adapter {prediction.adapter}")
    if prediction.unknown is not None:
        how.append(f"unknown {prediction.unknown:.3f}")
    return "\n".join([*lines, ", ".join([*how, times])])


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


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that fits the terminal; whole where the output goes elsewhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return format_table(header, rows, width=width)


def time_line(times: StageTimes) -> str:
    """The time spent on the server by stage."""
    stages = {"queue": times.queue_s, "prepare": times.prepare_s, "encode": times.encode_s, "search": times.search_s}
    spent = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in stages.items() if seconds)
    return f"{1000 * sum(stages.values()):.1f} ms ({spent})"


def as_json(value: object) -> str:
    """A result of the client as JSON."""
    return json.dumps(jsonable(value), ensure_ascii=False, indent=2)


def jsonable(value: object) -> Any:
    """Dataclasses as objects, without errors that are not there."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = ((one.name, getattr(value, one.name)) for one in dataclasses.fields(value))
        return {name: jsonable(one) for name, one in named if not (name == "error" and one is None)}
    if isinstance(value, dict):
        return {key: jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value


def write_vectors(result: EmbedResult, path: Path) -> None:
    """Writes a .npy file beside and renames it."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            np.save(file, result.vectors)
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
