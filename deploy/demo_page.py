"""The demo's page: queries and their hits as pictures, what was measured, and how it came about, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = "demo_page.html.j2"
OBJECTIVES = {
    "loss": "all, weighted",
    "itm": "ITM, do words and picture match",
    "mlm": "MLM, masked words",
    "mim": "MIM, masked patches",
    "gmlm": "GMLM, words from the global vector",
    "gmim": "GMIM, patches from the global vector",
}
CHART_WIDTH, CHART_HEIGHT, CHART_POINTS = 300, 90, 60


@dataclass(frozen=True, kw_only=True)
class Card:
    """A listing as shown. `picture` is relative to the page; `score` the cosine with the query; `same` its product."""

    title: str
    picture: str | None = None
    category: str = ""
    score: float | None = None
    same: bool = False


@dataclass(frozen=True, kw_only=True)
class Query:
    """A search: what was asked, the hits best first, and whether one product is the right answer."""

    asked: Card
    hits: Sequence[Card]
    has_answer: bool


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The categories predicted for a listing, most probable first, as (path, probability of the leaf)."""

    asked: Card
    paths: Sequence[tuple[str, float]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command as the reader can repeat it, and the seconds it took."""

    command: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under column names; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A falling line: its SVG points, and the values at both ends."""

    name: str
    points: str
    first: float
    last: float


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything the page shows.

    `searches` by section title, `evaluation` by task; `losses` are the lines of the run's losses.jsonl.
    """

    facts: Mapping[str, str]
    searches: Mapping[str, Sequence[Query]]
    predictions: Sequence[Prediction]
    evaluation: Mapping[str, Table]
    check: Table
    refused: Table
    losses: Sequence[Mapping[str, float]]
    stages: Sequence[Stage]


def render_page(page: Page) -> str:
    """The page as one HTML file; pictures are referred to relative to it, so that it moves with its folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    charts = [chart for key, name in OBJECTIVES.items() if (chart := loss_chart(name, key, page.losses))]
    return environment.get_template(TEMPLATE).render(
        page=page, charts=charts, chart_width=CHART_WIDTH, chart_height=CHART_HEIGHT
    )


def loss_chart(name: str, key: str, losses: Sequence[Mapping[str, float]]) -> Chart | None:
    """One loss over the run as means of equal stretches; None where fewer than two lines have it."""
    values = [line[key] for line in losses if line.get(key) is not None]
    if len(values) < 2:
        return None
    means = _stretches(values, min(CHART_POINTS, len(values)))
    low, span = min(means), (max(means) - min(means)) or 1.0
    points = (
        f"{CHART_WIDTH * i / (len(means) - 1):.1f},{CHART_HEIGHT * (1 - (mean - low) / span):.1f}"
        for i, mean in enumerate(means)
    )
    return Chart(name=name, points=" ".join(points), first=means[0], last=means[-1])


def _stretches(values: Sequence[float], count: int) -> list[float]:
    edges = [round(len(values) * i / count) for i in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
