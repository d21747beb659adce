"""A model on a catalogue, beside what it was before and beside baselines: measured, and written down for people.

`compare` is what `training.evaluate` runs; other programs call it with models that they have loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from item.catalog.listing import Listing
from item.catalog.reader import Refused, write_refused
from item.engine import Engine
from item.evaluation.dimensions import kept_dimensions
from item.evaluation.errors import ErrorsRemoved, errors_removed
from item.evaluation.exam import TASKS, Contestant, Exam, Positions
from item.evaluation.report import SUBSETS, Report, write_beside
from item.evaluation.result import NO_TWIN
from item.evaluation.sitting import Sitting
from item.evaluation.swap import sentences
from item.evaluation.twins import HASH_SIDE, MAX_BITS, near_twins
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.prepared import MODALITIES, Prepared
from training.baselines import Course, make_baselines
from training.encode import encode_modalities, prepare
from training.frozen import FrozenEncoder
from training.galleries import find_galleries
from training.material import Material
from training.report_page import Page, render_page
from training.view import View, view_again, view_of

NAME, BEFORE = "ITEm", "before"
WAY_OUT = "give --words, --stem and --stem-weights, or --no-baselines"


def compare(
    engine: Engine,
    before: Engine | None,
    material: Material,
    encoder: FrozenEncoder | None,
    folder: Path | None,
    about: Mapping[str, str],
) -> Report:
    """Measures a model on a catalogue.

    Args:
        before: another model to compare with, for instance the starting point.
        encoder: what the baselines are made with; None: they are left out.
        folder: gets evaluation.json, evaluation.md, report.html, queries.parquet and refused.jsonl; None: no files.
        about: what the report says of the models, beside their spaces.

    Raises:
        ModelError: `before` refuses a listing that the model reads.
    """
    seen = encode_modalities(engine, material.listings, "the catalogue")
    offered = encode_modalities(engine, material.offers_of(material.split), "offers")
    offers = None if material.offers is None else offered.listings
    exam = Exam(catalog=seen.listings, offers=offers, split=material.split)
    views = [view_of(NAME, engine, exam, seen, offered)]
    if before is not None:
        views.append(view_again(BEFORE, before, exam))
    sitting = Sitting(exam, twins_of(exam, engine.preprocessor.config))
    for view in views:
        for contestant in view.contestants():
            sitting.add(contestant)
    names = []
    for contestant in baselines(encoder, exam, readable_offers(engine, material, "val")) if encoder else ():
        sitting.add(contestant)
        names.append(contestant.name)
    contributions = [result for view in views for result in view.contributions()]
    refused = [*material.refused, *seen.refused, *offered.refused]
    report = Report(
        about={
            **about,
            **{f"space of {view.name}": view.engine.space for view in views},
            "engine": engine.name,
            **material.about,
            "listings": len(exam.catalog),
            "split": material.split,
        },
        notes=[*sentences(contributions), *notes_on(sitting, views[0], len(refused), bool(names))],
        results=list(sitting.results()),
        differences=list(sitting.differences()),
        contributions=contributions,
        dimensions=[result for view in views for result in kept_dimensions(sitting, view.name)],
        errors_removed=list(removed_errors(sitting, names)),
    )
    if folder is not None:
        save(report, sitting, refused, folder, engine.preprocessor.config)
    return report


def save(
    report: Report, sitting: Sitting, refused: Sequence[Refused], folder: Path, limits: PreprocessorConfig
) -> None:
    """Writes the report's files. limits: of the pictures on the page."""
    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder)
    sitting.save_queries(folder / "queries.parquet")
    write_refused(refused, folder / "refused.jsonl")
    galleries = find_galleries(sitting, (NAME, "both"), rival_of(report), limits)
    page = Page(report=report, system=NAME, before=BEFORE, galleries=galleries)
    write_beside(folder / "report.html", render_page(page))


def rival_of(report: Report) -> tuple[str, str] | None:
    """Whose answers the page shows beside the model's, as (name, inputs): before, else the best baseline."""
    if any(result.system == BEFORE for result in report.results):
        return BEFORE, "both"
    best = (best for one in report.errors_removed for best in one.catalogs.values())
    return next(((one.baseline, one.baseline_inputs) for one in best), None)


def removed_errors(sitting: Sitting, baselines: Sequence[str]) -> Iterator[ErrorsRemoved]:
    """The share of the best baseline's errors removed by both, in each task, measure and large subset."""
    tables = {"this catalogue": sitting.queries()}
    asked = dict.fromkeys((answers.task, measure) for _, answers in sitting.answers for measure in answers.values)
    for task, measure in asked if baselines else ():
        for subset in SUBSETS:
            chosen = {"task": task, "measure": measure, "subset": subset}
            found = errors_removed(tables, system=NAME, baselines=baselines, **chosen)
            if found is not None:
                yield found


def twins_of(exam: Exam, limits: PreprocessorConfig) -> Positions:
    """Positions of the split's rows that have a near twin in train."""
    train = [listing for listing in exam.catalog if listing.split == "train"]
    return exam.rows[near_twins([exam.catalog[row] for row in exam.rows], train, limits)]


def readable_offers(engine: Engine, material: Material, split: str) -> list[Listing] | None:
    """The offers of a split that the engine can read; None for a catalogue without offers."""
    if material.offers is None:
        return None
    return [offer for offer in material.offers_of(split) if isinstance(prepare(engine, offer), Prepared)]


def baselines(encoder: FrozenEncoder, exam: Exam, val_offers: list[Listing] | None) -> Iterator[Contestant]:
    """The baselines for an exam; val_offers: what their settings are chosen on, None for a catalogue without offers."""
    val_exam = Exam(catalog=exam.catalog, offers=val_offers, split="val")
    catalog = encoder.encode(exam.catalog, "the catalogue")
    queries, val_queries = (
        catalog[one.rows] if one.offers is None else encoder.encode(one.offers, f"offers of {one.split}")
        for one in (exam, val_exam)
    )
    course = Course(exam=exam, val_exam=val_exam, catalog=catalog, queries=queries, val_queries=val_queries)
    return make_baselines(course)


def notes_on(sitting: Sitting, view: View, num_refused: int, with_baselines: bool) -> list[str]:
    """What a reader of the tables must know, a sentence each. view: the model's."""
    exam = sitting.exam
    lost = exam.query_products.count("")
    unnamed = sum(not exam.catalog[row].category for row in exam.rows)
    twins = len(exam.rows) - len(sitting.subsets[NO_TWIN].rows)
    without = {part: int((~view.queries[part].any(axis=1)).sum()) for part in MODALITIES}
    answered = {answers.task for _, answers in sitting.answers}
    near = f"the same title, or a picture whose hash differs in at most {MAX_BITS} of {HASH_SIDE**2} bits"
    notes = {
        f"Rows and offers that were refused and left out: {num_refused:,}.": num_refused,
        f"Offers of no listing of the catalogue, left out: {lost:,}.": lost,
        f"Rows with a near twin in train ({near}), left out where it says so: {twins:,} of {len(exam.rows):,}.": True,
        f"Rows without category, not asked for one: {unnamed:,} of {len(exam.rows):,}.": unnamed,
        f"Queries without words, by words answered at random: {without['words']:,}.": without["words"],
        f"Queries without a picture, by picture answered at random: {without['picture']:,}.": without["picture"],
        **{f"Nothing to ask for: {task}.": task not in answered for task in TASKS},
        f"Baselines are left out: the starting weights are not known; {WAY_OUT}.": not with_baselines,
    }
    chosen = dict.fromkeys(f"{one.name}: {one.note}." for one, _ in sitting.answers if one.note)
    return [note for note, applies in notes.items() if applies] + list(chosen)
