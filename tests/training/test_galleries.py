from __future__ import annotations

import numpy as np
import pytest

from item.catalog.listing import Listing
from item.evaluation.exam import Contestant, Exam
from item.evaluation.retrieval import unit
from item.evaluation.sitting import Sitting
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.prepared import Modality
from training.galleries import NUM_EXAMPLES, Gallery, find_galleries

LIMITS = PreprocessorConfig()
NUM_ROWS, NUM_TRAIN = 60, 20
OURS: tuple[str, Modality] = ("ours", "both")
THEIRS: tuple[str, Modality] = ("words", "words")


def make_sitting(offers: bool, wrong: dict[tuple[str, Modality], set[int]]) -> Sitting:
    """One row a product and one query each, or pairs of rows; a query whose number is in `wrong` points elsewhere."""
    catalog = [
        Listing(
            product_id=f"p{i}",
            title=f"number {i}",
            category=("shop", f"leaf {i % 2}"),
            group_id=f"g{i // 2}",
            split="train" if i < NUM_TRAIN else "test",
        )
        for i in range(NUM_ROWS)
    ]
    again = [Listing(product_id=f"o{i}", group_id=f"p{i}", title=f"offer of {i}") for i in range(NUM_TRAIN, NUM_ROWS)]
    sitting = Sitting(Exam(catalog=catalog, offers=again if offers else None, split="test"))
    base = np.eye(NUM_ROWS, dtype=np.float32)
    if not offers:
        base = unit(np.repeat(np.eye(NUM_ROWS // 2, dtype=np.float32), 2, axis=0) + 0.01 * base[:, : NUM_ROWS // 2])
    for_leaf = np.eye(2, dtype=np.float32)[np.arange(NUM_ROWS) % 2]
    for_leaf[NUM_TRAIN:] = unit(np.array([[1, 0.1]], np.float32))  # all of test beside leaf 0
    for name, inputs in (OURS, THEIRS):
        elsewhere = [3.0 if i in wrong[name, inputs] else 0.0 for i in range(NUM_ROWS - NUM_TRAIN)]
        queries = base[NUM_TRAIN:] + np.array(elsewhere, np.float32)[:, None] * np.roll(base, 9, axis=0)[NUM_TRAIN:]
        one = Contestant(name=name, inputs=inputs, catalog=base, queries=unit(queries), for_leaf=for_leaf)
        sitting.add(one)
    return sitting


@pytest.fixture
def galleries() -> dict[str, Gallery]:
    sitting = make_sitting(True, {OURS: {0, 1, 2}, THEIRS: {2, 3, 4, 5, 6}})
    return {one.title: one for one in find_galleries(sitting, OURS, THEIRS, LIMITS)}


def test_queries_by_who_is_right(galleries: dict[str, Gallery]) -> None:
    counts = {title: one.count for title, one in galleries.items() if title.startswith("Same")}
    assert counts == {
        "Same product: ours right, words wrong": 4,
        "Same product: ours wrong, words right": 2,
        "Same product: ours and words wrong": 1,
    }
    gained = galleries["Same product: ours right, words wrong"]
    assert [one.asked.title for one in gained.examples] == [f"offer of {NUM_TRAIN + i}" for i in (3, 4, 5, 6)]


def test_right_hits_are_marked_with_their_rank(galleries: dict[str, Gallery]) -> None:
    example = galleries["Same product: ours right, words wrong"].examples[0]
    now, then = example.rankings
    assert (now.system, then.system) == ("ours", "words")
    assert [hit.right for hit in now.hits] == [True, False, False, False, False]
    assert now.hits[0].title == "number 23"
    assert now.hits[0].score == pytest.approx(1)
    assert [(hit.title, hit.rank) for hit in then.hits if hit.right] == [("number 23", 2)]
    assert then.hits[0].title == "number 14"
    assert then.hits[0].score == pytest.approx(3 / 10**0.5)
    assert [hit.rank for hit in then.hits] == [1, 2, 3, 4, 5]


def test_a_right_row_that_is_far_follows_the_first_hits() -> None:
    sitting = make_sitting(True, {OURS: set(), THEIRS: set()})
    contestant = sitting.answers[0][0]
    contestant.queries[0] = unit(np.arange(NUM_ROWS, dtype=np.float32)[None])[0]  # the last rows are the nearest
    sitting.answers.clear()
    sitting.add(contestant)
    (found,) = (one for one in find_galleries(sitting, OURS, None, LIMITS) if one.title == "Same product: ours wrong")
    (example,) = found.examples
    assert [hit.title for hit in example.rankings[0].hits] == [f"number {i}" for i in (59, 58, 57, 56, 55, NUM_TRAIN)]
    assert example.rankings[0].hits[-1].rank == NUM_ROWS - NUM_TRAIN
    assert [hit.right for hit in example.rankings[0].hits] == [False] * 5 + [True]


def test_without_offers_a_query_does_not_find_itself() -> None:
    sitting = make_sitting(False, {OURS: {0, 5}, THEIRS: set()})
    found = {one.title: one for one in find_galleries(sitting, OURS, THEIRS, LIMITS)}
    lost = found["Same product: ours wrong, words right"]
    assert [one.asked.title for one in lost.examples] == ["number 20", "number 25"]
    for example in lost.examples:
        for ranking in example.rankings:
            assert example.asked.title not in {hit.title for hit in ranking.hits}
        assert example.rankings[1].hits[0].right


def test_some_of_many_are_drawn_with_the_seed() -> None:
    sitting = make_sitting(True, {OURS: set(range(30)), THEIRS: set()})
    draws = [find_galleries(sitting, OURS, None, LIMITS, seed)[0] for seed in (0, 0, 1)]
    titles = [[example.asked.title for example in one.examples] for one in draws]
    assert draws[0].count == 30
    assert len({*titles[0]}) == NUM_EXAMPLES
    assert titles[0] == titles[1] != titles[2]


def test_leaf_mistakes_show_who_voted(galleries: dict[str, Gallery]) -> None:
    found = galleries["Leaf category: named wrongly"]
    assert found.count == (NUM_ROWS - NUM_TRAIN) // 2
    assert len(found.examples) == NUM_EXAMPLES
    for example in found.examples:
        assert (example.asked.category, example.said) == ("shop / leaf 1", "named shop / leaf 0")
        (ranking,) = example.rankings
        assert [hit.title for hit in ranking.hits] == [f"number {i}" for i in (0, 2, 4, 6, 8, 1)]
        assert [hit.category for hit in ranking.hits] == ["shop / leaf 0"] * 5 + ["shop / leaf 1"]
        assert [(hit.rank, hit.right) for hit in ranking.hits][4:] == [(5, False), (NUM_TRAIN // 2 + 1, True)]
