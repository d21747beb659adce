"""The whole way in minutes: a sample shop is drawn, checked, trained, adapted to its categories, evaluated, exported,
indexed, served, searched.

    python -m deploy.demo
    python -m deploy.demo --output /tmp/demo --port 50051

Run it from the repository's folder. Every stage is a documented command, printed so that it can be repeated. Leaves
OUTPUT/index.html: queries and hits as pictures, and what was measured. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.demo_page import Page, Stage, Table, render_page
from deploy.demo_searches import WORDS, ask
from item.catalog.reader import read_catalog
from item.client import Client
from item.errors import ConfigError, ItemError, ServiceError

CONFIG = "training/configs/tiny.yaml"
MARKER = "DEMO.txt"
MARKER_TEXT = "Made by `python -m deploy.demo`, which makes this folder anew: keep nothing here.\n"
NEXT = """
Your own catalogue: a Parquet, JSONL or CSV file with product_id, title, description, image, category (README.md)
  python -m training.check    --catalog CATALOG
  python -m training.align    --config training/configs/small.yaml --catalog CATALOG --output MODEL
  python -m training.adapt    --model MODEL --catalog CATALOG --report REPORT
  python -m deploy.export     --model MODEL --variant fp32
  python -m index.build       --model MODEL --catalog CATALOG --index INDEX
  python -m deploy.server     --model MODEL --index INDEX"""
SERVER_READY_S = 120.0
SERVER_STOP_S = 30.0


class DemoError(ItemError):
    """A stage of the demo failed."""


class Stages:
    """Runs commands one after the other, shows them, and remembers how long each took."""

    def __init__(self) -> None:
        self.done: list[Stage] = []

    def run(self, *words: object) -> None:
        """Runs a command to its end; its output is the reader's. Raises DemoError where it fails."""
        command = command_line(words)
        with self._shown(command):
            status = subprocess.run(argv_of(words)).returncode
            if status:
                raise DemoError(f"`{command}` ended with status {status}; what it said is above")

    def seconds_of(self, program: str) -> float:
        """How long the commands took that run this module."""
        return sum(stage.seconds for stage in self.done if program in stage.command.split())

    @contextlib.contextmanager
    def serve(self, *words: object, address: str, log: Path) -> Iterator[Client]:
        """Runs a server in the background, its output in `log`; at the end stops it gracefully."""
        with log.open("wb") as output, Client(address) as client:
            process = subprocess.Popen(argv_of(words), stdout=output, stderr=subprocess.STDOUT)
            try:
                with self._shown(f"{command_line(words)} &"):
                    wait_until_ready(client, process, log)
                yield client
                stop(process, log)
            finally:
                process.kill()  # it has ended already unless something went wrong
                process.wait()

    @contextlib.contextmanager
    def _shown(self, command: str) -> Iterator[None]:
        print(f"\n$ {command}", flush=True)
        start = time.perf_counter()
        yield
        self.done.append(Stage(command=command, seconds=time.perf_counter() - start))
        print(f"({self.done[-1].seconds:.1f} s)", flush=True)


def command_line(words: Sequence[object]) -> str:
    """A command as it is typed into a shell."""
    return shlex.join(map(str, words))


def argv_of(words: Sequence[object]) -> list[str]:
    """The same command, run by this very interpreter."""
    program, *arguments = map(str, words)
    return [sys.executable, *(["-m", "item.cli"] if program == "item" else []), *arguments]


def wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the server answers. Raises DemoError, with its log, where it has ended or takes too long."""
    deadline = time.monotonic() + SERVER_READY_S
    while True:
        try:
            client.wait_until_ready(timeout_s=2)
            return
        except ServiceError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8", errors="replace")
                raise DemoError(f"the server did not come up ({error}); it said:\n{said}") from error


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """Stops the server as an operator would. Raises DemoError unless it ends by itself, with status 0."""
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(SERVER_STOP_S)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"the server had not ended {SERVER_STOP_S:.0f} s after SIGTERM; see {log}") from error
    if status:
        raise DemoError(f"the server ended with status {status} after SIGTERM; see {log}")
    print("\nserver stopped")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claim_folder(output: Path) -> None:
    """Empties an older demo's folder. Raises ConfigError where anything else is in it."""
    if output.exists() and not (output / MARKER).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output: {output} is there and was not made by the demo; name another folder")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).write_text(MARKER_TEXT, encoding="utf-8")


def compare_check(output: Path) -> tuple[Table, Table]:
    """What was planted in the shop beside what the check counted: in all, and refused row by refused row.

    Raises:
        DemoError: they differ.
    """
    planted, report = read_json(output / "shop" / "sample_shop.json"), read_json(output / "check.json")
    refused = {row["line"]: row for row in read_lines(output / "refused.jsonl")}
    pairs = {
        "rows": (planted["rows"], report["rows"]),
        "listings kept": (planted["listings"], report["kept"]),
        "leaf categories": (planted["leaves"], len(report["leaves"])),
        **{f"in split {name}": (count, report["splits"].get(name, 0)) for name, count in planted["splits"].items()},
        "without title": (planted["missing"]["title"], report["missing"]["title"]),
        "without description": (planted["missing"]["description"], report["missing"]["description"]),
        "without picture": (planted["missing"]["image"], report["missing"]["images"]),
        "without category": (planted["missing"]["category"], report["missing"]["category"]),
        "refused rows": (sorted(row["line"] for row in planted["broken"]), sorted(refused)),
    }
    for name, (expected, found) in pairs.items():
        if expected != found:
            raise DemoError(f"the check reports other than was planted: {name}: {found} in place of {expected}")
    counts = {name: pair for name, pair in pairs.items() if name != "refused rows"}
    counts["refused"] = (len(planted["broken"]), len(refused))
    overview = [[name, f"{expected:,}", f"{found:,}"] for name, (expected, found) in counts.items()]
    rows = [
        [str(row["line"]), row["kind"].replace("_", " "), refused[row["line"]]["field"], refused[row["line"]]["reason"]]
        for row in planted["broken"]
    ]
    return (
        Table(columns=["", "planted", "counted"], rows=overview),
        Table(columns=["line", "planted", "field", "reason"], rows=rows),
    )


def evaluation_tables(report: Path) -> dict[str, Table]:
    """The evaluation's measures over all queries: by task, a row for each kind of input."""
    tasks: dict[str, dict[str, dict[str, str]]] = {}
    for result in read_json(report / "evaluation.json")["results"]:
        if result["subset"] == "all":
            measures = tasks.setdefault(result["task"], {}).setdefault(result["inputs"], {})
            measures[result["measure"]] = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**result)
    return {
        task: Table(
            columns=["inputs", *dict.fromkeys(name for measures in rows.values() for name in measures)],
            rows=[[inputs, *measures.values()] for inputs, measures in rows.items()],
        )
        for task, rows in tasks.items()
    }


def category_table(report: Path) -> dict[str, Table]:
    """What training.adapt measured: leaves named by heads on the model alone, and with its adapters."""
    rows = [
        [row["system"], row["modality"], "{value:.3f} [{low:.3f}, {high:.3f}]".format(**row["accuracy"])]
        + [f"{row[name]:.3f}" for name in ("macro_f1", "calibration_error")]
        for row in read_json(report / "adaptation.json")["rows"]
    ]
    columns = ["heads on the model alone, with adapters", "inputs", "accuracy", "macro-F1", "calibration error"]
    return {"leaf category by heads": Table(columns=columns, rows=rows)}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_demo(output: Path, port: int) -> None:
    """All stages, then the page and a summary."""
    claim_folder(output)
    stages, shop, model, index = Stages(), output / "shop", output / "model", output / "index"
    in_check = ("--refused", output / "refused.jsonl", "--json", output / "check.json")
    address = f"127.0.0.1:{port}"
    stages.run("python", "-m", "training.sample_shop", "--output", shop)
    stages.run("python", "-m", "training.check", "--catalog", shop, *in_check)
    check, refused = compare_check(output)
    stages.run("python", "-m", "training.pretrain", "--config", CONFIG, "--catalog", shop, "--output", model)
    in_evaluation = ("--offers", shop / "offers", "--report", output / "report")
    stages.run("python", "-m", "training.evaluate", "--model", model, "--catalog", shop, *in_evaluation)
    stages.run("python", "-m", "training.adapt", "--model", model, "--catalog", shop, "--report", output / "categories")
    stages.run("python", "-m", "deploy.export", "--model", model, "--variant", "fp32", "--catalog", shop)
    stages.run("python", "-m", "index.build", "--model", model, "--catalog", shop, "--index", index)
    serving = ("python", "-m", "deploy.server", "--model", model, "--index", index, "--port", port)
    with stages.serve(*serving, address=address, log=output / "server.log") as client:
        stages.run("item", "search", "--text", WORDS[0], "--k", 5, "--server", address)
        searches, predictions = ask(client, read_catalog(shop), read_catalog(shop / "offers", "offers"), shop.name)
        info = client.info()
    facts = {
        "listings in the index": f"{info.collections[0].num_products:,}",
        "dimensions a vector": str(info.vector_width),
        "minutes in all": f"{sum(stage.seconds for stage in stages.done) / 60:.1f}",
        "minutes of training": f"{stages.seconds_of('training.pretrain') / 60:.1f}",
    }
    page = Page(
        facts=facts,
        searches=searches,
        predictions=predictions,
        evaluation={**evaluation_tables(output / "report"), **category_table(output / "categories")},
        check=check,
        refused=refused,
        losses=read_lines(model / "run" / "losses.jsonl"),
        stages=stages.done,
    )
    (output / "index.html").write_text(render_page(page), encoding="utf-8")
    print_summary(output, stages.done)


def print_summary(output: Path, stages: Sequence[Stage]) -> None:
    """The time of each stage, where the page is, and what to do next."""
    print("\nseconds")
    for stage in stages:
        print(f"{stage.seconds:7.1f}  {' '.join(shlex.split(stage.command)[:3])}")
    print(f"{sum(stage.seconds for stage in stages):7.1f}  in all")
    print(f"\nQueries and hits as pictures, and what was measured: {(output / 'index.html').resolve()}")
    print(NEXT)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder that is made anew (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="of the server; 0 takes a free one (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        run_demo(arguments.output, arguments.port or free_port())
    except (ItemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
