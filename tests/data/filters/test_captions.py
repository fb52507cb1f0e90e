"""Filters on captions, against the rules stated in another way."""

import re
import unicodedata

import jieba
import jieba.posseg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.data.filters import BlockedWords, CaptionLength, Language, Noun, SpecialCharacters
from tests.data.filters.pairs import dropped, pair, run

LONG = "一只白色的小猫坐在绿色的草地上看着远处的红色气球和蓝色的天空"
CAPTIONS = ["红苹果", "一只狗在草地上跑", LONG, "跑！", "很好看", "，。！", "北京", "iPhone手机壳", "他走了", "a b c", "漂亮"]


@pytest.mark.parametrize("fewer_than", [1, 3, 15])
def test_caption_length_counts_words_without_punctuation(fewer_than):
    words = [[word for word in jieba.lcut(caption) if re.search(r"[^\W_]", word)] for caption in CAPTIONS]
    assert dropped(CaptionLength(fewer_than=fewer_than), *CAPTIONS) == [len(some) >= fewer_than for some in words]


def test_the_limit_of_the_caption_length_is_dropped():
    caption = " ".join("abcdefghijklmno")  # 15 words, as no two letters are joined
    assert dropped(CaptionLength(), caption, caption[:-2]) == [True, False]
    _, funnel = run([CaptionLength()], [pair(caption)])
    assert funnel.steps[0].dropped_captions == {"15 words or more": 1}


def test_noun_is_what_jieba_tags_as_one():
    nouns = [any(tag[0] == "n" for _, tag in map(tuple, jieba.posseg.lcut(caption))) for caption in CAPTIONS]
    assert dropped(Noun(), *CAPTIONS) == [not has for has in nouns]
    assert dropped(Noun(), "红苹果", "跑", "北京", "漂亮") == [False, True, False, True]


def test_words_added_to_jieba_change_nothing():
    before = dropped(CaptionLength(fewer_than=3), LONG)
    jieba.add_word(LONG)
    try:
        assert dropped(CaptionLength(fewer_than=3), LONG) == before == [True]
    finally:
        jieba.del_word(LONG)


@pytest.mark.parametrize("options", [CaptionLength(fewer_than=1), Noun(), SpecialCharacters()])
def test_other_languages_stay_unless_they_are_named(options):
    english = ["runs ★ @", "quickly ☆"]
    assert not any(dropped(options, *english, language="en"))
    named = type(options)(**{**vars(options), "languages": ["zh", "en"]})
    assert all(dropped(named, *english, language="en"))


@settings(deadline=None)
@given(st.characters(exclude_categories=["Cs"]))
def test_special_characters(character):
    kind = unicodedata.category(character)
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    letter = kind in ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me") and not selector
    ordinary = letter or kind in ("Nd", "Zs") or character in ",.!?;:'\"()-/%&，。！？；：、“”‘’（）《》〈〉「」『』—…·"
    assert dropped(SpecialCharacters(), f"红{character}苹果") == [not ordinary]


def test_special_characters_by_example():
    fine = ["红苹果", "3岁的猫，真可爱！", "Café “中心”", "价格：100%（含税）", "ｉＰｈｏｎｅ"]
    special = ["★红苹果", "猫😀", "①猫", "#猫", "a@b", "【图】猫", "猫_狗", "猫~", "<b>猫", "猫\u200d狗", "猫️", "a\x07", "10°C"]
    assert not any(dropped(SpecialCharacters(), *fine))
    assert all(dropped(SpecialCharacters(), *special))
    assert dropped(SpecialCharacters(punctuation="#"), "#猫", "猫，狗") == [False, True]


def test_language_drops_what_is_surely_of_another():
    assert not any(dropped(Language(), "红苹果", "一只狗在草地上跑", "漂亮的台灣風景"))
    assert all(dropped(Language(), "犬がいる", "강아지가 있어요", "a man riding a wave on top of a surfboard"))
    english = ["a dog", "red apple", "two people on a beach", "un chien sur la plage", "ein Hund am Strand"]
    assert dropped(Language(), *english, language="en") == [False, False, False, True, True]


def test_languages_that_are_not_wanted_or_not_known():
    assert dropped(Language(wanted=["zh"]), "a dog", language="en") == [True]
    assert dropped(Language(wanted=["xx"]), "a man riding a wave on top of a surfboard", language="xx") == [False]
    with pytest.raises(ValueError, match="klingon"):
        Language(among=["zh", "klingon"]).setup()


@pytest.fixture
def blocked(tmp_path):
    def make(*lines: str) -> BlockedWords:
        (tmp_path / "blocked.txt").write_text("\n".join(lines), "utf-8")
        return BlockedWords(file=str(tmp_path / "blocked.txt"))

    return make


def test_blocked_words(blocked):
    options = blocked("# a comment", "", "赌博", "sex", "click  here", "4K")
    found = ["在线赌博网站", "SEX", "ｓｅｘ手机", "sex, drugs", "please Click here now", "超清4k画面"]
    assert all(dropped(options, *found))
    assert all(dropped(options, *found, language="en"))
    assert not any(dropped(options, "赌", "博赌", "Sussex", "sexton", "click there", "a comment", "14K", "4Kg", "红苹果"))


@settings(deadline=None)
@given(st.lists(st.text("ab 猫狗", min_size=1, max_size=3).filter(str.strip), min_size=1), st.text("abAB 猫狗", max_size=8))
def test_blocked_words_against_regular_expressions(tmp_path_factory, words, text):
    file = tmp_path_factory.mktemp("blocked") / "blocked.txt"
    file.write_text("\n".join(words), "utf-8")

    def found(word: str) -> bool:
        word = re.escape(" ".join(word.split()))
        before = r"(?<![ab])" if word[0] in "ab" else ""
        after = r"(?![ab])" if word[-1] in "ab" else ""
        return bool(re.search(before + word + after, " ".join(text.lower().split())))

    assert dropped(BlockedWords(file=str(file)), text) == [any(map(found, words))]


def test_blocked_words_that_cannot_be_read(blocked, tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        blocked("# nothing", " ").setup()
    with pytest.raises(ValueError, match=r"missing\.txt cannot be read"):
        BlockedWords(file=str(tmp_path / "missing.txt")).setup()
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        BlockedWords(file=str(tmp_path / "latin")).setup()
