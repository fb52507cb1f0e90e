"""Caption scores against pycocoevalcap on texts split by hand, and splitting against COCO's tokenizer."""

import math
import shutil
import sys
import warnings

import pytest

from ppvilg.evaluation import captions
from ppvilg.evaluation.captions import caption_scores, characters, words

pytest.importorskip("pycocoevalcap.bleu.bleu")

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java")
KEYS = ["exact match", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
PREDICTIONS = ["一个男人在打羽毛球", "两只狗在草地上奔跑。", "a red apple on a table"]
REFERENCES = [
    ["一个穿着T恤的男人在打羽毛球", "男人在球场上打球"],
    ["两只狗在草地上奔跑", "草地上有两只狗"],
    ["There is a red apple on the table.", "An apple"],
]
# Split by hand, in the same order.
IN_CHARACTERS = (
    ["一 个 男 人 在 打 羽 毛 球", "两 只 狗 在 草 地 上 奔 跑", "a red apple on a table"],
    [
        ["一 个 穿 着 t 恤 的 男 人 在 打 羽 毛 球", "男 人 在 球 场 上 打 球"],
        ["两 只 狗 在 草 地 上 奔 跑", "草 地 上 有 两 只 狗"],
        ["there is a red apple on the table", "an apple"],
    ],
)
IN_WORDS = (
    ["一个 男人 在 打 羽毛球", "两只 狗 在 草地 上 奔跑", "a red apple on a table"],
    [
        ["一个 穿着 t恤 的 男人 在 打 羽毛球", "男人 在 球场上 打球"],
        ["两只 狗 在 草地 上 奔跑", "草地 上 有 两只 狗"],
        ["there is a red apple on the table", "an apple"],
    ],
)


@pytest.fixture
def no_java(monkeypatch):
    """METEOR takes half a minute; the tests of the others do without."""
    monkeypatch.setattr(captions, "_meteor", lambda references, predictions: None)


def by_sample(texts):
    return {i: [text] if isinstance(text, str) else text for i, text in enumerate(texts)}


@pytest.mark.parametrize(("unit", "split"), [("characters", IN_CHARACTERS), ("words", IN_WORDS)])
def test_the_scores_are_those_of_pycocoevalcap(unit, split, no_java):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    predictions, references = map(by_sample, split)
    scores = caption_scores(PREDICTIONS, REFERENCES, unit)
    assert list(scores) == KEYS
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == Bleu(4).compute_score(references, predictions, verbose=0)[0]
    assert scores["ROUGE-L"] == Rouge().compute_score(references, predictions)[0]
    assert scores["CIDEr"] == Cider().compute_score(references, predictions)[0] > 0
    assert scores["exact match"] == 1 / 3


def test_scores_by_hand(no_java):
    scores = caption_scores(["红苹果"], [["一个红苹果", "红色的苹果"]], "characters")
    # All 3 characters, 2 of 2 pairs and 1 of 1 triple are in a reference; the closest reference has 5 characters.
    for n in (1, 2, 3):
        assert scores[f"BLEU-{n}"] == pytest.approx(math.exp(1 - 5 / 3), rel=1e-6)
    assert scores["ROUGE-L"] == pytest.approx((1 + 1.2**2) * 0.6 / (0.6 + 1.2**2))
    assert scores["CIDEr"] == 0  # of a single sample
    assert all(isinstance(value, float) for value in scores.values())


def test_equal_captions_score_all(no_java):
    texts = ["两只狗在草地上奔跑", "一个男人在打羽毛球", "桌子上有一个红苹果"]
    for unit in ("characters", "words"):
        scores = caption_scores([text + "！" for text in texts], [[text, "别的话"] for text in texts], unit)
        assert scores["exact match"] == 1
        assert scores["BLEU-4"] == pytest.approx(1, rel=1e-6)
        assert scores["ROUGE-L"] == 1
        assert scores["CIDEr"] > 3


def test_empty_captions_score_0(no_java):
    references = [["一个红苹果。"], ["两只狗在跑", "。"]]  # the last reference has no token and is passed over
    for empty in ("", " ", "。"):
        scores = caption_scores([empty, empty], references, "characters")
        assert list(scores) == KEYS
        assert all(value == 0 for value in scores.values())
    half = caption_scores(["一个红苹果", ""], references, "characters")
    assert half["exact match"] == half["ROUGE-L"] == 0.5
    assert half["BLEU-4"] == pytest.approx(math.exp(1 - 10 / 5), rel=1e-6)


def test_characters():
    assert characters("2只Big狗。") == ["2", "只", "big", "狗"]
    assert characters("Ａ４纸，〇号𠮷！") == ["a4", "纸", "〇", "号", "𠮷"]
    assert characters("3.5 café-au-lait_😀 ok") == ["3.5", "café-au-lait", "ok"]
    assert characters("") == characters("。…！ '") == []


def test_words():
    assert words("一个穿着T恤的男人，在打羽毛球！") == ["一个", "穿着", "t恤", "的", "男人", "在", "打", "羽毛球"]
    assert words("A dog's ball") == ["a", "dog", "'s", "ball"]
    assert words("") == words("。") == []


@needs_java
def test_english_words_are_coco_s():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [
        "A man riding a wave on top of a surfboard.",
        "Two dogs' toys; the cat's bowl -- it's empty!",
        "They don't, can't and won't stop: \"we're late\", he'd say",
        "A black-and-white photo of 12 people, 3.5 metres high?",
        "Three o'clock on a well-lit clock tower's face, T-shirt",
    ]
    expected = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert [" ".join(words(text)) for text in texts] == [expected[i][0] for i in range(len(texts))]


def test_what_is_refused():
    with pytest.raises(ValueError, match="no captions to score"):
        caption_scores([], [], "words")
    with pytest.raises(ValueError, match="2 captions, but references for 1"):
        caption_scores(["一", "二"], [["一"]], "words")
    for none in ([], ["。", ""]):
        with pytest.raises(ValueError, match="sample 1 has no reference caption"):
            caption_scores(["一", "二"], [["一"], none], "characters")


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-eval\.txt"):
        caption_scores(["一"], [["一"]], "words")


def test_without_java_meteor_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="there is no `java`") as told:
        scores = caption_scores(["一只猫"], [["一只猫"]], "characters")
    assert list(scores) == KEYS
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.parametrize("program", ["exit 1", "echo nonsense", "exec sleep 60", "exec cat"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_java_that_fails_or_hangs_is_left_out(program, monkeypatch, tmp_path):
    (tmp_path / "java").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(captions, "_METEOR_SECONDS", 0.3)
    with pytest.warns(UserWarning, match="METEOR is left out: its Java program") as told:
        scores = caption_scores(["一只猫", "狗"], [["一只猫"], ["狗"]], "characters")
    assert list(scores) == KEYS
    assert len(told) == 1


@needs_java
@pytest.mark.slow
def test_meteor():
    from pycocoevalcap.meteor.meteor import Meteor

    predictions = ["A big car!", "一只猫", ""]
    references = [["a large automobile"], ["一只猫。", "猫"], ["一只鸟"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = caption_scores(predictions, references, "characters")["METEOR"]
    split = [["a large automobile"], ["一 只 猫", "猫"], ["一 只 鸟"]]
    score, parts = Meteor().compute_score(by_sample(split), by_sample(["a big car", "一 只 猫", ""]))
    assert found == score
    assert parts[0] > 0.5  # synonyms
    assert parts[1:] == [1, 0]
