"""`item upsert` and `delete`: a catalogue's rows, written to a collection or deleted from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from item.catalog.listing import Listing, Place
from item.client import ENCODED, Client
from item.commands.options import Commands, collection_options, server_options
from item.commands.output import Answer, as_json
from item.products import product_message
from item.results import WriteResult
from item.sending import FRAME_BYTES, MAX_ENCODED, WriteReport, catalog_rows, write_rows
from item.v1 import item_pb2


def add_commands(commands: Commands) -> None:
    """Adds `upsert` and `delete`."""
    data, every = collection_options(), server_options()

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


def write_answer(report: WriteReport, summary: str, args: argparse.Namespace) -> Answer:
    """What was done; status 1 where rows were refused."""
    refused = f"; {len(report.refused):,} rows refused" if report.refused else ""
    return as_json(report) if args.json else f"{summary}{refused}", 1 if report.refused else 0
