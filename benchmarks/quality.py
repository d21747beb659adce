"""How good the vectors are: catalogues aligned with default settings, evaluated, and set beside the baselines.

    python -m benchmarks.quality --json FILE --quick                                 a minute or two on two cores
    python -m benchmarks.quality --json benchmarks/results/quality.json --work DIR --words BERT_FOLDER \\
        --stem-weights tf_efficientnet_lite0.safetensors --catalog fashion=C,OFFERS --catalog luma=C,OFFERS
    python -m benchmarks.quality --json FILE --work DIR --words BERT_FOLDER --stem-weights FILE \\
        --catalog luma=C,OFFERS --split val --seeds 3 --arms full one_view without_groups

Runs `training.align` and `training.evaluate` for each catalogue, arm and seed, in processes of their own, and skips
what is in the work folder already. Trained with the configuration `small`; without starting weights, on the sample
shop alone, with `tiny`: there are no baselines then, and everything is compared with the starting point.

`errors_removed`: by both, the share of the best baseline's errors, pooled over the catalogues; in either task, also on
the held families and without near twins; left out where the baselines make no errors. `vs_best_baseline`: the same as
a paired difference on each catalogue.
`words_vs_start`, `picture_vs_start`: by one modality, less the vectors of its starting weights.
`words_to_picture_vs_two_towers`: recall among the rows of the split over the two towers', both directions.
`dims64_kept`: the share of the recall@10 on the first 64 dimensions.
`training_seconds`: of `training.align` as a whole. Arms share the views that they would draw alike; `where` says who
drew them. `aligned`: 0 where the guard kept the starting point.
METRIC_low and METRIC_high are the ends of the 95% interval, METRIC_worse says that a difference is below zero beyond
chance; with several seeds there are the mean of each METRIC and METRIC_spread, the standard deviation.

Settings are chosen on val (--split val); test is for the end. A trained model of `small` takes some 200 MB in DIR.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality_figures import SPREAD, Figure, Outcome, Place, figures_of, over_seeds, read_outcome
from benchmarks.report import CHECKOUT, commit, write_report
from benchmarks.training import draw_shop, run_program

ARMS: dict[str, tuple[str, ...]] = {
    "full": (),
    "without_categories": ("align.categories=false",),
    "without_groups": ("align.groups=false",),
    "without_labels": ("align.categories=false", "align.groups=false"),
    "without_spelling": ("align.spelling=false",),
    "one_view": ("align.views=1",),
    "two_views": ("align.views=2",),
    "linear_towers": ("align.steps=0",),
    "without_dropout": ("align.dropout=0",),
}
QUICK = ("align.views=2", "align.steps=60")
QUICK_PRODUCTS, PRODUCTS = 80, 260  # of the sample shop


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A catalogue under a name, and second offers where there are any."""

    name: str
    catalog: Path
    offers: Path | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all runs have in common. overrides: those of every arm."""

    config: str
    overrides: tuple[str, ...]
    split: str
    work: Path

    def outcome(self, shop: Shop, arm: str, seed: int) -> Outcome:
        """Trains and evaluates one arm with one seed on one catalogue; skips what was done before."""
        of_shop = self.work / shop.name
        folder = of_shop / f"{arm}-{seed}"
        model, report = folder / "model", folder / self.split
        self.train(shop, arm, seed, folder)
        if not (report / "report.html").is_file():  # the last that is written
            say(f"{shop.name}, {arm}, seed {seed}: evaluating on {self.split}")
            offers = () if shop.offers is None else ("--offers", str(shop.offers))
            run_program(
                "training.evaluate",
                *("--model", str(model), "--before", str(model / "run" / "start")),
                *("--catalog", str(shop.catalog), *offers, "--split", self.split),
                *("--report", str(report), "--cache", str(of_shop / "frozen")),
            )
        outcome = read_outcome(report, model, folder / "training.json")
        asked, offered = outcome.evaluation["about"]["offers"], str(shop.offers or "none")
        if asked != offered:
            raise SystemExit(f"{report}: was evaluated on the offers {asked}, not {offered}; choose another --work")
        return outcome

    def train(self, shop: Shop, arm: str, seed: int, folder: Path) -> None:
        """Aligns, and keeps in FOLDER/training.json how: the time of interrupted attempts counts too."""
        views, record = self.work / shop.name / "views", folder / "training.json"
        settings = (*self.overrides, *ARMS[arm], f"run.seed={seed}", f"run.cache={views}")
        arguments = [
            *("--config", f"training/configs/{self.config}.yaml", "--catalog", str(shop.catalog)),
            *("--output", str(folder / "model"), *settings),
        ]
        known: dict[str, Any] = {"arguments": arguments, "seconds": 0.0, "drew_views": False, "done": False}
        if record.is_file():
            known = json.loads(record.read_text(encoding="utf-8"))
            if known["arguments"] != arguments:
                raise SystemExit(f"{folder}: was trained in another way, see {record.name}; choose another --work")
        if known["done"]:
            return
        say(f"{shop.name}, {arm}, seed {seed}: aligning")
        folder.mkdir(parents=True, exist_ok=True)
        known["commit"] = commit()
        before, since = names_in(views), time.perf_counter()
        try:
            run_program("training.align", *arguments)
            known["done"] = True
        finally:
            known["seconds"] += time.perf_counter() - since
            known["drew_views"] |= names_in(views) != before
            record.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def say(line: str) -> None:
    """What is going on: a run may take an hour."""
    print(line, flush=True)


def names_in(folder: Path) -> set[str]:
    """What is in a folder that may not be there."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def measure(plan: Plan, shops: Sequence[Shop], arms: Sequence[str], num_seeds: int) -> list[Figure]:
    """All figures, metric by metric: first those over seeds, then those of each."""
    figures: list[Figure] = []
    for arm in arms:
        for seed in range(num_seeds):
            outcomes = {shop.name: plan.outcome(shop, arm, seed) for shop in shops}
            figures += figures_of(outcomes, Place(arm=arm, seed=seed, split=plan.split, catalog=""))
    order = list(dict.fromkeys(one.metric for one in figures))
    return sorted([*over_seeds(figures), *figures], key=lambda one: order.index(one.metric.removesuffix(SPREAD)))


def parse_shop(text: str) -> Shop:
    """NAME=CATALOG[,OFFERS]."""
    name, _, paths = text.partition("=")
    catalog, _, offers = paths.partition(",")
    if not name or not catalog or Path(name).name != name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=CATALOG or NAME=CATALOG,OFFERS")
    return Shop(name=name, catalog=Path(catalog).resolve(), offers=Path(offers).resolve() if offers else None)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help=f"fewer views and steps ({' '.join(QUICK)})")
    parser.add_argument(
        "--catalog",
        type=parse_shop,
        action="append",
        default=[],
        metavar="NAME=CATALOG[,OFFERS]",
        help="a catalogue and its offers; may be given several times; default: a sample shop is drawn",
    )
    parser.add_argument("--words", type=Path, help="a BERT checkpoint of MiniLM's sizes that `small` starts from")
    parser.add_argument("--stem-weights", type=Path, help="weights of the stem of `small`, in timm's layout")
    parser.add_argument(
        "--work", type=Path, help="a folder for models and reports, to go on from (runs/quality; with --quick: none)"
    )
    parser.add_argument("--split", choices=("test", "val"), default="test", help="whose rows are asked about (test)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["full"], help="what is trained (full)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trained with seeds 0 to N - 1 (1)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the configuration")
    arguments = parser.parse_intermixed_args(argv)
    names = [shop.name for shop in arguments.catalog]
    if (arguments.words is None) != (arguments.stem_weights is None):
        parser.error("--words and --stem-weights: give both, or neither")
    if arguments.catalog and arguments.words is None:
        parser.error("--catalog: needs --words and --stem-weights, which the baselines are made from")
    if len({*names}) < len(names):
        parser.error(f"--catalog: a name twice, {', '.join(names)}")
    if arguments.seeds < 1:
        parser.error(f"--seeds: {arguments.seeds} must be at least 1")
    return arguments


def run(arguments: argparse.Namespace, work: Path) -> list[Figure]:
    """Draws the sample shop where no catalogue is given, and measures."""
    overrides: tuple[str, ...] = QUICK if arguments.quick else ()
    if arguments.words is not None:
        words, stem = arguments.words.resolve(), arguments.stem_weights.resolve()
        overrides += (f"start.words={words}", f"start.stem_weights={stem}")
    shops = arguments.catalog
    if not shops:
        folder = work / "shop"
        if not (folder / "sample_shop.json").is_file():
            draw_shop(folder, QUICK_PRODUCTS if arguments.quick else PRODUCTS)
        shops = [Shop(name="sample shop", catalog=folder, offers=folder / "offers")]
    config = "tiny" if arguments.words is None else "small"
    plan = Plan(config=config, overrides=(*overrides, *arguments.overrides), split=arguments.split, work=work)
    return measure(plan, shops, list(dict.fromkeys(arguments.arms)), arguments.seeds)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    arguments = parse_arguments(argv)
    if arguments.quick and arguments.work is None:
        with tempfile.TemporaryDirectory() as temporary:
            figures = run(arguments, Path(temporary))
    else:
        figures = run(arguments, (arguments.work or CHECKOUT / "runs" / "quality").resolve())
    results = [result for figure in figures for result in figure.results()]
    write_report("quality", results, ("torch", "timm"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
