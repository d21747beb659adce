"""`item embed`, `search` and `predict`: what the server makes of words and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from item.client import Client
from item.commands.options import Commands, collection_options, content_options, server_options
from item.commands.output import Answer, as_json, table, time_line
from item.errors import ConfigError
from item.filters import category_of
from item.queries import Input
from item.results import EmbedResult, Prediction, SearchResult


def add_commands(commands: Commands) -> None:
    """Adds `embed`, `search` and `predict`."""
    content, data, every = content_options(), collection_options(), server_options()

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


def write_vectors(result: EmbedResult, path: Path) -> None:
    """Writes a .npy file beside and renames it."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            np.save(file, result.vectors)
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written: {error.strerror}") from error


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


def run_predict(client: Client, args: argparse.Namespace) -> Answer:
    """`item predict`"""
    inputs = [Input(text=args.text, image=args.image)]
    (prediction,) = client.predict(
        inputs, top_k=args.top_k, start_category=category_of(args.under), collection=args.collection
    )
    if prediction.error is not None:
        raise prediction.error
    return as_json(prediction) if args.json else prediction_table(prediction), 0


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
