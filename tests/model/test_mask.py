"""The masks against their definition, slot by slot, and their blocks and cache slots against the mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.model.mask import AttentionMask, Direction

KINDS = ["dense", "row", "column", "convolution"]


@st.composite
def masks(draw) -> AttentionMask:
    direction = draw(st.sampled_from(Direction))
    return AttentionMask(
        text_length=draw(st.integers(1, 5)),
        rows=draw(st.integers(1, 9)),
        columns=draw(st.integers(1, 5)),
        direction=direction,
        kind=draw(st.sampled_from(KINDS)),
        kernel=draw(st.sampled_from([1, 3, 5, 11])),
        strict_row=draw(st.booleans()),
        causal_text=draw(st.booleans()),
        question_length=0 if direction is Direction.TEXT_TO_IMAGE else draw(st.sampled_from([0, 1, 3])),
    )


def expected(attention_mask: AttentionMask, query: int, key: int) -> bool:
    """The table in the module's docstring, in words."""
    m, to_image = attention_mask.text_length, attention_mask.direction is Direction.TEXT_TO_IMAGE
    questions = range(m, m + attention_mask.question_length)
    if query in questions or key in questions:  # all see it, and it sees all but the answer
        return key >= m
    query_is_text, key_is_text = query < m, key < m
    query_is_source, key_is_source = query_is_text == to_image, key_is_text == to_image
    if query_is_source != key_is_source:
        return key_is_source
    if not query_is_source and key > query:
        return False
    if query_is_text:
        return key <= query or not attention_mask.causal_text
    query, key = query - m - len(questions), key - m - len(questions)
    (qr, qc), (kr, kc) = divmod(query, attention_mask.columns), divmod(key, attention_mask.columns)
    if attention_mask.kind == "row" and to_image and not attention_mask.strict_row:
        return key in range(query - attention_mask.columns, query + 1)
    if attention_mask.kind == "row":
        return qr == kr
    if attention_mask.kind == "column":
        return qc == kc
    if attention_mask.kind == "convolution":
        return abs(qr - kr) <= attention_mask.kernel // 2 and abs(qc - kc) <= attention_mask.kernel // 2
    return True


@settings(deadline=None, max_examples=150)
@given(masks())
def test_mask_against_the_definition(attention_mask):
    mask = attention_mask.mask()
    length = attention_mask.text_length + attention_mask.question_length + attention_mask.rows * attention_mask.columns
    assert mask.shape == (length, length)
    for query in range(length):
        for key in range(length):
            assert mask[query, key] == expected(attention_mask, query, key), (query, key)


def test_an_image_is_not_generated_from_a_question():
    with pytest.raises(ValueError, match="question_length is 3: give 0"):
        AttentionMask(2, 4, 4, Direction.TEXT_TO_IMAGE, question_length=3)


def test_rows_columns_and_window_of_a_small_grid():
    """One query of a 4x4 grid, drawn: x is seen, the query is the last x of text -> image."""
    pictures = {
        ("row", Direction.TEXT_TO_IMAGE): "..../..xx/xxx./....",
        ("row", Direction.IMAGE_TO_TEXT): "..../..../xxxx/....",
        ("column", Direction.TEXT_TO_IMAGE): "..x./..x./..x./....",
        ("column", Direction.IMAGE_TO_TEXT): "..x./..x./..x./..x.",
        ("convolution", Direction.TEXT_TO_IMAGE): "..../.xxx/.xx./....",
        ("convolution", Direction.IMAGE_TO_TEXT): "..../.xxx/.xxx/.xxx",
    }
    for (kind, direction), drawn in pictures.items():
        mask = AttentionMask(2, 4, 4, direction, kind, kernel=3).mask()[2 + 10, 2:].reshape(4, 4)
        assert "/".join("".join("x" if seen else "." for seen in row) for row in mask) == drawn, (kind, direction)


@settings(deadline=None, max_examples=150)
@given(masks())
def test_blocks_hold_exactly_the_visible_pairs(attention_mask):
    mask = attention_mask.mask()
    rebuilt = np.zeros_like(mask)
    asked = []
    for blocks in attention_mask.blocks():
        asked += blocks.queries.ravel().tolist()
        if blocks.prefix is not None:
            rebuilt[blocks.queries.ravel(), blocks.prefix] = True
        for queries, keys, seen in zip(blocks.queries, blocks.keys, blocks.mask, strict=True):
            for query, row in zip(queries, seen, strict=True):
                for key in keys[row]:
                    assert not rebuilt[query, key], "a key is there twice"
                    rebuilt[query, key] = True
    assert sorted(asked) == list(range(len(mask))), "every slot asks once"
    np.testing.assert_array_equal(rebuilt, mask)


@settings(deadline=None, max_examples=150)
@given(masks())
def test_cache_slots_keep_every_visible_token(attention_mask):
    """Written one after another into rings, every token that the mask shows is still there when it is read."""
    slots = attention_mask.cache_slots()
    part = attention_mask.mask()
    m = attention_mask.text_length
    part = part[m:, m:] if attention_mask.to_image else part[:m, :m]
    buffer = np.full(slots.groups * slots.capacity, -1)
    for k in range(len(part)):
        position = np.array([k])
        buffer[slots.write(position)] = k
        held = slots.held(position)[0]
        np.testing.assert_array_equal(buffer[slots.read(position)[0]], held)
        seen = (held >= 0) & attention_mask.target_sees(position[:, None], held[None])[0]
        assert sorted(held[seen]) == np.flatnonzero(part[k]).tolist()


@pytest.mark.parametrize(("kind", "slots"), [("dense", 1024), ("row", 33), ("column", 1024), ("convolution", 5 * 32 + 6)])
def test_sizes_on_the_papers_grid(kind, slots):
    found = AttentionMask(64, 32, 32, Direction.TEXT_TO_IMAGE, kind).cache_slots()
    assert found.groups * found.capacity == slots
    largest = {"dense": 1024 * 1024, "row": 1024 * 64, "column": 1024 * 32, "convolution": 1024 * 32 * (5 + 4)}[kind]
    assert AttentionMask(64, 32, 32, Direction.TEXT_TO_IMAGE, kind).blocks()[1].mask.size == largest
