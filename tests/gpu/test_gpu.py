"""What only a machine with a GPU can show (`make gpu-check`): each path there against the same on the CPU."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import pytest
import torch

from index.about import About
from index.exact import ROUNDING, nearest
from index.filters import Range
from index.gpu import GPU_KIND, find_gpu
from index.product import Product
from index.store import Store
from index.upkeep import Upkeep
from item.catalog.listing import Listing
from item.engine import load_engine
from item.export.variants import Exporter
from item.preprocessing.prepared import MODALITIES
from training.pretrain import main

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
needs_onnx_on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="no GPU, or an ONNX Runtime for the CPU alone (make EXTRA=gpu ... installs the other)",
)
needs_faiss_on_gpu = pytest.mark.skipif(
    not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0,
    reason="no GPU, or a FAISS for the CPU alone (make EXTRA=gpu ... installs the other)",
)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, to put variants into."""
    return shutil.copytree(model_folder, tmp_path / "model")


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@needs_gpu
def test_a_step_in_bfloat16_follows_the_cpu(catalog_folder: Path, tmp_path: Path) -> None:
    config = Path(__file__).resolve().parents[2] / "training" / "configs" / "tiny.yaml"
    for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        output = tmp_path / f"{device}-{precision}"
        arguments = ["--config", str(config), "--catalog", str(catalog_folder), "--output", str(output)]
        sizes = ["run.steps=5", "run.batch_size=16", f"run.precision={precision}"]
        assert main([*arguments, "--device", device, *sizes]) == 0
    on_cpu = losses(tmp_path / "cpu-float32")
    assert losses(tmp_path / "cuda-float32") == pytest.approx(on_cpu, rel=2e-3)
    assert losses(tmp_path / "cuda-bfloat16") == pytest.approx(on_cpu, rel=2e-2)


@needs_gpu
def test_the_compiled_engine_agrees_with_the_cpu(model_folder: Path, listings: list[Listing]) -> None:
    on_gpu, on_cpu = load_engine(model_folder, "cuda"), load_engine(model_folder, "cpu")
    assert on_gpu.name == "torch cuda float32 compiled"
    assert on_gpu.space == on_cpu.space
    expected = on_cpu.encode(listings).vectors
    for count in (1, 7, len(listings)):  # other shapes than those that were compiled first
        np.testing.assert_allclose(on_gpu.encode(listings[:count]).vectors, expected[:count], atol=2e-3)


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_with_the_cpu(folder: Path, listings: list[Listing], precision: str) -> None:
    full = load_engine(folder, "cpu")
    prepared = [full.preprocessor(listing) for listing in listings]
    Exporter(folder, (), prepared).export(precision)
    half = load_engine(folder, "cuda", variant=precision)
    cosines = (half.encode_prepared(prepared) * full.encode_prepared(prepared)).sum(1)
    assert cosines.min() > 0.999


@needs_onnx_on_gpu
def test_onnx_runtime_agrees_with_the_cpu(folder: Path, listings: list[Listing]) -> None:
    Exporter(folder).export("fp32")
    on_gpu, on_cpu = (load_engine(folder, device, variant="fp32") for device in ("cuda", "cpu"))
    assert on_gpu.name == "onnxruntime cuda float32"
    prepared = [on_cpu.preprocessor(listing) for listing in listings]
    for modality in MODALITIES:
        some = [kept for one in prepared if (kept := one.only(modality)) is not None]
        np.testing.assert_allclose(on_gpu.encode_prepared(some), on_cpu.encode_prepared(some), atol=2e-3)


@needs_faiss_on_gpu
def test_faiss_on_the_gpu_finds_what_the_cpu_finds(tmp_path: Path) -> None:
    """To the last hit and score, under filters too, while threads search at once and segments are written anew."""
    vectors = np.random.default_rng(0).standard_normal((30_000, 64), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    products = [Product(product_id=f"p{row}", attributes={"price": float(row)}) for row in range(len(vectors))]
    about, queries = About(space="5" * 64, vector_width=64), vectors[:500] + 0.01
    Store.create(tmp_path / "index", about, [(products[:20_000], vectors[:20_000])]).close()
    filters = {share: [Range("price", below=share * 20_000)] * len(queries) for share in (0.5, 0.1, 0.0005)}
    with Store.open(tmp_path / "index") as store:
        assert [one.kind for one in store.segments()] == ["Flat"]
        expected = store.search(queries, 10)
        filtered = {share: store.search(queries, 10, filters=one) for share, one in filters.items()}
    gpu = find_gpu("cuda")
    assert gpu is not None
    scores, rows = gpu.hold(vectors).nearest(queries, 50)  # type: ignore[union-attr]
    exact_scores, _ = nearest(queries, vectors, 50)
    np.testing.assert_allclose(scores, exact_scores, atol=ROUNDING)
    np.testing.assert_allclose(np.einsum("qd,qfd->qf", queries, vectors[rows]), exact_scores, atol=ROUNDING)
    upkeep = Upkeep(background=False, flush_rows=1)
    with Store.open(tmp_path / "index", writable=True, upkeep=upkeep, gpu=gpu) as store:
        assert [one.kind for one in store.segments()] == [GPU_KIND]
        with ThreadPoolExecutor(4) as threads:
            assert all(found == expected for found in threads.map(lambda _: store.search(queries, 10), range(8)))
        for share, one in filters.items():
            assert store.search(queries, 10, filters=one) == filtered[share]
        store.upsert(products[20_000:], vectors[20_000:])
        store.compact()
        assert [(one.kind, len(one)) for one in store.segments()] == [(GPU_KIND, len(vectors))]
        found = store.search(np.ascontiguousarray(vectors[-100:]), 1)
        assert [one.product_ids for one in found] == [[f"p{row}"] for row in range(29_900, 30_000)]
