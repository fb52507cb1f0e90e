"""Texts by a model of YouTokenToMe: ids that it gave itself, and those of its merging written out plainly."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppvilg.config import TextConfig
from ppvilg.text import load_text_tokenizer, saved_text_tokenizer
from ppvilg.yttm import YttmText

MODEL = Path(__file__).parent / "convert" / "bpe.model"
"""Trained by YouTokenToMe 1.0.6 on a few Russian and English words, 120 tokens."""


@pytest.mark.parametrize(
    ("text", "ids", "read"),
    [
        ("красный дом у моря", [107, 73, 4, 23, 55, 15, 19], "красный дом у моря"),
        ("Белый кот 😀😀 и ёжик", [76, 106, 4, 1, 4, 17, 4, 28, 31, 17, 11], "белый кот  и ёжик"),
        ("", [], ""),
        ("  синее\tнебо\n", [52, 17, 54, 6, 69], "синее небо"),
        ("a blue cat", [64, 4, 48, 45, 36, 26, 4, 47, 25, 37], "a blue cat"),
        ("дом的дом xyz!", [73, 1, 71, 4, 1, 35], "домдом !"),
    ],
)
def test_against_youtokentome(text, ids, read):
    """Its own ids and readings (version 1.0.6) of the lower-cased texts."""
    tokenizer = YttmText(str(MODEL))
    assert tokenizer.encode(text) == [2, *ids, 3]
    assert tokenizer.decode(ids) == tokenizer.decode([2, *ids, 3, 0]) == read


def merged(word: str) -> list[int]:
    """The ids of a word: of all merges that apply the first in the model's order, the leftmost of several, again and again."""
    numbers = list(map(int, MODEL.read_text().split()))
    characters, rules = numbers[:2]
    end = 2 + 2 * characters
    ids = dict(zip(map(chr, numbers[2:end:2]), numbers[3:end:2], strict=True))
    order = {tuple(numbers[i : i + 2]): (i, numbers[i + 2]) for i in range(end, end + 3 * rules, 3)}
    tokens: list[int] = []
    for character in word:
        token = ids.get(character, 1)
        if token != 1 or tokens[-1] != 1:
            tokens.append(token)
    while found := [(order[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in order]:
        (_, token), i = min(found)
        tokens[i : i + 2] = [token]
    return tokens


@given(st.text("крсныйдомуря белт abc的\n", max_size=30))
def test_against_the_merging_written_out(text):
    expected = [token for word in text.split() for token in merged(f"\u2581{word}")]
    assert YttmText(str(MODEL)).encode(text) == [2, *expected, 3]


def test_it_is_a_text_tokenizer(tmp_path):
    config = TextConfig(tokenizer="yttm", vocabulary=str(MODEL), vocabulary_size=136, max_length=16, padding="positional")
    tokenizer = load_text_tokenizer(config)
    assert (tokenizer.size, tokenizer.pad, tokenizer.begin, tokenizer.end) == (120, 0, 2, 3)
    assert tokenizer.tokens[:5] == ["<PAD>", "<UNK>", "<BOS>", "<EOS>", "\u2581"]
    (tmp_path / "text").mkdir()
    assert tokenizer.save(tmp_path / "text") == "bpe.model"
    assert saved_text_tokenizer(tmp_path, "yttm", 136).encode("дом у моря") == tokenizer.encode("дом у моря")
    with pytest.raises(ValueError, match="120 tokens and 17 padding tokens: give at least their sum"):
        load_text_tokenizer(TextConfig("yttm", str(MODEL), 136, 17, padding="positional"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a model", "is not a model of YouTokenToMe"),
        ("", "is not a model of YouTokenToMe"),
        ("9 9 1 2 3", "is not a model of YouTokenToMe"),
        ("1 1\n97 4\n4 9 5\n1 0 2 3\n", "is not a model of YouTokenToMe"),
        ("1 3\n97 4\n4 4 5\n4 5 6\n5 4 7\n1 0 2 3\n", "ids are missing, or two tokens are spelled alike"),
        ("1 1\n97 4\n4 4 6\n1 0 2 3\n", "ids are missing, or two tokens are spelled alike"),
        ("1 1\n97 0\n0 0 3\n1 2 -1 -1\n", "has no <BOS>"),
    ],
)
def test_what_is_refused(content, said, tmp_path):
    path = tmp_path / "bpe.model"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        YttmText(str(path))
    with pytest.raises(ValueError, match="is not a model of YouTokenToMe"):
        YttmText(str(tmp_path / "none.model"))
