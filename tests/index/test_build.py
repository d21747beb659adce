"""The job as a whole, on a real small model: what it makes, refuses, and does after it was killed.

What Ray does is tested on Ray; what the job decides around it, with the same stages run in this process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

import index.build
import index.pipeline
from index.build import REFUSED_FILE, BuildConfig, Summary, build, main
from index.exact import Vectors
from index.generations import CURRENT
from index.pipeline import RETRIES, Embed, Job, pack, prepare, read, unpack, write
from index.product import Product
from index.shards import PARTIAL, Mark, read_marks
from index.store import Store, read_about
from index.truth import TRUTH
from item.catalog.listing import Listing
from item.catalog.reader import read_catalog
from item.engine import load_engine
from item.errors import CatalogError, ConfigError, ItemError, LeaseError, SpaceError, StoreError, UnavailableError
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.preprocessor import Preprocessor
from item.ray_settings import set_ray_defaults
from tests.fetching.picture_server import Shop, answer, in_turn, running_shop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def running_ray() -> Iterator[None]:
    """One Ray for the whole module: starting it takes seconds, on a busy machine many."""
    set_ray_defaults()
    ray.init(num_cpus=5, object_store_memory=128 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def embed_here(job: Job, done: frozenset[int]) -> Generator[Mark]:
        embed = Embed(job)
        for table in read(pack(None), job, done):
            yield unpack(write(embed(prepare(table, job)), job.folder))

    monkeypatch.setattr(index.build, "embed_catalog", embed_here)


@pytest.fixture
def config(model_folder: Path, catalog_folder: Path, tmp_path: Path) -> BuildConfig:
    return BuildConfig(
        model=str(model_folder),
        catalog=catalog_folder,
        index=tmp_path / "index",
        shard_rows=5,
        num_workers=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def other_model(tiny_config: ItemConfig, preprocessor: Preprocessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights: another space."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(2)
    ITEm(tiny_config).save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    return folder


def built(config: BuildConfig) -> Summary:
    summary = build(config)
    assert summary is not None
    return summary


def built_folder(config: BuildConfig) -> Path:
    built(config)
    return config.folder


def content(folder: Path) -> dict[str, tuple[Product, Vectors]]:
    """What a collection holds, by id, in the order in which it was written."""
    with Store.open(folder) as store, store._truth.frozen() as frozen:
        return {
            product.product_id: (product, vector)
            for _, products, vectors in frozen.blocks()
            for product, vector in zip(products, vectors, strict=True)
        }


def same(one: dict[str, tuple[Product, Vectors]], other: dict[str, tuple[Product, Vectors]]) -> bool:
    """Whether two collections hold the same, to the bit and in the same order."""
    return list(one) == list(other) and all(
        one[name][0] == other[name][0] and np.array_equal(one[name][1], other[name][1]) for name in one
    )


@pytest.mark.usefixtures("running_ray")
def test_the_index_holds_what_the_library_computes(config: BuildConfig, listings: list[Listing]) -> None:
    summary = built(config)
    store = Store.open(config.folder)
    engine = load_engine(config.model, "cpu")
    vectors = engine.encode(listings).vectors
    assert len(store) == len(listings) == summary.num_rows == summary.num_embedded
    assert store.about.space == engine.space
    for row, listing in enumerate(listings):
        vector = store.vector(listing.product_id)
        assert vector is not None
        np.testing.assert_allclose(vector, vectors[row], atol=1e-5)
        assert store.product(listing.product_id) == Product.from_listing(listing)
    assert (config.folder / REFUSED_FILE).read_text() == ""
    assert not (config.folder / PARTIAL).exists()
    assert 0 < summary.num_embedded / summary.embed_s < summary.steady_rate


@pytest.mark.usefixtures("running_ray")
def test_pictures_as_bytes_and_bad_rows(config: BuildConfig, listings: list[Listing], tmp_path: Path) -> None:
    """A Parquet file with its pictures inside. Bad rows are left out and listed; the other vectors are the same."""
    rows: list[dict[str, object]] = [
        {
            "product_id": listing.product_id,
            "title": listing.title,
            "description": listing.description,
            "image": {"bytes": listing.images[0].data, "path": listing.images[0].reference} if listing.images else None,
        }
        for listing in listings
    ]
    rows[3:3] = [
        {"product_id": "broken", "image": {"bytes": b"no picture"}},
        {"product_id": "none"},
        {"title": "a mug"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "catalog.parquet")
    summary = built(replace(config, catalog=tmp_path / "catalog.parquet"))
    refused = [json.loads(line) for line in (config.folder / REFUSED_FILE).read_text().splitlines()]
    assert [(row["line"], row["product_id"]) for row in refused] == [(4, "broken"), (5, "none"), (6, "")]
    assert (summary.num_rows, summary.num_refused, summary.num_embedded) == (len(rows), 3, len(listings))
    assert "3 refused: see refused.jsonl" in summary.lines()
    store, expected = Store.open(config.folder), load_engine(config.model, "cpu").encode(listings).vectors
    for row, listing in enumerate(listings):
        vector = store.vector(listing.product_id)
        assert vector is not None
        np.testing.assert_allclose(vector, expected[row], atol=1e-5)


@pytest.fixture
def shop() -> Iterator[Shop]:
    with running_shop() as shop:
        yield shop


@pytest.fixture
def by_url(config: BuildConfig, listings: list[Listing], shop: Shop, tmp_path: Path) -> BuildConfig:
    """The same listings with their pictures on a server, in two files."""
    rows = []
    for listing in listings:
        row: dict[str, object] = {"product_id": listing.product_id, "title": listing.title}
        for picture in listing.images:
            assert picture.data is not None
            row["image"] = shop.url(f"/{picture.reference}", answer(200, picture.data))
        rows.append(row)
    folder = tmp_path / "by-url"
    folder.mkdir()
    for number, some in enumerate((rows[:30], rows[30:])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"part-{number}.parquet")
    return replace(config, catalog=folder, allow_hosts=("localhost",), allow_private_addresses=True)


@pytest.mark.usefixtures("running_ray")
def test_pictures_by_url(by_url: BuildConfig, listings: list[Listing], shop: Shop) -> None:
    """Each is fetched once. What cannot be had is refused with its file, line, id and reason."""
    shop.answers["/0.png"] = answer(404, b"")
    shop.answers["/31.png"] = answer(200, b"no picture")
    summary = built(by_url)
    refused = [json.loads(line) for line in (by_url.folder / REFUSED_FILE).read_text().splitlines()]
    assert [(row["file"], row["line"], row["product_id"], row["field"]) for row in refused] == [
        ("part-0.parquet", 1, "p0", "image"),
        ("part-1.parquet", 2, "p31", "image"),
    ]
    assert refused[0]["reason"] == f"'{shop.url('/0.png')}': answers 404 Not Found; check the URL"
    with_pictures = [listing for listing in listings if listing.images]
    assert shop.asked == {f"/{listing.images[0].reference}": 1 for listing in with_pictures}
    held = content(by_url.folder)
    kept = [listing for listing in listings if listing.product_id not in ("p0", "p31")]
    assert list(held) == [listing.product_id for listing in kept]
    expected = load_engine(by_url.model, "cpu").encode([replace(one, description="") for one in kept]).vectors
    np.testing.assert_allclose([vector for _, vector in held.values()], expected, atol=1e-5)
    assert all(
        product.image == shop.url(f"/{product.product_id[1:]}.png") for product, _ in held.values() if product.image
    )
    assert summary.about.hosts == ("localhost",)


@pytest.mark.usefixtures("without_ray")
def test_what_was_encoded_is_not_fetched_again(
    by_url: BuildConfig, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_listing = Product.from_listing

    def until_22(listing: Listing) -> Product:
        return interrupt() if listing.product_id == "p22" else from_listing(listing)

    with monkeypatch.context() as patched:
        patched.setattr(Product, "from_listing", until_22)
        with pytest.raises(KeyboardInterrupt):
            build(by_url)
    fetched = {int(path[1:-4]) for path in shop.asked}
    assert built(by_url).num_embedded == 28
    again = {int(path[1:-4]) for path, count in shop.asked.items() if count > 1}
    assert again == {number for number in fetched if number >= 20}
    assert 22 in again


@pytest.mark.usefixtures("without_ray")
def test_nothing_is_fetched_unless_it_is_allowed(by_url: BuildConfig, shop: Shop) -> None:
    """URLs are refused, or their hosts are, or their addresses are. A later job with other hosts is another job."""
    strict = replace(by_url, allow_private_addresses=False)
    for number, (config, message) in enumerate(
        [
            (replace(strict, allow_hosts=()), "is a URL, which is not fetched; give index.build --allow-host"),
            (
                replace(strict, allow_hosts=("shop.example",)),
                "host 'localhost' is not allowed; add --allow-host localhost",
            ),
            (strict, "which is not public; see --allow-private-addresses"),
        ]
    ):
        summary = built(replace(config, index=by_url.index / str(number)))
        refused = (by_url.index / str(number) / config.collection / REFUSED_FILE).read_text().splitlines()
        assert 0 < summary.num_refused == len(refused) < summary.num_rows
        assert all(message in json.loads(line)["reason"] for line in refused)
    assert not shop.asked
    assert built(replace(by_url, index=by_url.index / "0")).num_refused == 0


@pytest.mark.usefixtures("without_ray")
def test_several_files_are_one_catalogue(config: BuildConfig, catalog_folder: Path, tmp_path: Path) -> None:
    """The index is that of the one file; a change of any file is noticed."""
    built(config)
    folder = tmp_path / "parts"
    shutil.copytree(catalog_folder, folder)
    lines = (folder / "catalog.jsonl").read_text().splitlines(keepends=True)
    (folder / "catalog.jsonl").unlink()
    for number, start in enumerate(range(0, len(lines), 11)):
        (folder / f"part-{number}.jsonl").write_text("".join(lines[start : start + 11]))
    parts = replace(config, catalog=folder, index=tmp_path / "of-parts")
    assert built(parts).num_products == len(lines)
    assert same(content(parts.folder), content(config.folder))
    assert build(replace(parts, catalog=folder / "part-*.jsonl")) is None
    (folder / "part-3.jsonl").write_text("")
    assert built(parts).num_products == len(lines) - 11
    (folder / "part-2.jsonl").rename(folder / "part-9.jsonl")
    assert list(content(built_folder(parts)))[-11:] == [json.loads(line)["product_id"] for line in lines[22:33]]


@pytest.mark.usefixtures("without_ray")
def test_one_split(config: BuildConfig, listings: list[Listing]) -> None:
    summary = built(replace(config, splits=("test", "val")))
    expected = [listing.product_id for listing in listings if listing.split in ("test", "val")]
    assert list(content(config.folder)) == expected
    assert f"{len(listings) - len(expected)} of other splits than test, val" in summary.lines()
    with pytest.raises(CatalogError, match="nothing to index: no listing is of the splits none"):
        build(replace(config, splits=("none",), index=config.index / "none"))


@pytest.mark.usefixtures("without_ray")
def test_a_catalogue_with_nothing_to_index(config: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "catalog.csv").write_text("product_id,title\na,\nb,\n")
    with pytest.raises(CatalogError, match=r"2 rows are refused \(see refused\.jsonl\), 2 of them for: "):
        build(replace(config, catalog=tmp_path))
    assert not (config.folder / PARTIAL).exists()
    assert len((config.folder / REFUSED_FILE).read_text().splitlines()) == 2


@pytest.mark.usefixtures("without_ray")
def test_a_built_index_is_left_alone(config: BuildConfig) -> None:
    built(config)
    before = content(config.folder)
    assert build(config) is None
    assert same(content(config.folder), before)


@pytest.mark.usefixtures("without_ray")
def test_into_milvus(
    config: BuildConfig, other_model: Path, milvus_uri: str, listings: list[Listing], monkeypatch: pytest.MonkeyPatch
) -> None:
    from index.milvus import MilvusStore

    config = replace(config, milvus=milvus_uri, milvus_token="secret")
    assert "secret" not in repr(config)
    summary = built(config)
    with MilvusStore.open(milvus_uri, "default") as store:
        assert len(store) == len(listings) == summary.num_products
        assert store.about == summary.about
        assert store.product(listings[0].product_id) == Product.from_listing(listings[0])
        assert build(config) is None
        with pytest.raises(SpaceError, match="'default' in Milvus: holds an index of space"):
            build(replace(config, model=str(other_model)))
        assert len(store) == len(listings)
    assert not (config.folder / CURRENT).exists()
    assert not (config.folder / PARTIAL).exists()
    monkeypatch.setattr(index.build, "embed_catalog", interrupt)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        build(replace(config, milvus="http://127.0.0.1:1"))


@pytest.mark.usefixtures("without_ray")
def test_a_job_killed_between_publishing_and_tidying_up(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(index.build, "remove_partial_work", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    assert (config.folder / PARTIAL).exists()
    assert build(config) is None
    assert not (config.folder / PARTIAL).exists()


@pytest.mark.usefixtures("without_ray")
def test_a_damaged_index_is_built_again(config: BuildConfig) -> None:
    built(config)
    before = content(config.folder)
    (truth,) = config.folder.glob(f"*/{TRUTH}")
    truth.write_bytes(b"damaged")
    built(config)
    assert same(content(config.folder), before)


@pytest.mark.usefixtures("without_ray")
def test_what_another_process_writes_to_is_not_built_over(
    config: BuildConfig, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is embedded."""
    built(config)
    monkeypatch.setattr(index.build, "embed_catalog", interrupt)
    with Store.open(config.folder, writable=True), pytest.raises(LeaseError, match=f"process {os.getpid()} on "):
        build(replace(config, model=str(other_model), replace=True))


@pytest.mark.usefixtures("without_ray")
def test_another_space_is_not_replaced_by_accident(config: BuildConfig, other_model: Path) -> None:
    old = built(config).about
    other = replace(config, model=str(other_model))
    with pytest.raises(SpaceError, match=f"holds an index of space {old.space[:12]}.*--replace"):
        build(other)
    assert read_about(config.folder) == old
    assert built(replace(other, replace=True)).about.space != old.space


@pytest.mark.usefixtures("without_ray")
def test_a_changed_catalogue_replaces_its_index(config: BuildConfig, catalog_folder: Path, tmp_path: Path) -> None:
    built(config)
    folder = tmp_path / "shop"
    shutil.copytree(catalog_folder, folder)
    with (folder / "catalog.jsonl").open("a") as file:
        file.write(json.dumps({"product_id": "new", "title": "a new mug"}) + "\n")
    built(replace(config, catalog=folder))
    assert "new" in content(config.folder)


@pytest.mark.usefixtures("without_ray")
def test_an_interrupted_publication_is_finished(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the last shard: nothing is embedded again."""
    whole = replace(config, index=config.index.with_name("whole"))
    built(whole)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "create", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    monkeypatch.setattr(index.build, "embed_catalog", interrupt)
    summary = built(config)
    assert summary.num_embedded == 0
    assert same(content(config.folder), content(whole.folder))


@pytest.mark.usefixtures("without_ray")
def test_an_interrupted_replacement_leaves_the_index(
    config: BuildConfig, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(config)
    before = content(config.folder)
    monkeypatch.setattr(Store, "create", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(replace(config, model=str(other_model), replace=True))
    shutil.move(config.folder / PARTIAL, config.index.with_name(PARTIAL))
    assert same(content(config.folder), before)


def interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("without_ray")
def test_partial_work_of_another_model_is_refused(
    config: BuildConfig, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Store, "create", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    with pytest.raises(StoreError, match=r"partial work with another space.*--restart"):
        build(replace(config, model=str(other_model)))
    summary = built(replace(config, model=str(other_model), restart=True))
    assert summary.num_embedded == summary.num_rows


@pytest.mark.usefixtures("without_ray")
def test_a_catalogue_that_changes_while_it_is_read(
    config: BuildConfig, catalog_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(catalog_folder, folder)
    embed = index.build.embed

    def embed_and_change(job: Job, marks: dict[int, Mark]) -> float:
        steady_rate = embed(job, marks)
        os.utime(folder / "catalog.jsonl", (0, 0))
        return steady_rate

    monkeypatch.setattr(index.build, "embed", embed_and_change)
    with pytest.raises(CatalogError, match=r"changed while it was read; .*--restart"):
        build(replace(config, catalog=folder))


@pytest.mark.slow
@pytest.mark.usefixtures("running_ray")
def test_a_killed_job_goes_on(config: BuildConfig) -> None:
    """kill -9 at a random point: what was done is not done again, and the bytes are those of a job left in peace."""
    whole = built(replace(config, index=config.index.with_name("whole"), shard_rows=1))
    names = {"model": config.model, "catalog": config.catalog, "index": config.index, "shard-rows": 1, "workers": 1}
    arguments = [word for name, value in names.items() for word in (f"--{name}", str(value))]
    job = subprocess.Popen([sys.executable, "-m", "index.build", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    enough = random.randint(1, whole.num_rows // 2)
    while job.poll() is None and len(list((config.folder / PARTIAL).glob("shard-*.json"))) < enough:
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL, "the job ended before it was killed"
    num_done = sum(mark.count for mark in read_marks(config.folder / PARTIAL).values())
    with pytest.raises(StoreError, match="never finished"):
        Store.open(config.folder)
    summary = built(replace(config, shard_rows=1))
    assert 0 < summary.num_embedded <= whole.num_rows - num_done < whole.num_rows
    assert same(content(config.folder), content(config.index.with_name("whole") / config.collection))


@pytest.mark.usefixtures("running_ray")
def test_a_worker_that_dies_is_replaced(config: BuildConfig) -> None:
    """kill -9 in the middle: the job goes on, and holds each product once, as one left in peace does."""
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_encoders, workers("Embed"), config.folder / PARTIAL, 1)
        summary = built(replace(config, shard_rows=1))
        assert killed.result() == 1
    engine = load_engine(config.model, "cpu")
    listings = read_catalog(config.catalog).listings
    held = content(config.folder)
    assert list(held) == [listing.product_id for listing in listings]
    np.testing.assert_allclose([vector for _, vector in held.values()], engine.encode(listings).vectors, atol=1e-5)
    assert summary.num_products == summary.num_embedded == len(listings)


@pytest.mark.usefixtures("running_ray")
def test_a_worker_that_dies_while_it_prepares_is_replaced(by_url: BuildConfig, shop: Shop) -> None:
    """kill -9 while it waits for a picture's first answer: another asks again, and nothing is lost."""
    killed = []

    def kill(_: BaseHTTPRequestHandler) -> None:
        for process in workers("prepare"):
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    shop.answers["/22.png"] = in_turn(kill, shop.answers["/22.png"])
    summary = built(by_url)
    assert len(killed) == 1
    assert shop.asked["/22.png"] == 2
    assert summary.num_products == summary.num_embedded == 48


@pytest.mark.slow
@pytest.mark.usefixtures("running_ray")
def test_a_worker_that_dies_again_and_again_ends_the_job_with_a_reason(config: BuildConfig) -> None:
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_encoders, workers("Embed"), config.folder / PARTIAL, RETRIES + 1)
        with pytest.raises(ItemError, match=r"a worker's process ended.*start again"):
            build(replace(config, shard_rows=1))
        assert killed.result() == RETRIES + 1
    assert built(replace(config, shard_rows=1)).num_products == 48


def kill_encoders(before: set[int], partial: Path, count: int) -> int:
    """Kills so many processes that embed, one after the other, once a shard is done. Returns how many."""
    killed = 0
    for _ in range(24_000):  # minutes: the first shard waits for Ray, on a busy machine for long
        found = workers("Embed") - before
        if found and any(partial.glob("shard-*.json")):
            os.kill(process := found.pop(), signal.SIGKILL)
            before = before | {process}
            killed += 1
            if killed == count:
                break
        time.sleep(0.005)
    return killed


def workers(stage: str) -> set[int]:
    """A stage's processes below this process's Ray."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            is_worker = f"MapBatches({stage})".encode() in (process / "cmdline").read_bytes()
            if is_worker and parent(parent(process)).name == str(os.getpid()):
                found.add(int(process.name))
    return found


def parent(process: Path) -> Path:
    return process.parent / (process / "stat").read_text().rpartition(")")[2].split()[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_rows": 0}, "shard_rows: 0"),
        ({"num_workers": 0}, "num_workers: 0"),
        ({"device": "tpu"}, "device: 'tpu'"),
        ({"collection": "a/b"}, "collection: 'a/b'"),
        ({"allow_hosts": ("*",)}, r"allow_host: '\*'"),
        ({"allow_private_addresses": True}, "allow_private_addresses: no host is allowed"),
        ({"recall": 1.0}, "recall: 1.0 is not between 0 and 1"),
        ({"bytes_per_row": 0}, "bytes_per_row: 0 is below 1"),
        ({"bytes_per_row": 100, "milvus": "m"}, "bytes_per_row: Milvus chooses its own index"),
    ],
)
def test_the_configuration_names_what_is_wrong(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildConfig(model="M", catalog=Path("C"), index=Path("I"), **changes)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(config: BuildConfig) -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        build(replace(config, device="cuda"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "none", "--catalog", "{catalog}"), "none"),
        (("--model", "{model}", "--catalog", "none"), "none: no such file or folder"),
        (("--model", "{model}", "--catalog", "{catalog}", "--shard-rows", "0"), "shard_rows: 0 is below 1"),
        (("--model", "{model}", "--catalog", "{catalog}", "--index", "{file}"), "cannot be made into an index folder"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...],
    message: str,
    model_folder: Path,
    catalog_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way")
    places = {"model": model_folder, "catalog": catalog_folder, "file": tmp_path / "file"}
    words = [word.format(**places) for word in arguments]
    assert main(["--index", str(tmp_path / "index"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
