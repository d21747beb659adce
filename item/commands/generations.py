"""`item reembed`, `switch`, `rollback` and `backup`: an operator's calls on a collection."""

from __future__ import annotations

import argparse
import sys

from item.admin import Reembedding, Switched
from item.client import Client
from item.commands.options import Commands, collection_options, server_options
from item.commands.output import Answer, as_json, table
from item.progress import Progress
from item.tables import cell_text

SHOWN_HITS = 5  # of each sample of `item reembed`


def add_commands(commands: Commands) -> None:
    """Adds `reembed`, `switch`, `rollback` and `backup`."""
    data, every = collection_options(), server_options()

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


def add_words_alone(command: argparse.ArgumentParser) -> None:
    """What happens to products whose picture cannot be read again."""
    command.add_argument(
        "--words-alone", action="store_true", help="encode products whose picture cannot be read again without it"
    )


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


def switched_text(switched: Switched) -> str:
    """What is searched now."""
    written = f"; {switched.num_encoded:,} products written meanwhile encoded" if switched.num_encoded else ""
    return f"{switched.generation} is searched in place of {switched.previous_generation}{written}"


def run_backup(client: Client, args: argparse.Namespace) -> Answer:
    """`item backup`"""
    backup = client.backup(args.name, collection=args.collection)
    text = f"{backup.path}: {backup.num_products:,} products, {backup.size_bytes:,} bytes"
    return as_json(backup) if args.json else text, 0
