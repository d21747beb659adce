"""Labels as numbers: level by level, the rare and the lonely left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import labels as module
from training.config import AlignOptions
from training.labels import MIN_LISTINGS, UNKNOWN, Labels, number_labels

Paths = list[tuple[str, ...]]


def number(paths: Paths, options: AlignOptions | None = None) -> Labels:
    """Each listing a product of its own."""
    return number_labels(paths, [f"p{row}" for row in range(len(paths))], options or AlignOptions())


def test_categories_are_numbered_level_by_level() -> None:
    paths: Paths = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("a", "y")]
    labels = number(paths)
    wide, deep = labels.categories.T
    assert labels.levels == (2, 3)
    assert labels.categories.dtype == labels.leaves.dtype == labels.products.dtype == np.int64
    assert wide[0] == wide[2] == wide[3] == wide[5] != wide[1] == wide[4]
    assert deep[0] == deep[2]
    assert deep[1] == deep[4]
    assert deep[3] == deep[5]
    assert set(wide) == {0, 1}
    assert set(deep) == {0, 1, 2}  # the path counts: ("b", "x") is another x


def test_a_category_of_too_few_listings_is_not_learned() -> None:
    """One listing alone is not: its place is unknown, though what is above it is known."""
    paths: Paths = [("a", "x"), ("a", "x"), ("b", "y"), ("b", "y"), ("a", "z"), ("c", "w"), ("b",)]
    assert MIN_LISTINGS == 2
    labels = number(paths)
    wide, deep = labels.categories.T
    assert labels.levels == (2, 2)
    assert (wide == UNKNOWN).tolist() == [False, False, False, False, False, True, False]
    assert (deep == UNKNOWN).tolist() == [False, False, False, False, True, True, True]
    assert wide[4] == wide[0]
    assert wide[6] == wide[2]


def test_a_level_of_a_single_category_is_left_out() -> None:
    """It says nothing: not where all listings share it, nor where all its other categories are rare."""
    paths: Paths = [("shop", "a", "x"), ("shop", "a", "x"), ("shop", "b", "y"), ("shop", "b", "z")]
    labels = number(paths)
    assert labels.levels == (2,)
    assert labels.categories.tolist() == [[0], [0], [1], [1]]
    assert number([("shop",)] * 4).levels == ()
    assert number([("shop",)] * 4).categories.shape == (4, 0)


def test_paths_may_be_of_any_depth() -> None:
    paths: Paths = [("a",), ("a", "x", "1"), ("a", "x", "1"), (), ("b",), ("b", "y", "2"), ("b", "y", "2"), ("b", "y")]
    labels = number(paths)
    assert labels.levels == (2, 2, 2)
    wide, middle, deep = (column != UNKNOWN for column in labels.categories.T)
    assert wide.tolist() == [True, True, True, False, True, True, True, True]
    assert middle.tolist() == [False, True, True, False, False, True, True, True]
    assert deep.tolist() == [False, True, True, False, False, True, True, False]


def test_each_number_has_its_path() -> None:
    """Level after level: the path of a listing's category is its own down to that level."""
    paths: Paths = [("a",), ("a", "x", "1"), ("a", "x", "1"), (), ("b",), ("b", "y", "2"), ("b", "y", "2"), ("b", "y")]
    labels, before = number(paths), 0
    assert len(labels.paths) == sum(labels.levels)
    for depth, (numbers, count) in enumerate(zip(labels.categories.T, labels.levels, strict=True), start=1):
        of_level = labels.paths[before : before + count]
        assert {path[:depth] for path, of in zip(paths, numbers, strict=True) if of != UNKNOWN} == set(of_level)
        assert all(of_level[of] == path[:depth] for path, of in zip(paths, numbers, strict=True) if of != UNKNOWN)
        before += count


def test_leaves_and_products_tell_those_without_apart() -> None:
    """A leaf is the whole path, rare or not; a listing without is alone."""
    paths: Paths = [("a", "x"), ("a", "x"), (), (), ("a",), ("b", "x")]
    labels = number_labels(paths, ["p", "q", "p", "r", "s", "t"], AlignOptions())
    assert labels.leaves[0] == labels.leaves[1]
    assert len(set(labels.leaves)) == 5
    assert labels.products[0] == labels.products[2]
    assert len(set(labels.products)) == 5
    assert labels.grouped
    assert not number(paths).grouped


def test_what_the_options_leave_out_is_not_there() -> None:
    paths: Paths = [("a",), ("a",), ("b",), ("b",)]
    products = ["p", "p", "q", "r"]
    whole = number_labels(paths, products, AlignOptions())
    assert whole.levels == (2,)
    assert whole.grouped
    bare = number_labels(paths, products, AlignOptions(categories=False))
    assert bare.levels == ()
    assert bare.categories.shape == (4, 0)
    assert len(set(bare.leaves)) == 4
    assert bare.products.tolist() == whole.products.tolist()
    ungrouped = number_labels(paths, products, AlignOptions(groups=False))
    assert not ungrouped.grouped
    assert len(set(ungrouped.products)) == 4
    assert ungrouped.categories.tolist() == whole.categories.tolist()
    assert ungrouped.leaves.tolist() == whole.leaves.tolist()


def test_catalogues_without_categories_have_no_levels() -> None:
    assert number([(), (), ()]).levels == ()
    assert number([(), (), ()]).categories.shape == (3, 0)
    assert len(set(number([(), (), ()]).leaves)) == 3
    nothing = number([])
    assert nothing.levels == ()
    assert nothing.categories.shape == (0, 0)
    assert not nothing.grouped


def test_of_too_many_categories_those_with_the_most_listings_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all levels."""
    paths: Paths = [
        (name, kind) for name, kinds in (("a", "xxxxxyyy"), ("b", "zzzzuu"), ("c", "vvv")) for kind in kinds
    ]
    assert number(paths).levels == (3, 5)
    monkeypatch.setattr(module, "MAX_CATEGORIES", 4)  # a: 8, b: 6, a x: 5, b z: 4
    labels = number(paths)
    wide, deep = labels.categories.T
    assert labels.levels == (2, 2)
    assert (wide == UNKNOWN).tolist() == [path[0] == "c" for path in paths]
    assert (deep == UNKNOWN).tolist() == [path[1] not in "xz" for path in paths]
    monkeypatch.setattr(module, "MAX_CATEGORIES", 3)  # a level of one is left out
    assert number(paths).levels == (2,)


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=3).map(tuple), max_size=25))
def test_numbers_mean_one_category_each(paths: Paths) -> None:
    """Depth by depth: which listings share a number, as counted one category after the other; a path that ends above
    stands for itself."""
    expected = []
    for depth in range(1, max(map(len, paths), default=0) + 1):
        of_depth = {path[:depth] for path in paths if path}
        members = [{row for row, path in enumerate(paths) if path[:depth] == one} for one in of_depth]
        learned = [rows for rows in members if len(rows) > 1]
        if len(learned) > 1:
            expected.append(sorted(map(sorted, learned)))
    labels = number(paths)
    assert labels.levels == tuple(map(len, expected))
    assert labels.categories.shape == (len(paths), len(expected))
    for column, count, rows in zip(labels.categories.T, labels.levels, expected, strict=True):
        assert set(column) - {UNKNOWN} == set(range(count))
        assert sorted(np.flatnonzero(column == one).tolist() for one in range(count)) == rows
