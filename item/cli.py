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
import os
import sys
from collections.abc import Sequence

from item.client import Client
from item.commands import generations, search, server, write
from item.errors import ItemError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="item", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (search, write, generations, server):
        group.add_commands(commands)
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
