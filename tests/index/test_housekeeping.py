"""The finders on a small inventory with planted errors, and the command on a real small model."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from index.about import About
from index.housekeeping import disagreement
from index.housekeeping.__main__ import FINDINGS_FILE, PAGE_FILE, main
from index.housekeeping.categories import find_wrong_categories, judged_paths
from index.housekeeping.disagreement import compare, find_disagreements, robust_z
from index.housekeeping.duplicates import Titles, find_duplicates, join
from index.housekeeping.finding import Finding, Kind
from index.housekeeping.inventory import NUM_NEIGHBOURS, Inventory, look, spread, take_inventory
from index.housekeeping.page import MAX_FINDINGS, Card, render_page
from index.housekeeping.pictures import BLANK, find_bad_pictures
from index.product import Product
from index.store import Store
from item.catalog.listing import Listing
from item.catalog.reader import read_catalog
from item.engine import Engine, load_engine
from item.errors import SpaceError
from tests.conftest import COLOURS, picture_bytes
from tests.index.conftest import BY_HAND, random_vectors, unit

WIDTH = 16
NASTY = "<script>alert('x')</script>"


def inventory(titles: list[str], picture: np.ndarray | None = None, **values: object) -> Inventory:
    """Everything is near everything; pictures look different and fit the words unless they are given."""
    N = len(titles)
    vectors = random_vectors(N, WIDTH, seed=1) if picture is None else picture
    near = np.array([[other for other in range(N) if other != row] for row in range(N)]).reshape(N, max(0, N - 1))
    made = Inventory(
        product_ids=[f"p{row}" for row in range(N)],
        titles=titles,
        categories=[()] * N,
        groups=[None] * N,
        near=near[:, :NUM_NEIGHBOURS],
        near_scores=np.full(near.shape, 0.5, np.float32)[:, :NUM_NEIGHBOURS],
        words=vectors,
        picture=vectors,
        hashes=np.arange(N * 32, dtype=np.int64).reshape(N, 32).astype(np.uint8),
        spread=np.full(N, 50, np.float32),
        trained=np.zeros(N, bool),
        unreadable={},
        num_absent=0,
    )
    return replace(made, **values)  # type: ignore[arg-type]


def same_pictures(count: int) -> np.ndarray:
    return np.repeat(random_vectors(1, WIDTH), count, axis=0)


def kinds(findings: list[Finding]) -> dict[tuple[str, ...], Kind]:
    return {one.product_ids: one.kind for one in findings}


FILLER = ["steel pan 20 cm", "garden chair oak", "desk lamp", "cotton towel", "wall clock"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Red cotton shirt", "RED, cotton shirt!", Kind.TWINS),
        ("Red cotton shirt Acme", "Red cotton shirt", Kind.DUPLICATES),
        ("Acme polo shirt long sleeve red", "Acme polo shirt long sleeve blue", Kind.VARIANTS),
        ("Red cotton shirt", "Oak table", None),
        ("", "", None),
    ],
)
def test_titles_decide_what_like_pictures_are(first: str, second: str, expected: Kind | None) -> None:
    pictures = random_vectors(7, WIDTH)
    pictures[1] = pictures[0]
    found = kinds(list(find_duplicates(inventory([first, second, *FILLER], pictures))))
    assert found == ({} if expected is None else {("p0", "p1"): expected})


def test_duplicates_need_like_pictures_and_known_groups_are_no_finding() -> None:
    titles = ["red shirt", "red shirt", *FILLER]
    assert not list(find_duplicates(inventory(titles)))
    alike = same_pictures(len(titles))
    assert kinds(list(find_duplicates(inventory(titles, alike)))) == {("p0", "p1"): Kind.TWINS}
    groups = ["g", "g", *[None] * len(FILLER)]
    assert not list(find_duplicates(inventory(titles, alike, groups=groups)))
    without = inventory(titles, spread=np.full(len(titles), np.nan, np.float32))
    assert kinds(list(find_duplicates(without))) == {("p0", "p1"): Kind.TWINS}


def test_pairs_are_joined_into_groups() -> None:
    titles = ["red shirt acme", "red shirt", "red shirt acme xl", *FILLER]
    assert kinds(list(find_duplicates(inventory(titles, same_pictures(8))))) == {("p0", "p1", "p2"): Kind.DUPLICATES}


def test_overlap_and_containment_by_hand() -> None:
    titles = Titles(["a b", "b c", "b"])
    often, seldom = np.log(2), np.log(4)  # of 3 titles all have b
    assert titles.overlap(0, 1) == pytest.approx(often / (often + 2 * seldom))
    assert titles.containment(0, 1) == pytest.approx(often / (often + seldom))
    assert titles.containment(0, 2) == 1
    assert Titles(["", "a"]).overlap(0, 1) == 0


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda pair: pair[0] != pair[1])))
def test_join_makes_connected_components(pairs: list[tuple[int, int]]) -> None:
    components = {member: {member} for pair in pairs for member in pair}
    for a, b in pairs:
        merged = components[a] | components[b]
        components |= dict.fromkeys(merged, merged)
    assert join(pairs) == {member: min(component) for member, component in components.items()}


def test_a_wrong_picture_is_found_and_what_suits_it_is_shown() -> None:
    words = random_vectors(60, WIDTH)
    picture = unit(words + 0.2 * random_vectors(60, WIDTH, seed=3))
    right = inventory(["t"] * 60, picture, words=words)
    assert not [one for one in find_disagreements(right) if one.score > 10]
    picture[[5, 9]] = picture[[9, 5]]
    wrong = inventory(["t"] * 60, picture, words=words)
    found = sorted(find_disagreements(wrong), key=lambda one: -one.score)[:2]
    assert {one.product_ids: one.beside for one in found} == {("p5",): ("p9",), ("p9",): ("p5",)}


def test_the_score_is_what_the_module_says(monkeypatch: pytest.MonkeyPatch) -> None:
    words, picture = random_vectors(40, WIDTH), random_vectors(40, WIDTH, seed=2)
    groups = [f"g{row // 2}" for row in range(40)]
    monkeypatch.setattr(disagreement, "AT_ONCE", 7)
    cosines = words.astype(np.float64) @ picture.T.astype(np.float64)
    s = []
    for row in range(40):
        others = [other for other in range(40) if groups[other] != groups[row]]
        of_words, of_picture = (np.sort(one[others])[-10:].mean() for one in (cosines[row], cosines[:, row]))
        s.append((of_words + of_picture) / 2 - cosines[row, row])
    compared = compare(inventory(["t"] * 40, picture, words=words, groups=groups))
    away = np.array(s) - np.median(s)
    assert np.allclose(compared.z, away / (1.4826 * np.median(np.abs(away))), atol=1e-4)


def test_listings_that_were_learned_from_are_compared_with_one_another() -> None:
    words = random_vectors(90, WIDTH)
    picture = unit(words + np.where(np.arange(90) < 60, 0.02, 0.6)[:, None] * random_vectors(90, WIDTH, seed=3))
    mixed = inventory(["t"] * 90, picture, words=words)
    trained = replace(mixed, trained=np.arange(90) < 60)
    unseen = slice(60, 90)
    assert np.median(compare(mixed).z[unseen]) > 0.5
    for rows in (slice(0, 60), unseen):
        assert np.median(compare(trained).z[rows]) == pytest.approx(0, abs=1e-6)
    few = replace(mixed, trained=np.arange(90) < 61)
    assert not compare(few).z[61:].any()  # 29 are too few to say


def test_vectors_without_anything_in_common_tell_nothing() -> None:
    words = np.eye(60, dtype=np.float32)
    assert not list(find_disagreements(inventory(["t"] * 60, words[::-1].copy(), words=np.zeros_like(words))))
    assert robust_z(np.zeros(9)).tolist() == [0] * 9


def test_a_moved_product_is_found_by_its_neighbours() -> None:
    paths = [("a", "x")] * 10 + [("b", "y")] * 10
    near = np.array([[o for o in range(20) if o != row and o // 10 == row // 10] for row in range(20)])
    scores = np.full(near.shape, 0.9, np.float32)
    clean = inventory(["t"] * 20, categories=paths, near=near, near_scores=scores)
    assert not list(find_wrong_categories(clean))
    moved: list[tuple[str, ...]] = [("b", "y"), *paths[1:]]
    (found,) = find_wrong_categories(replace(clean, categories=moved))
    assert found.product_ids == ("p0",)
    assert "is in b / y (0%" in found.why
    assert "a / x (100%)" in found.why
    assert found.beside == ("p1", "p2", "p3")
    grouped = replace(clean, categories=moved, groups=["g"] * 10 + [None] * 10)
    assert not list(find_wrong_categories(grouped))  # those of its own product have no vote


def test_small_paths_are_judged_by_a_wider_level() -> None:
    paths = [("a", "x")] * 5 + [("a", "rare")] + [("b",)]
    assert judged_paths(paths) == [("a", "x")] * 5 + [("a",), ()]


def test_blank_and_shared_pictures() -> None:
    titles = ["red shirt", "oak table", "wall clock", "desk lamp"]
    one = inventory(titles, same_pictures(4), hashes=np.ones((4, 32), np.uint8))
    (found,) = find_bad_pictures(one)
    assert (found.kind, found.product_ids) == (Kind.SHARED, ("p0", "p1", "p2", "p3"))
    sizes = replace(one, titles=[f"red cotton shirt acme size {size}" for size in "smlx"])
    assert not list(find_bad_pictures(sizes))
    assert not list(find_bad_pictures(replace(one, picture=random_vectors(4, WIDTH))))
    blank = inventory(titles, spread=np.array([BLANK - 0.5, BLANK, np.nan, 60], np.float32))
    assert kinds(list(find_bad_pictures(blank))) == {("p0",): Kind.BLANK}


def test_spread_is_zero_for_one_colour_and_large_for_a_picture() -> None:
    assert spread(Image.new("RGB", (90, 40), (20, 200, 70))) == 0
    noise = np.random.default_rng(0).normal(128, 3, (90, 90, 3)).astype(np.uint8)
    assert spread(Image.fromarray(noise)) < BLANK + 1
    assert spread(Image.open(io.BytesIO(picture_bytes(0, (200, 30, 30))))) > 20


def test_the_page_is_whole_and_what_shops_write_is_escaped() -> None:
    many = [Finding(kind=Kind.BLANK, product_ids=("a",), score=1, why=NASTY)] * (MAX_FINDINGS + 1)
    cards = {"a": Card(product_id="a", title=NASTY, category=NASTY, picture="data:image/jpeg;base64,AAAA")}
    shown = render_page(many, cards, {"index": NASTY})
    assert "<script" not in shown
    assert escape(NASTY).replace("&#x27;", "&#39;") in shown
    assert shown.count("<article") == MAX_FINDINGS
    assert f"Blank pictures: {MAX_FINDINGS + 1}" in shown
    assert {link[:5] for link in re.findall(r'src="([^"]*)"', shown)} == {"data:"}
    assert "http" not in shown


@pytest.fixture
def shop(tmp_path: Path, model_folder: Path) -> tuple[Path, Path]:
    """A catalogue with a twin, a blank picture, a refused row and no title; and the index of what was not refused."""
    rows = []
    for row in range(40):
        colour = list(COLOURS.values())[row % 4]
        (tmp_path / f"{row}.png").write_bytes(picture_bytes(row, colour))
        title = f"{('mug', 'chair', 'shirt')[row % 3]} number {row}"
        rows.append({"product_id": f"p{row}", "title": title, "image": f"{row}.png", "category": "shop/all"})
    rows.append({**rows[0], "product_id": "again"})
    Image.new("RGB", (50, 50), (240, 240, 240)).save(tmp_path / "blank.png")
    rows.append({"product_id": "blank", "title": NASTY, "image": "blank.png"})
    rows.append({"product_id": "untitled", "image": "7.png"})
    catalog = tmp_path / "catalog.jsonl"
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    engine, listings = load_engine(model_folder, "cpu", 1), read_catalog(catalog).listings
    about = About(space=engine.space, vector_width=engine.vector_width, model=str(model_folder))
    block = ([Product.from_listing(one) for one in listings], engine.encode(listings).vectors)
    Store.create(tmp_path / "index" / "default", about, [block], upkeep=BY_HAND).close()
    refused = {"line": 44, "product_id": "torn", "field": "image", "reason": "damaged"}
    (tmp_path / "index" / "default" / "refused.jsonl").write_text(json.dumps(refused) + "\n", encoding="utf-8")
    return catalog, tmp_path / "index"


def test_the_command_lists_what_was_planted(
    shop: tuple[Path, Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog, index = shop
    (tmp_path / "3.png").write_bytes(b"torn since")
    at = ["--index", str(index), "--model", str(model_folder), "--catalog", str(catalog), "--output"]
    assert main([*at, str(tmp_path / "out"), "--device", "cpu"]) == 0
    lines = (tmp_path / "out" / FINDINGS_FILE).read_text(encoding="utf-8").splitlines()
    found = {(one["kind"], *one["product_ids"]) for one in map(json.loads, lines)}
    assert {("twins", "p0", "again"), ("blank", "blank"), ("missing", "untitled")} <= found
    assert {one for one in found if one[0] == "unreadable"} == {("unreadable", "torn"), ("unreadable", "p3")}
    page = (tmp_path / "out" / PAGE_FILE).read_text(encoding="utf-8")
    assert "mug number 0" in page
    assert "data:image/jpeg" in page
    assert "<script" not in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([FINDINGS_FILE, PAGE_FILE])
    assert "exact twins" in capsys.readouterr().out


def test_another_model_and_a_missing_index_are_refused(
    shop: tuple[Path, Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog, index = shop
    at = ["--model", str(model_folder), "--catalog", str(catalog), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["--index", str(tmp_path / "nothing"), *at]) == 2
    assert main(["--index", str(index), "--collection", "a/b", *at]) == 2
    assert "collection: 'a/b'" in capsys.readouterr().err


def test_the_inventory_is_by_words_and_by_picture_alone(
    shop: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    catalog, index = shop
    engine: Engine = load_engine(model_folder, "cpu", 1)
    listings = read_catalog(catalog).listings
    with Store.open(index / "default") as store:
        taken = take_inventory(store, [catalog], engine, tmp_path)
        vector = store.vector("p5")
        assert vector is not None
        own = [one.keys for one in store.search(vector[None], 3, leave_out=[{"p5"}])]
    assert taken.product_ids == [one.product_id for one in listings]
    words = engine.encode([Listing(title=one.title) if one.title else listings[0] for one in listings]).vectors
    pictures = engine.encode([replace(one, title="", description="") for one in listings]).vectors
    has_words = np.array([bool(one.title) for one in listings])
    assert np.allclose(taken.words[has_words], words[has_words], atol=1e-5)
    assert not taken.words[~has_words].any()
    assert np.allclose(taken.picture, pictures, atol=1e-5)
    assert (taken.near[5, :3] + 1).tolist() == own[0]  # keys count from 1
    assert not np.allclose(taken.words[:9], taken.picture[:9])


def test_a_collection_of_another_space_is_refused(tmp_path: Path, model_folder: Path, shop: tuple[Path, Path]) -> None:
    engine = load_engine(model_folder, "cpu", 1)
    about = About(space="0" * 64, vector_width=8)
    with (
        Store.create(tmp_path / "other", about, [], upkeep=BY_HAND) as store,
        pytest.raises(SpaceError, match="built with"),
    ):
        take_inventory(store, [shop[0]], engine, tmp_path)
    assert not isinstance(look(Listing(title="a mug"), engine), Exception)
