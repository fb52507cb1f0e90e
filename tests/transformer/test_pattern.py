"""The prefix mask against its definition, slot by slot."""

import pytest

from ppvilg.transformer.pattern import Direction, Pattern


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(("m", "rows", "columns"), [(1, 1, 1), (3, 2, 2), (5, 3, 4), (2, 4, 3)])
def test_mask_against_the_definition(m, rows, columns, direction):
    pattern = Pattern(m, rows, columns, direction)
    mask = pattern.mask()
    n = rows * columns
    assert mask.shape == (m + n, m + n)
    for query in range(m + n):
        for key in range(m + n):
            query_is_text, key_is_text = query < m, key < m
            source_is_text = direction is Direction.TEXT_TO_IMAGE
            query_is_source, key_is_source = query_is_text == source_is_text, key_is_text == source_is_text
            # Source tokens see the source and nothing else; target tokens see it and the target up to themselves.
            expected = key_is_source or (not query_is_source and key <= query)
            assert mask[query, key] == expected, (query, key)
