"""Encoding a collection anew: whatever is written, merged or interrupted meanwhile, both generations hold the same."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import index.pictures
from index.about import About
from index.exact import Vectors
from index.generations import read_generations
from index.overlap import measure_overlap
from index.pictures import KEPT, KeptPictures, Pictures, remove_kept
from index.product import Product
from index.reembed import ChangeOver, Progress, Reencoder, RefusedError, reembed
from index.store import Store
from item.catalog.listing import Listing
from item.engine.interface import Encoded
from item.errors import ListingError, ReadOnlyError, StoreError
from item.fetching.fetcher import Fetcher
from item.fetching.hosts import AllowedHosts
from tests.fetching.picture_server import answer, running_shop
from tests.index.conftest import BY_HAND, CHECKOUT, about, python, unit

OLD, NEW = "a" * 64, "b" * 64


class HashEngine:
    """An engine whose vectors are a function of its space, the words and the picture. Counts what it encodes."""

    name, variant, vector_width, features_width = "hash", "", 8, 0
    preprocessor: Any = None
    adapters: Any = None
    heads = None

    def __init__(self, space: str) -> None:
        self.space = self.model_space = space
        self.encoded: list[str] = []

    def encode(self, listings: Sequence[Listing], adapter: object = None) -> Encoded:
        self.encoded += [one.title for one in listings]
        vectors = np.stack([self.vector(one.title, picture_of(one)) for one in listings])
        return Encoded(vectors=vectors, refused={}, prepare_s=0.0, encode_s=0.0)

    def prepare_all(self, listings: Sequence[Listing]) -> list[Any]:
        raise NotImplementedError

    def encode_prepared(self, prepared: Sequence[Any], adapters: object = None) -> Vectors:
        raise NotImplementedError

    def encode_modalities(self, prepared: Sequence[Any], modalities: Sequence[Any] = ()) -> dict[Any, Vectors]:
        raise NotImplementedError

    def features_of(self, prepared: Sequence[Any], adapters: object = None) -> Vectors:
        raise NotImplementedError

    def adapt_features(self, prepared: Sequence[Any], features: Vectors, adapters: object) -> Vectors:
        raise NotImplementedError

    def vector(self, title: str, picture: bytes) -> Vectors:
        digest = hashlib.sha256(repr((self.space, title, picture)).encode()).digest()
        return unit(np.random.default_rng(list(digest)).normal(size=(1, 8)))[0]


def picture_of(listing: Listing) -> bytes:
    if not listing.images:
        return b""
    (picture,) = listing.images
    return picture.data if picture.data is not None else Path(str(picture.path)).read_bytes()


class Shop:
    """A collection that is written to, beside what it should hold: products with their pictures by id."""

    def __init__(self, folder: Path) -> None:
        self.engines = {OLD: HashEngine(OLD), NEW: HashEngine(NEW)}
        self.store = Store.create(folder / "default", about(space=OLD), upkeep=BY_HAND)
        self.held: dict[str, tuple[Product, bytes]] = {}
        self.catalog = folder / "catalog.csv"
        self.catalog.write_text("product_id,title\n")
        self.pictures = Pictures(self.store.folder, [self.catalog])

    def upsert(self, product_id: str, title: str, picture: bytes = b"") -> None:
        product = Product(product_id=product_id, title=title, image=f"sent/{title}", has_picture=bool(picture))
        vector = self.engines[self.store.about.space].vector(title, picture)
        self.store.upsert([product], vector[None])
        self.store.keep_pictures({product_id: picture} if picture else {})
        self.held[product_id] = product, picture

    def update(self, product_id: str, price: float) -> None:
        if product_id in self.held:
            product, picture = self.held[product_id]
            self.held[product_id] = replace(product, attributes={"price": price}), picture
            self.store.update([self.held[product_id][0]])

    def delete(self, product_id: str) -> None:
        assert self.store.delete([product_id]) == [self.held.pop(product_id, None) is not None]

    def reencoder(self, space: str, words_alone: bool = False) -> Reencoder:
        return Reencoder(engine=self.engines[space], pictures=self.pictures, words_alone=words_alone)

    def reembed(self, stop: threading.Event | None = None, **options: Any) -> Iterator[Progress]:
        made = About(space=NEW, vector_width=8, model="new")
        return reembed(self.store, made, self.reencoder(NEW), stop or threading.Event(), **options)

    def change_over(self, words_alone: bool = False, discard: bool = False) -> None:
        there = read_generations(self.store.folder)
        name, space = (there.coming, NEW) if there.coming else (there.previous, {OLD: NEW, NEW: OLD}[self.space])
        with closing(ChangeOver(self.store, name, None if discard else self.reencoder(space, words_alone))) as change:
            change.prepare()
            before, self.store = self.store, change.finish()
        before.close()

    @property
    def space(self) -> str:
        return self.store.about.space

    def check(self) -> None:
        """The store holds what it should, encoded by the engine of its space, and finds it."""
        self.check_store(self.store)
        with Store.open(self.store.folder) as reader:  # what another process sees
            self.check_store(reader)

    def check_store(self, store: Store) -> None:
        engine = self.engines[store.about.space]
        assert len(store) == len(self.held)
        for product_id, (product, picture) in self.held.items():
            assert store.product(product_id) == product
            vector = engine.vector(product.title, picture)
            assert np.array_equal(store.vector(product_id), vector)  # type: ignore[arg-type]
            (found,) = store.search(vector[None], 1)
            assert found.product_ids == [product_id] or found.scores[0] > 1 - 1e-6  # another one with the same words


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    for number in range(100):
        shop.upsert(f"p{number}", f"title {number}")
    yield shop
    shop.store.close()


IDS, TITLES = st.sampled_from([f"p{number}" for number in range(6)]), st.integers(0, 9).map(str)
WRITES = st.one_of(
    st.tuples(st.just("upsert"), IDS, TITLES, st.sampled_from([b"", b"red", b"blue"])),
    st.tuples(st.just("update"), IDS, st.integers(0, 9).map(float)),
    st.tuples(st.just("delete"), IDS),
    st.tuples(st.just("compact")),  # forgets tombstones
)
STEPS = st.one_of(WRITES, WRITES, st.tuples(st.just("step")), st.tuples(st.just("interrupt")))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(WRITES, max_size=12), meanwhile=st.lists(STEPS, max_size=14), rest=st.lists(WRITES, max_size=8))
def test_no_write_is_lost_on_the_way_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, before: list[Any], meanwhile: list[Any], rest: list[Any]
) -> None:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    try:
        for name, *arguments in before:
            write(shop, name, arguments)
        for one, (product, picture) in shop.held.items():  # not kept before a generation was coming
            KeptPictures(shop.store.folder).keep({one: picture} if product.has_picture else {})
        stop = threading.Event()
        steps = shop.reembed(stop, max_rate=None)
        next(steps)
        for name, *arguments in meanwhile:
            if name == "step":
                next(steps, None)
            elif name == "interrupt":
                stop.set()
                list(steps)
                stop = threading.Event()
                steps = shop.reembed(stop)
                next(steps)
            else:
                write(shop, name, arguments)
        list(steps)
        *_, last = shop.reembed()
        assert last.done
        assert last.num_encoded == len(shop.held)
        for name, *arguments in rest:
            write(shop, name, arguments)
        for expected in (NEW, OLD, NEW):
            shop.change_over()
            assert shop.space == expected
            shop.check()
            for name, *arguments in rest[::-1]:
                write(shop, name, arguments)
            shop.check()
    finally:
        shop.store.close()


def write(shop: Shop, name: str, arguments: list[Any]) -> None:
    shop.store.compact() if name == "compact" else getattr(shop, name)(*arguments)


def test_each_product_is_encoded_once_whatever_is_interrupted(shop: Shop) -> None:
    for blocks in (1, 2):
        stop = threading.Event()
        steps = shop.reembed(stop)
        for _ in range(blocks):
            next(steps)
        assert next(steps).num_encoded > 0
        stop.set()
        assert list(steps) == []
        shop.store.close()  # as a server that ends does; the next one may write
        shop.store = Store.open(shop.store.folder, writable=True, upkeep=BY_HAND)
    assert list(shop.reembed())[-1].done
    assert sorted(shop.engines[NEW].encoded) == sorted(product.title for product, _ in shop.held.values())
    assert shop.space == OLD
    shop.change_over()
    assert len(shop.engines[NEW].encoded) == 100
    shop.check()


KILLED = """
import sys, threading
from pathlib import Path
from index.pictures import Pictures
from index.reembed import Reencoder, reembed
from index.store import Store
from index.about import About
from tests.index.conftest import BY_HAND
from tests.index.test_reembed import NEW, HashEngine

with Store.open(Path(sys.argv[1]), writable=True, upkeep=BY_HAND) as store:
    reencoder = Reencoder(engine=HashEngine(NEW), pictures=Pictures(store.folder, []))
    for step in reembed(store, About(space=NEW, vector_width=8), reencoder, threading.Event(), 400):
        print(step.num_encoded, flush=True)
"""


def test_a_kill_loses_no_block_that_was_told(shop: Shop) -> None:
    shop.store.close()
    told = 0
    for _ in range(3):
        command = python(KILLED, shop.store.folder)
        with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            assert first >= told
            told = int(process.stdout.readline())
            process.kill()
    assert 0 < first <= told
    shop.store = Store.open(shop.store.folder, writable=True, upkeep=BY_HAND)
    steps = list(shop.reembed())
    assert steps[0].num_encoded >= told
    assert steps[-1].done
    assert len(shop.engines[NEW].encoded) == 100 - steps[0].num_encoded
    shop.change_over()
    shop.check()


def test_another_models_unfinished_work_is_discarded(shop: Shop) -> None:
    first = next(shop.reembed()).generation
    third = About(space="c" * 64, vector_width=8)
    engine = HashEngine("c" * 64)
    reencoder = Reencoder(engine=engine, pictures=Pictures(shop.store.folder, []))
    *_, last = reembed(shop.store, third, reencoder, threading.Event())
    assert last.generation != first
    assert not (shop.store.folder / first).exists()
    assert len(engine.encoded) == 100


def test_writes_while_it_is_changed_over_are_acknowledged_and_there(shop: Shop) -> None:
    """Threads write as a server does: to the store of now, again where that one has just given way."""
    assert list(shop.reembed())[-1].done
    stop, written, lock = threading.Event(), list[str](), threading.Lock()

    def keep_writing(thread: int) -> None:
        number = 0
        while not stop.is_set():
            name = f"t{thread}-{number}"
            with lock:  # deploy.handlers has such a one
                store = shop.store
                vector = shop.engines[store.about.space].vector(name, b"")
                store.upsert([Product(product_id=name, title=name)], vector[None])
            written.append(name)
            number += 1

    threads = [threading.Thread(target=keep_writing, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    before = []
    for expected in (NEW, OLD, NEW):
        there = read_generations(shop.store.folder)
        count = len(written)
        while len(written) < count + 20:
            stop.wait(0.001)
        with closing(ChangeOver(shop.store, there.coming or there.previous, shop.reencoder(expected))) as change:
            change.prepare()
            with lock:
                before.append(shop.store)
                shop.store = change.finish()
        with pytest.raises(ReadOnlyError):
            before[-1].delete(["p0"])
    stop.set()
    for thread in threads:
        thread.join()
    for store in before:
        store.close()
    assert len(written) >= 60
    shop.held |= {name: (Product(product_id=name, title=name), b"") for name in written}
    shop.check()


class TestPictures:
    def test_what_is_gone_keeps_it_from_being_finished(self, shop: Shop) -> None:
        shop.upsert("cup", "a cup", b"picture")  # nothing was coming: not kept
        assert not (shop.store.folder / KEPT).exists()
        *_, last = shop.reembed()
        assert (last.done, last.num_encoded, list(last.refused)) == (False, 100, ["cup"])
        assert "'sent/a cup' is not in the catalogue" in last.refused["cup"]
        generation = last.generation
        with pytest.raises(RefusedError, match="1 products cannot be encoded; the first is 'cup'"):
            shop.change_over()
        assert shop.space == OLD
        shop.upsert("cup", "a cup", b"picture")  # the way out that the message names
        *_, last = shop.reembed()
        assert (last.done, last.num_encoded, last.generation) == (True, 101, generation)
        shop.change_over()
        shop.check()

    def test_a_refused_write_after_the_end_can_still_be_switched_by_words_alone(self, shop: Shop) -> None:
        assert list(shop.reembed())[-1].done
        shop.upsert("cup", "a cup", b"picture")
        shop.upsert("jug", "a jug")
        (shop.store.folder / KEPT).joinpath(*[one.name for one in (shop.store.folder / KEPT).iterdir()]).unlink()
        with pytest.raises(RefusedError, match="'cup'"):
            shop.change_over()
        shop.change_over(words_alone=True)
        product, _ = shop.held["cup"]
        shop.held["cup"] = replace(product, has_picture=False), b""
        shop.check()

    def test_where_they_are_looked_for(self, tmp_path: Path) -> None:
        (tmp_path / "shop" / "images").mkdir(parents=True)
        (tmp_path / "shop" / "images" / "mug.png").write_bytes(b"mug")
        (tmp_path / "secret.png").write_bytes(b"secret")
        rows = {
            "product_id": list(map(float, range(7, 600))),
            "image": [{"bytes": b"seven", "path": None}] * 3
            + [{"bytes": str(number).encode(), "path": "x.png"} for number in range(10, 600)],
        }
        pq.write_table(pa.table(rows), tmp_path / "shop" / "catalog.parquet", row_group_size=250)
        pictures = Pictures(tmp_path / "default", [tmp_path / "shop" / "catalog.parquet"])

        def read(product_id: str, image: str) -> bytes:
            return picture_of(Listing(images=(pictures.of(Product(product_id=product_id, image=image)),)))

        assert read("mug", "images/mug.png") == b"mug"
        assert read("mug", str(tmp_path / "shop" / "images" / "mug.png")) == b"mug"
        assert read("7", "") == b"seven"
        for number in (599, 10, 280, 281, 560, 11):  # in any order
            assert read(str(number), "") == str(number).encode()
        for reference in ("../secret.png", str(tmp_path / "secret.png"), "images", "nul\0", "", "none.png"):
            with pytest.raises(ListingError, match="is not in the catalogue's files or under"):
                read("mug", reference)
        (tmp_path / "default").mkdir()
        KeptPictures(tmp_path / "default").keep({"mug": b"newer"})
        assert read("mug", "images/mug.png") == b"newer"

    def test_urls_are_fetched_from_the_hosts_of_the_collection_alone(self, shop: Shop) -> None:
        """All at once; what cannot be had is refused, with the way out, and its neighbours go on."""
        with (
            running_shop() as there,
            Fetcher(AllowedHosts(("localhost",)), max_bytes=100, is_allowed=lambda address: True) as fetcher,
        ):
            urls = {f"u{number}": there.url(f"/{number}.png", answer(200, b"%d" % number)) for number in range(40)}
            urls["gone"] = there.url("/gone.png", answer(404))
            urls["elsewhere"] = there.url("/1.png", host="127.0.0.1")
            for name, url in urls.items():
                shop.upsert(name, name, b"-")
                shop.store.update([replace(shop.held[name][0], image=url)])
            remove_kept(shop.store.folder)
            shop.pictures = Pictures(shop.store.folder, [], fetcher)
            *_, last = shop.reembed()
            assert sorted(last.refused) == ["elsewhere", "gone"]
            assert "answers 404" in last.refused["gone"]
            assert "allow" in last.refused["elsewhere"]
            shop.change_over(words_alone=True)
        for name, url in urls.items():
            product, _ = shop.held[name]
            has_picture = name not in last.refused
            picture = name.removeprefix("u").encode() if has_picture else b""
            shop.held[name] = replace(product, image=url, has_picture=has_picture), picture
        shop.check()

    def test_without_a_host_no_url_is_asked(self, tmp_path: Path) -> None:
        pictures = Pictures(tmp_path, [])
        with pytest.raises(ListingError, match=r"'https://a.example/x.png': there is no catalogue to read it in"):
            pictures.of(Product(product_id="a", image="https://a.example/x.png"))

    def test_no_more_are_kept_than_there_is_room_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(index.pictures, "MAX_KEPT_BYTES", 10)
        kept = KeptPictures(tmp_path)
        for product_id, data in (("a", b"12345"), ("b", b"12345"), ("a", b"123"), ("c", b"12"), ("d", b"1")):
            kept.keep({product_id: data})
        kept.keep({"b": b"123456"})  # no room; what it had is no longer its picture
        pictures = Pictures(tmp_path, [])
        found = {}
        for name in "abcd":
            try:
                found[name] = picture_of(Listing(images=(pictures.of(Product(product_id=name)),)))
            except ListingError:
                found[name] = b""
        assert found == {"a": b"123", "b": b"", "c": b"12", "d": b""}


class TestGoingBack:
    def test_to_what_another_build_has_made(self, shop: Shop) -> None:
        assert list(shop.reembed())[-1].done
        shop.change_over()
        shop.upsert("late", "late")
        shop.change_over(discard=True)
        shop.held.pop("late")
        shop.check()
        shop.upsert("p0", "again")  # its key is none that the other generation has given
        shop.check()
        assert shop.space == OLD

    def test_a_switch_that_fails_changes_nothing(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        assert list(shop.reembed())[-1].done
        shop.upsert("late", "late")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        for place in ("index.generations.publish", "index.store.switch"):
            with monkeypatch.context() as patched:
                error = full if place.endswith("publish") else raising(StoreError("No space left on device"))
                patched.setattr(place, error)
                with pytest.raises(StoreError, match="No space left"):
                    shop.change_over()
            assert shop.store.writable
            shop.upsert("later", "later")
            shop.check()
            assert shop.space == OLD
        shop.change_over()
        shop.check()
        assert shop.space == NEW

    def test_what_cannot_be_removed_afterwards_does_no_harm(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        assert list(shop.reembed())[-1].done
        monkeypatch.setattr("index.store.remove_others", raising(OSError(13, "Permission denied")))
        shop.change_over()
        assert shop.store.writable
        shop.upsert("late", "late")
        shop.check_store(shop.store)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_overlap_is_that_of_brute_force(shop: Shop) -> None:
    *_, last = shop.reembed()
    assert last.overlap is not None
    nearest = {}
    for space, engine in shop.engines.items():
        ids = list(shop.held)
        vectors = np.stack([engine.vector(product.title, b"") for product, _ in shop.held.values()]).astype(np.float64)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -2)
        nearest[space] = {one: [ids[row] for row in np.argsort(-cosines[place])[:10]] for place, one in enumerate(ids)}
    shares = {one: len({*nearest[OLD][one]} & {*nearest[NEW][one]}) / 10 for one in shop.held}
    assert last.overlap.value == pytest.approx(np.mean(list(shares.values())))
    assert 0 < last.overlap.value < 0.5
    for sample in last.overlap.samples:
        assert sample.overlap == shares[sample.product.product_id]
        assert [one.product_id for one in sample.before] == nearest[OLD][sample.product.product_id]
        assert [one.product_id for one in sample.after] == nearest[NEW][sample.product.product_id]
    assert max(one.overlap for one in last.overlap.samples) <= sorted(shares.values())[4]
    same = measure_overlap(shop.store.truth, shop.store.truth)
    assert same is not None
    assert same.value == 1
