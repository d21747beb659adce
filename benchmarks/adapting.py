"""All methods of adaptation on a catalogue's categories: accuracy, size, latency (memory, time: adapter_memory).

    python -m benchmarks.adapting --model M --catalog DATA/fashion --work W --json benchmarks/results/adapting.json

Each method learns the leaves of every top level with enough listings, from the same features, with the same head to
start from, the same steps and the same choice of the best pass by held-back loss. `linear` is that head alone: the
linear probe, convex. RoAd and LoRA train one adapter for each top level, all in one run of mixed batches; full
fine-tuning (all layers, one model for all), PaFi, HiWi and MEFT one for all. The first --rates of `RATES` are tried and
the one of the least loss on val is taken; only its answers on test are looked at, by the first seed's rate for all.

Each run is a process of its own and leaves a file in W; started again, the command goes on with those that are missing,
and refuses a W whose runs had other settings.

Accuracy is that of the leaf among all of the catalogue, top level included (the head of the root is the same for all).
`gain_*` and `below_full_*`: over the linear probe, and of full fine-tuning over the method; paired, with intervals by
products, the mean of the seeds of each listing. `stored`: values of one adapter, and `head` those of the heads, which
all have. `bytes`: of one adapter, RoAd's files as they are written, 4 for each value of the others. `speed`: of words
through the layers, 32 listings a batch, over the model alone, as it is served (folded where the method folds, the
adapters mixed in the batch where it does not); by torch, in turns, the median.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.report import CHECKOUT, Result, share, write_report
from item.adapters.files import write_adapter
from item.adapters.head import PATTERNS, Features, Head
from item.adapters.method import Method
from item.adapters.predict import Specialist, predict
from item.adapters.road import Road
from item.errors import ConfigError
from item.evaluation.bootstrap import Statistic, mean_interval, paired_interval, statistic_interval
from item.evaluation.classification import macro_f1
from item.model.batch import Batch, pad_words
from item.model.encoder import ITEm
from training.adapt import Material, adapted_tops, fit_base, heads_of, read_material, train_on
from training.adapt_report import calibration_error, correct
from training.adapting import Adapting, AdaptOptions, Assigned, Labelled, adapted_features, with_temperature

Values = npt.NDArray[np.float64]

# The most usual first; new parameters start at nothing and take more than those of the model.
RATES = {
    "linear": (1e-3,),
    "full": (1e-4, 3e-5),
    "pafi": (1e-3, 3e-4),
    "hiwi": (3e-3, 1e-3),
    "meft1": (1e-3, 3e-4),
    "lora": (1e-3, 3e-4),
    "road_lora": (3e-3, 1e-3),
    "road_1": (3e-3, 5e-3),
    "road_2": (3e-3, 5e-3),
    "road_4": (3e-3, 5e-3),
}
EACH = ("road_1", "road_2", "road_4", "lora", "road_lora")  # an adapter for each top level; the others: one for all
ROUNDS, BATCH = 25, 32  # of timing


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training."""

    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.method}-{self.rate:g}-{self.seed}"


def run_once(task: Task, material: Material, options: AdaptOptions, work: Path) -> dict[str, Any]:
    """Trains one method and answers on test."""
    torch.manual_seed(task.seed)
    model, (train, val, test) = material.model, (material.labelled[one] for one in ("train", "val", "test"))
    base = fit_base(train, val)
    heads = adapted_tops(train, base, options, ())
    figures: dict[str, Any] = {"head": sum(head.weight.size + head.bias.size for head in base)}
    if task.method == "linear":
        adapting = Adapting(model, None, heads, train.words_width, shared=True)
    else:
        run = train_on(material, task.method, heads, options, work, shared=task.method not in EACH)
        adapting = run.adapting
        figures |= {"passes": run.epoch, "stored": stored(adapting), "bytes": bytes_of(adapting, material)}
        if adapting.method is not None:  # else it is the model's own graph
            figures["speed"] = speed(model, adapting.method, val)
    figures["val_loss"] = held_back_loss(adapting, Assigned.of(val, heads))
    answers = answer(material, base, adapting, test)
    return {"figures": figures, "answers": answers, "top_levels": len(heads)}


def held_back_loss(adapting: Adapting, val: Assigned) -> float:
    """By which rates are chosen: the mean over val of the loss by both."""
    features = torch.from_numpy(adapted_features(adapting, val.listings, val.tops))
    with torch.no_grad():
        return float(adapting.losses(features, torch.from_numpy(val.targets), val.tops).mean())


def answer(material: Material, base: Sequence[Head], adapting: Adapting, test: Labelled) -> dict[str, Any]:
    """What two passes answer on test, by each modality: right or not, the leaf, the confidence."""
    val = material.labelled["val"]
    seen = [val[val.below(head.category)] for head in adapting.heads]
    tops = [np.full(len(one), number, dtype=np.int64) for number, one in enumerate(seen)]
    adapted = [adapted_features(adapting, one, top) for one, top in zip(seen, tops, strict=True)]
    trained = [adapting.head(number) for number in range(len(adapting.heads))]
    own = with_temperature(trained, adapted, [one.categories for one in seen])
    specialists = {head.category: Specialist(name=str(number), head=head) for number, head in enumerate(own)}
    heads, answers = heads_of(material, base), dict[str, Any]()
    for pattern in PATTERNS:
        seen_by = Labelled(
            categories=test.categories,
            word_ids=test.word_ids if pattern != "picture" else [None] * len(test),
            features=test.seen_by(pattern),
            words_width=test.words_width,
        )
        there = np.flatnonzero(seen_by.features.any(axis=1))
        asked = seen_by[there]

        def second(pairs: Sequence[tuple[int, str]], asked: Labelled = asked) -> Features:
            rows = np.array([row for row, _ in pairs], dtype=np.intp)
            return adapted_features(adapting, asked[rows], np.array([int(name) for _, name in pairs], dtype=np.int64))

        predicted = predict(heads, asked.features, specialists, second, top_k=1)
        answers[pattern] = {
            "rows": there.tolist(),
            "right": correct(asked.categories, predicted).tolist(),
            "leaf": [list(one.paths[0][0]) for one in predicted],
            "confidence": [one.paths[0][1][-1] for one in predicted],
        }
    return answers


def stored(adapting: Adapting) -> int:
    """Values of one adapter; full fine-tuning: those of all layers."""
    if adapting.method is None:
        return sum(parameter.numel() for parameter in adapting.model.layers.parameters())
    return adapting.method.num_stored


def bytes_of(adapting: Adapting, material: Material) -> int:
    """Of one adapter on disk: RoAd's files as they are written; of the others the values alone, in float32."""
    method = adapting.method
    if not isinstance(method, Road):
        return 4 * stored(adapting)
    with tempfile.TemporaryDirectory() as folder:
        written = write_adapter(
            Path(folder),
            "one",
            method.values(0),
            method=method.config.variant,
            config=material.model.config,
            model_space=material.space,
        )
        return sum(file.stat().st_size for file in written.rglob("*") if file.is_file())


@torch.no_grad()
def speed(model: ITEm, method: Method, val: Labelled) -> float:
    """The model's time over its time with the adapters, for words through the layers: the median over rounds in turns.

    Methods that fold run folded, in the same layers, so that theirs differs from 1 by noise alone.
    """
    ids, mask = pad_words([one for one in val.word_ids if one is not None][:BATCH])
    batch = Batch(word_ids=ids, word_mask=mask, picture_rows=torch.zeros(0, dtype=torch.int64))
    rows = torch.arange(len(ids)) % method.num_adapters
    folded = None
    if method.num_adapters == 1:
        with suppress(ConfigError):
            folded = copy.deepcopy(model)
            folded.load_state_dict(method.fold())

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def with_adapters() -> object:
        if folded is not None:
            return folded(batch)
        with method.applied(rows):
            return model(batch)

    ratios = [seconds(lambda: model(batch)) / seconds(with_adapters) for _ in range(2 + ROUNDS)]
    return statistics.median(ratios[2:])


def is_wanted(task: Task, arguments: argparse.Namespace) -> bool:
    """Whether a run belongs to the table: all do, or those that are there."""
    return not arguments.so_far or kept_in(task, arguments.work).exists()


def kept_in(task: Task, work: Path) -> Path:
    """A run's file."""
    return work / f"{task.name}.json"


def in_a_fresh_process(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """As `run_once`, its result kept in a file."""
    kept = kept_in(task, arguments.work)
    if not kept.exists():
        command = [sys.executable, "-m", "benchmarks.adapting", "--one", task.method, str(task.rate), str(task.seed)]
        for name in ("model", "catalog", "work", "epochs"):
            command += [f"--{name}", str(getattr(arguments, name))]
        command += [] if arguments.batch_size is None else ["--batch-size", str(arguments.batch_size)]
        print(f"{task.name} ...", file=sys.stderr)
        subprocess.run(command, cwd=CHECKOUT, check=True)
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    if found["settings"] != settings_of(arguments):
        raise SystemExit(f"{kept}: was made with {found['settings']}; choose another --work")
    return found


def settings_of(arguments: argparse.Namespace) -> dict[str, str]:
    """What all runs of a folder have in common."""
    return {name: str(getattr(arguments, name)) for name in ("model", "catalog", "epochs", "batch_size")}


def run_one(arguments: argparse.Namespace) -> None:
    """This process's task; its checkpoints go when the result is there."""
    method, rate, seed = arguments.one
    task = Task(method=method, rate=float(rate), seed=int(seed))
    options = AdaptOptions(epochs=arguments.epochs, batch_size=arguments.batch_size, lr=task.rate, seed=task.seed)
    material = read_material(arguments.model, arguments.catalog, arguments.work)
    place = arguments.work / task.name
    place.mkdir(parents=True, exist_ok=True)
    result = run_once(task, material, options, place)
    result["settings"] = settings_of(arguments)
    result["groups"] = [one.group_id or one.product_id for one in material.listings["test"]]
    result["expected"] = [list(one) for one in material.labelled["test"].categories]
    beside = arguments.work / f"{task.name}.partial"
    beside.write_text(json.dumps(result), encoding="utf-8")
    beside.replace(kept_in(task, arguments.work))
    shutil.rmtree(place)


def chosen(found: Mapping[Task, dict[str, Any]]) -> Task:
    """The rate of the least loss on val."""
    return min(found, key=lambda task: float(found[task]["figures"]["val_loss"]))


def right_of(runs: Sequence[dict[str, Any]], pattern: str) -> Values:
    """(N,): the share of the seeds that answer each listing rightly."""
    return np.mean([run["answers"][pattern]["right"] for run in runs], axis=0)


def macro_f1_of(runs: Sequence[dict[str, Any]]) -> Statistic:
    """By both, the mean of the seeds."""
    answers = [run["answers"]["both"] for run in runs]
    expected = [tuple(runs[0]["expected"][row]) for row in answers[0]["rows"]]
    each = [macro_f1(expected, list(map(tuple, one["leaf"]))) for one in answers]
    return lambda weights: np.mean([one(weights) for one in each], axis=0)


def less(first: Statistic, second: Statistic) -> Statistic:
    """How much higher the first is, on the same draws."""
    return lambda weights: first(weights) - second(weights)


def results_of(runs: Mapping[str, Sequence[dict[str, Any]]], rates: Mapping[str, float], where: str) -> list[Result]:
    """The table, a method after the other. runs: of each method, one for each seed."""
    results = []

    def add(metric: str, value: float, unit: str, against: str = "", note: str = "") -> None:
        results.append(Result(metric=metric, value=value, unit=unit, against=against, where=f"{where}{note}"))

    for method, seeds in runs.items():
        add(f"rate_{method}", rates[method], "", "", f", {len(seeds)} seeds")
        for pattern in PATTERNS:
            rows = seeds[0]["answers"][pattern]["rows"]
            groups = [seeds[0]["groups"][row] for row in rows]
            right, linear = right_of(seeds, pattern), right_of(runs["linear"], pattern)
            results.append(share(f"accuracy_{pattern}_{method}", mean_interval(right, groups), where))
            if method != "linear":
                gain = paired_interval(right, linear, groups)
                results.append(share(f"gain_{pattern}_{method}", gain, where, "linear"))
            if method not in ("linear", "full") and "full" in runs:
                full = right_of(runs["full"], pattern)
                below = paired_interval(full, right, groups)
                results.append(share(f"below_full_{pattern}_{method}", below, where, "full"))
        groups = [seeds[0]["groups"][row] for row in seeds[0]["answers"]["both"]["rows"]]
        f1 = macro_f1_of(seeds)
        results.append(share(f"macro_f1_both_{method}", statistic_interval(f1, len(groups), groups), where))
        if method not in ("linear", "full") and "full" in runs:
            difference = less(macro_f1_of(runs["full"]), f1)
            below = statistic_interval(difference, len(groups), groups)
            results.append(share(f"below_full_macro_f1_{method}", below, where, "full"))
        both = [run["answers"]["both"] for run in seeds]
        errors = [calibration_error(np.array(one["confidence"]), np.array(one["right"])) for one in both]
        add(f"calibration_both_{method}", statistics.mean(errors), "share")
        figures = seeds[0]["figures"]
        add(f"head_{method}", figures["head"], "values")
        if method == "linear":
            continue
        note = f", one for each of {seeds[0]['top_levels']} top levels" if method in EACH else ", one for all"
        add(f"stored_{method}", figures["stored"], "values", "", note)
        add(f"bytes_{method}", figures["bytes"], "bytes", "", note)
        add(f"passes_{method}", statistics.median(run["figures"]["passes"] for run in seeds), "passes")
        if "speed" in figures:
            value = statistics.median(run["figures"]["speed"] for run in seeds)
            add(f"speed_{method}", value, "ratio", "the model alone")
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--work", required=True, type=Path, help="features and results of the runs")
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=RATES, help="linear is always there")
    parser.add_argument("--seeds", type=int, default=3, help="of each method, at its best rate (%(default)s)")
    parser.add_argument("--rates", type=int, default=2, help="of each method that are tried (%(default)s)")
    parser.add_argument("--epochs", type=int, default=AdaptOptions.epochs)
    parser.add_argument("--batch-size", type=int, help="(by the catalogue)")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of the runs that W has")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "RATE", "SEED"), help="only this run, in this process")
    arguments = parser.parse_args(argv)
    if arguments.one:
        run_one(arguments)
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs, rates = dict[str, list[dict[str, Any]]](), dict[str, float]()
    for method in dict.fromkeys(("linear", *arguments.methods)):
        tasks = [Task(method=method, rate=rate, seed=0) for rate in RATES[method][: arguments.rates]]
        tried = {task: in_a_fresh_process(task, arguments) for task in tasks if is_wanted(task, arguments)}
        if not tried:
            continue
        best = chosen(tried)
        more = [] if method == "linear" else [replace(best, seed=seed) for seed in range(1, arguments.seeds)]
        seeds = [in_a_fresh_process(task, arguments) for task in more if is_wanted(task, arguments)]
        runs[method], rates[method] = [tried[best], *seeds], best.rate
    where = f"{Path(arguments.catalog).name}, test, {len(runs['linear'][0]['expected'])} listings"
    write_report("adapting", results_of(runs, rates, where), ("torch", "numpy"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
