from __future__ import annotations

import numpy as np
import pytest

from item.catalog.listing import Listing
from item.evaluation.exam import (
    BY_NEIGHBOURS,
    BY_PROBE,
    PICTURE_TO_WORDS,
    SAME_PRODUCT,
    TASKS,
    WORDS_TO_PICTURE,
    Answers,
    Contestant,
    Exam,
)

LEAVES = [("a", "x"), ("a", "y"), ("b",)]


def listing(i: int, split: str, **values: object) -> Listing:
    """Rows 2 j and 2 j + 1 are of one product; three leaves in turn."""
    settings = {"category": LEAVES[i // 2 % 3], "group_id": f"g{i // 2}", **values}
    return Listing(product_id=f"p{i}", title=f"number {i}", split=split, **settings)  # type: ignore[arg-type]


@pytest.fixture
def catalog() -> list[Listing]:
    return [listing(i, "train" if i < 18 else "val" if i < 24 else "test") for i in range(36)]


@pytest.fixture
def vectors() -> np.ndarray:
    """Near for one product, less near for one leaf."""
    generator = np.random.default_rng(0)
    rows = np.repeat(3 * np.eye(3, 12)[np.arange(18) % 3] + generator.standard_normal((18, 12)) / 2, 2, axis=0)
    rows = rows + generator.standard_normal(rows.shape) / 50
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def contestant(vectors: np.ndarray, queries: np.ndarray, **values: object) -> Contestant:
    return Contestant(name="one", inputs="both", catalog=vectors, queries=queries, **values)  # type: ignore[arg-type]


def answers_of(exam: Exam, one: Contestant) -> dict[str, Answers]:
    return {answers.task: answers for answers in exam.sit(one)}


def test_good_vectors_pass_without_offers(catalog: list[Listing], vectors: np.ndarray) -> None:
    exam = Exam(catalog=catalog, offers=None, split="test")
    answers = answers_of(exam, contestant(vectors, vectors[exam.rows], halves=(vectors, vectors)))
    assert tuple(answers) == TASKS
    assert exam.rows.tolist() == list(range(24, 36))
    assert all((value == 1).all() for one in answers.values() for value in one.values.values())
    assert answers[SAME_PRODUCT].products[:3] == ["g12", "g12", "g13"]
    assert answers[BY_NEIGHBOURS].predicted == answers[BY_PROBE].predicted == [catalog[i].category for i in exam.rows]


def test_bad_vectors_fail(catalog: list[Listing], vectors: np.ndarray) -> None:
    exam = Exam(catalog=catalog, offers=None, split="test")
    shuffled = vectors[np.random.default_rng(1).permutation(len(vectors))]
    answers = answers_of(exam, contestant(shuffled, shuffled[exam.rows], halves=(vectors, shuffled)))
    assert all(
        one.measures()["recall@1" if "recall@1" in one.values else "accuracy"].value < 0.7 for one in answers.values()
    )


def test_offers_ask_for_the_row_they_offer_again_not_for_its_group(catalog: list[Listing], vectors: np.ndarray) -> None:
    offers = [
        Listing(product_id="o1", group_id="p30", split="test"),
        Listing(product_id="o2", group_id="p31", split="test"),
        Listing(product_id="o3", group_id="nowhere", split="test"),
        Listing(product_id="o4", split="test"),
    ]
    exam = Exam(catalog=catalog, offers=offers, split="test")
    found = exam.same_product(vectors, vectors[[30, 30, 30, 30]])
    assert found.ids == ["o1", "o2"]  # the others are of no listing
    assert found.values["recall@1"].tolist() == [1, 0]
    assert found.products == ["g15", "g15"]


def test_rows_without_category_are_neither_asked_nor_learned_from(vectors: np.ndarray) -> None:
    some = [
        listing(i, "train" if i < 18 else "test", category=() if i % 4 == 0 else LEAVES[i // 2 % 3]) for i in range(36)
    ]
    exam = Exam(catalog=some, offers=None, split="test")
    for answers in (exam.leaf_by_neighbours(vectors), exam.leaf_by_probe(vectors)):
        assert answers.ids == [f"p{i}" for i in range(18, 36) if i % 4]
        assert () not in answers.predicted


@pytest.mark.parametrize(
    ("learn_from", "split", "category"),
    [("other", "test", ("a",)), ("train", "test", ()), ("train", "holdout", ("a",))],
)
def test_nothing_to_ask_for_leaves(vectors: np.ndarray, learn_from: str, split: str, category: tuple[str, ...]) -> None:
    rows = [listing(i, learn_from if i < 18 else "test", category=category) for i in range(36)]
    exam = Exam(catalog=rows, offers=None, split=split)
    for answers in (exam.leaf_by_neighbours(vectors), exam.leaf_by_probe(vectors)):
        assert answers.ids == []
        assert np.isnan(answers.measures()["accuracy"].value)


def test_one_leaf_alone(vectors: np.ndarray) -> None:
    rows = [listing(i, "train" if i < 18 else "test", category=("only",)) for i in range(36)]
    exam = Exam(catalog=rows, offers=None, split="test")
    for answers in (exam.leaf_by_neighbours(vectors), exam.leaf_by_probe(vectors)):
        assert answers.measures()["accuracy"].value == answers.measures()["macro-F1"].value == 1


def test_across_asks_only_rows_with_both_halves(catalog: list[Listing], vectors: np.ndarray) -> None:
    words, picture = vectors.copy(), vectors.copy()
    words[25], picture[27] = 0, 0
    exam = Exam(catalog=catalog, offers=None, split="test")
    answers = answers_of(exam, contestant(vectors, vectors[exam.rows], halves=(words, picture)))
    for task in (WORDS_TO_PICTURE, PICTURE_TO_WORDS):
        assert answers[task].ids == [f"p{i}" for i in range(24, 36) if i not in (25, 27)]


def test_direction_matters(catalog: list[Listing], vectors: np.ndarray) -> None:
    picture = vectors.copy()
    picture[24:30] = vectors[24]  # six pictures alike: words find one of six, each picture finds the words of p24
    exam = Exam(catalog=catalog, offers=None, split="test")
    there = exam.across(WORDS_TO_PICTURE, vectors, picture).values["recall@1"][:6]
    back = exam.across(PICTURE_TO_WORDS, picture, vectors).values["recall@1"][:6]
    assert there[0] == pytest.approx(1 / 6)
    assert back.tolist() == [1, 0, 0, 0, 0, 0]


def test_category_tasks_use_their_own_vectors(catalog: list[Listing], vectors: np.ndarray) -> None:
    exam = Exam(catalog=catalog, offers=None, split="test")
    answers = answers_of(exam, contestant(vectors, vectors[exam.rows], for_leaf=np.zeros_like(vectors)))
    assert answers[SAME_PRODUCT].measures()["recall@1"].value == 1
    assert answers[BY_NEIGHBOURS].measures()["accuracy"].value == 0


def test_only_some_queries(catalog: list[Listing], vectors: np.ndarray) -> None:
    answers = Exam(catalog=catalog, offers=None, split="test").leaf_by_neighbours(vectors)
    part = answers.only(np.array([35, 26, 0]))
    assert (part.ids, part.products) == (["p26", "p35"], ["g13", "g17"])
    assert part.expected == part.predicted == [catalog[26].category, catalog[35].category]


def test_subsets_of_offers() -> None:
    offers = [Listing(product_id=str(i), attributes={"held": i > 1, "family": "crop"} if i else {}) for i in range(4)]
    exam = Exam(catalog=[], offers=offers, split="test")
    assert {name: rows.tolist() for name, rows in exam.subsets("held").items()} == {"False": [1], "True": [2, 3]}
    assert exam.subsets("colour") == {}
