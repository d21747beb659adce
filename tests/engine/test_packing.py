"""Indices of packed tokens against loops over listings."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from item.engine.packing import Packed, pack
from item.preprocessing.prepared import Prepared

CLS, SEP = 7, 3
PIXELS = np.zeros((3, 2, 2), np.uint8)


@st.composite
def prepared(draw: st.DrawFn) -> Prepared:
    """Words, a picture, or both; several fields end in [SEP], and the last of them ends the words."""
    has_words, has_picture = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    ids = [*draw(st.lists(st.integers(0, 9), max_size=8)), SEP]
    return Prepared(word_ids=np.array(ids, np.int32) if has_words else None, pixels=PIXELS if has_picture else None)


LISTINGS, CELLS = st.lists(prepared(), min_size=1, max_size=7), st.integers(1, 5)


def tokens_of(listings: list[Prepared], num_cells: int) -> tuple[list[list[tuple[str, int, int]]], list[int]]:
    """For each listing its tokens as (kind, position, id), and the packed rows of all of them, in the same order."""
    tokens, text, cells = [], [], []
    for row, one in enumerate(listings):
        ids = [CLS, *([] if one.word_ids is None else one.word_ids.tolist())]
        count = 0 if one.pixels is None else num_cells
        tokens.append([("text", p, i) for p, i in enumerate(ids)] + [("cell", c, -1) for c in range(count)])
        text += [(row, place) for place in range(len(ids))]
        cells += [(row, len(ids) + c) for c in range(count)]
    order = {place: packed for packed, place in enumerate(text + cells)}
    return tokens, [order[row, place] for row, of_row in enumerate(tokens) for place in range(len(of_row))]


def packed_of(listings: list[Prepared], num_cells: int) -> Packed:
    return pack(listings, num_cells, CLS, SEP)


@given(listings=LISTINGS, num_cells=CELLS)
def test_gather_and_scatter_are_inverse_where_tokens_are(listings: list[Prepared], num_cells: int) -> None:
    packed = packed_of(listings, num_cells)
    tokens, rows = tokens_of(listings, num_cells)
    present = packed.padding[:, 0, 0] == 0
    assert packed.gather[present].tolist() == rows
    assert packed.gather.ravel()[packed.scatter].tolist() == list(range(len(rows)))
    assert present.ravel()[packed.scatter].all()
    assert ((packed.gather >= 0) & (packed.gather < len(rows))).all()
    assert packed.gather.shape == (len(listings), max(map(len, tokens)))


@given(listings=LISTINGS, num_cells=CELLS)
def test_text_alone_has_indices_of_its_own(listings: list[Prepared], num_cells: int) -> None:
    """Its packed rows are the first ones, so that they are the same with and without cells."""
    packed = packed_of(listings, num_cells)
    lengths = [1 if one.word_ids is None else 1 + len(one.word_ids) for one in listings]
    assert packed.gather_text.shape == (len(listings), max(lengths))
    rows = iter(range(sum(lengths)))
    for row, length in enumerate(lengths):
        assert packed.gather_text[row, :length].tolist() == [next(rows) for _ in range(length)]
    assert packed.gather_text.ravel()[packed.scatter_text].tolist() == list(range(sum(lengths)))
    assert ((packed.gather_text >= 0) & (packed.gather_text < sum(lengths))).all()


@given(listings=LISTINGS, num_cells=CELLS)
def test_padding_and_text_equal_a_loop(listings: list[Prepared], num_cells: int) -> None:
    packed = packed_of(listings, num_cells)
    tokens, _ = tokens_of(listings, num_cells)
    T = max(map(len, tokens))
    for row, of_row in enumerate(tokens):
        padded = T - len(of_row)
        assert packed.padding[row, 0, 0].tolist() == [0.0] * len(of_row) + [-np.inf] * padded
        assert packed.is_text[row].tolist() == [float(kind == "text") for kind, _, _ in of_row] + [0.0] * padded
    text = [(i, p) for of_row in tokens for kind, p, i in of_row if kind == "text"]
    assert list(zip(packed.word_ids.tolist(), packed.positions.tolist(), strict=True)) == text


@given(listings=LISTINGS, num_cells=CELLS)
def test_pooling_equals_a_loop(listings: list[Prepared], num_cells: int) -> None:
    packed = packed_of(listings, num_cells)
    longest = max(1 if one.word_ids is None else 1 + len(one.word_ids) for one in listings)
    expected = np.zeros((len(listings), 2, longest))
    for row, one in enumerate(listings):
        if one.word_ids is not None:
            everything = 1 + len(one.word_ids)
            title = 2 + one.word_ids.tolist().index(SEP)
            expected[row, 0, :title] = 1 / title
            expected[row, 1, :everything] = 1 / everything
    np.testing.assert_allclose(packed.pooling, expected, rtol=1e-6)
    has_words = np.array([[one.word_ids is not None] * 2 for one in listings])
    np.testing.assert_allclose(packed.pooling.sum(2), has_words, rtol=1e-6)


@given(listings=LISTINGS, num_cells=CELLS)
def test_types_are_what_the_graph_takes(listings: list[Prepared], num_cells: int) -> None:
    inputs = packed_of(listings, num_cells).inputs()
    floats = {name for name, value in inputs.items() if value.dtype == np.float32}
    assert floats == {"padding", "is_text", "pooling"}
    assert {value.dtype for name, value in inputs.items() if name not in floats} == {np.dtype(np.int64)}
