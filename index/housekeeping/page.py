"""The page of findings for people: by kind, each with its products side by side and why it is listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from index.housekeeping.finding import Finding, Kind

TEMPLATE = "page.html.j2"
MAX_FINDINGS = 100  # of each kind on the page; all are in findings.jsonl
MAX_PRODUCTS = 6  # of each finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A product as shown. picture: a data URI."""

    product_id: str
    title: str
    category: str
    picture: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The findings of a kind, the surest first; count: of all, shown or not."""

    kind: Kind
    count: int
    findings: Sequence[Finding]


def sections(findings: Sequence[Finding]) -> list[Section]:
    """A section for every kind, with what is shown of it."""
    by_kind = {kind: [one for one in findings if one.kind is kind] for kind in Kind}
    return [Section(kind=kind, count=len(some), findings=some[:MAX_FINDINGS]) for kind, some in by_kind.items()]


def shown_ids(findings: Sequence[Finding]) -> set[str]:
    """The products that the page shows."""
    shown = [one for section in sections(findings) for one in section.findings]
    return {name for one in shown for name in (*one.product_ids[:MAX_PRODUCTS], *one.beside)}


def render_page(findings: Sequence[Finding], cards: Mapping[str, Card], facts: Mapping[str, str]) -> str:
    """The page as one HTML file that needs no other; cards: those of `shown_ids`. facts: what was looked at."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        sections=sections(findings), cards=cards, facts=facts, max_products=MAX_PRODUCTS, count=len(findings)
    )
