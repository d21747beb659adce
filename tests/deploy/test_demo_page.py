"""The demo's page shows every query and hit, escapes what sellers write, and refers to nothing outside its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from deploy.demo_page import OBJECTIVES, Card, Page, Prediction, Query, Stage, Table, loss_chart, render_page

ATTACK = '<script>alert("x")</script> & "quotes"'
VOID = {"meta", "img", "br", "link", "line", "polyline"}


def card(name: str, same: bool = False) -> Card:
    picture = f"shop/images/0000/{name}.jpg"
    return Card(title=f"Title of {name}", picture=picture, category="Home/Kitchen/Mugs", score=0.5, same=same)


def query(name: str, asked: Card, same: Sequence[int] = ()) -> Query:
    hits = [card(f"{name}-hit-{rank}", rank in same) for rank in range(6)]
    return Query(asked=asked, hits=hits, has_answer=bool(same))


@pytest.fixture
def page() -> Page:
    return Page(
        facts={"listings": "1,161", "seconds of training": "123"},
        searches={
            "By words": [query("a", Card(title="striped mug")), query("b", Card(title="teapot"), same=[0, 3])],
            "By picture": [query("c", Card(title="", picture="shop/offers/images/c.jpg"), same=[1])],
            "By both": [query("d", card("d"))],
        },
        predictions=[Prediction(asked=card("e"), paths=[("Home/Kitchen/Mugs", 0.8), ("Toys/Bears", 0.2)])],
        evaluation={"same product": Table(columns=["inputs", "recall@1"], rows=[["words", "0.42 [0.40, 0.44]"]])},
        check=Table(columns=["", "rows"], rows=[["kept", "1,161"]]),
        refused=Table(columns=["planted", "reason"], rows=[["missing_id", "is blank"]]),
        losses=[{"step": step, "loss": 10 / step, "mlm": 5 / step} for step in range(1, 401)],
        stages=[Stage(command="python -m training.check --catalog demo/shop", seconds=1.25)],
    )


class Tags(HTMLParser):
    """Collects attributes, and fails where tags are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_shows_every_query_and_hit(page: Page) -> None:
    html = render_page(page)
    pictures = [value for tag, name, value in Tags(html).attributes if (tag, name) == ("img", "src")]
    for name, queries in page.searches.items():
        assert f"<h2>{name}</h2>" in html
        for query in queries:
            assert query.asked.title in html
            for shown in [query.asked, *query.hits]:
                assert shown.picture is None or shown.picture in pictures
            assert all(hit.title in html for hit in query.hits)
    assert len(pictures) == 4 * 6 + 2 + 1
    assert html.count('<li class="same">') == 3
    assert re.findall(r"(\d) of 6 hits: same product", html) == ["2", "1"]


def test_shows_what_was_measured(page: Page) -> None:
    html = render_page(page)
    for text in (
        "1,161",
        "same product",
        "0.42 [0.40, 0.44]",
        "is blank",
        "python -m training.check --catalog demo/shop",
        "400 steps",
    ):
        assert text in html
    assert '<meter value="0.800"' in html
    assert html.count('<span class="badge">right</span>') == 1
    assert html.count("<svg") == 2  # the losses that the run has: loss and mlm


def test_escapes_what_sellers_write(page: Page) -> None:
    harmless = render_page(page).count("<script")
    bad = Card(title=ATTACK, picture='x" onerror="alert(1)', category=ATTACK, score=0.1)
    table = Table(columns=[ATTACK], rows=[[ATTACK]])
    attacked = replace(
        page,
        facts={ATTACK: ATTACK},
        searches={ATTACK: [Query(asked=bad, hits=[bad], has_answer=True)]},
        predictions=[Prediction(asked=bad, paths=[(ATTACK, 0.5)])],
        evaluation={ATTACK: table},
        check=table,
        refused=table,
        stages=[Stage(command=ATTACK, seconds=1)],
    )
    html = render_page(attacked)
    assert html.count("<script") == harmless == 0
    assert "&lt;script&gt;" in html
    assert "onerror" not in {name for _, name, _ in Tags(html).attributes}


def test_refers_to_nothing_outside_its_folder(page: Page) -> None:
    for _, name, value in Tags(render_page(page)).attributes:
        if name in ("src", "href"):
            assert re.match(r"shop/|#", value), value
    assert "http" not in render_page(page)
    assert "@import" not in render_page(page)


def test_listings_without_words_picture_or_category_have_their_place(page: Page) -> None:
    bare = Card(title="", score=0.25)
    html = render_page(
        replace(page, searches={"By words": [Query(asked=Card(title="mug"), hits=[bare], has_answer=False)]}, losses=[])
    )
    assert "(no title)" in html
    assert "no picture" in html
    assert "no category" in html
    assert "0.250" in html
    assert "<svg" not in html


def test_loss_chart_falls_from_the_upper_left_to_the_lower_right() -> None:
    chart = loss_chart("all", "loss", [{"step": i, "loss": float(i)} for i in range(1000, 0, -1)])
    assert chart is not None
    points = [tuple(map(float, point.split(","))) for point in chart.points.split()]
    assert points[0] == (0, 0)
    assert points[-1] == (300, 90)
    assert points == sorted(points)
    assert chart.first > 990 > 10 > chart.last


@pytest.mark.parametrize("losses", [[], [{"loss": 1.0}], [{"mlm": 1.0}, {"mlm": 2.0}]])
def test_loss_chart_needs_two_values(losses: list[dict[str, float]]) -> None:
    assert loss_chart("all", "loss", losses) is None


def test_a_constant_loss_is_a_line() -> None:
    chart = loss_chart("all", "loss", [{"loss": 3.0}] * 5)
    assert chart is not None
    assert chart.points.split()[0] == "0.0,90.0"
    assert set(OBJECTIVES) >= {"loss", "itm", "mlm", "mim", "gmlm", "gmim"}
