"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # what a group adds its commands to


def server_options() -> argparse.ArgumentParser:
    """Where the server is, how long to wait for it, how its answer is printed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT", help="(%(default)s)")
    parser.add_argument("--timeout-s", type=float, default=30.0, metavar="S", help="seconds to wait (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def collection_options() -> argparse.ArgumentParser:
    """Which collection."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--collection", default="", metavar="NAME", help="(default)")
    return parser


def content_options() -> argparse.ArgumentParser:
    """What is encoded."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--text", default="", help="words")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture")
    return parser
