"""The results file that every benchmark writes, and its table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from item.evaluation.bootstrap import Interval

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure. `against`: what it is compared with; `where`: on what it was measured."""

    metric: str
    value: float
    unit: str
    against: str = ""
    where: str = ""


def share(metric: str, interval: Interval, where: str, against: str = "") -> Result:
    """A share with its interval."""
    return Result(
        metric=metric,
        value=interval.value,
        unit="share",
        against=against,
        where=f"{where}, [{interval.low:.4f}, {interval.high:.4f}]",
    )


def write_report(name: str, results: Sequence[Result], packages: Sequence[str], path: Path | None) -> None:
    """Prints the table, and writes the JSON where a path is given."""
    print_table(results)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "results": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def print_table(results: Sequence[Result]) -> None:
    """Aligned columns."""
    rows = [("metric", "value", "unit", "against", "where")]
    rows += [(one.metric, f"{one.value:.4g}", one.unit, one.against, one.where) for one in results]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def commit() -> str:
    """The checkout's commit, marked where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's name as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
