"""VQA's accuracies against their definition, and the tables for rating."""

import csv
import json

import numpy as np
import pytest

from ppvilg.evaluation.answers import COLUMNS, answer_accuracy, export_for_rating


def soft_by_definition(prediction, answers):
    """As VQA's evaluation code has it: each answer is left out in turn."""
    parts = []
    for i in range(len(answers)):
        others = answers[:i] + answers[i + 1 :]
        parts.append(min(1, others.count(prediction) / 3))
    return sum(parts) / len(parts)


@pytest.mark.parametrize("people", [4, 5, 10])
def test_soft_accuracy_is_vqa_s(people):
    rng = np.random.default_rng(people)
    answers = [[str(a) for a in rng.integers(0, 4, people)] for _ in range(50)]
    predictions = [str(a) for a in rng.integers(0, 5, 50)]
    scores = answer_accuracy(predictions, answers)
    pairs = list(zip(predictions, answers, strict=True))
    assert scores["soft"] == pytest.approx(np.mean([soft_by_definition(p, a) for p, a in pairs]))
    assert scores["exact"] == pytest.approx(np.mean([p in a for p, a in pairs]))


def test_few_people():
    assert answer_accuracy(["红"], [["红"]]) == {"exact": 1, "soft": 1}
    assert answer_accuracy(["红"], [["红", "绿"]]) == {"exact": 1, "soft": 0.5}
    assert answer_accuracy(["红"], [["红", "红", "红"]]) == {"exact": 1, "soft": 1}
    assert answer_accuracy(["红"], [["红", "红", "绿"]])["soft"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert answer_accuracy(["红"], [["蓝", "绿"]]) == {"exact": 0, "soft": 0}


def test_equal_answers():
    assert answer_accuracy(["在桌子上。", "Ａ cat", ""], [["在桌子上"], ["a cat!"], ["", "。"]])["exact"] == 2 / 3


def test_refused_answers():
    with pytest.raises(ValueError, match="no answers to score"):
        answer_accuracy([], [])
    with pytest.raises(ValueError, match="1 answers, but 2 questions"):
        answer_accuracy(["红"], [["红"], ["绿"]])
    with pytest.raises(ValueError, match="question 1 has no answer"):
        answer_accuracy(["红", "绿"], [["红"], []])


TABLE = (["a/1.png", "2.png"], ["什么颜色？", '他说"好", 是吗？'], ["红色", "是\n的"])


def test_csv(tmp_path):
    export_for_rating(tmp_path / "new" / "rate.csv", *TABLE)
    assert (tmp_path / "new" / "rate.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    with open(tmp_path / "new" / "rate.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [list(COLUMNS), ["0", "a/1.png", "什么颜色？", "红色", ""], ["1", "2.png", '他说"好", 是吗？', "是\n的", ""]]


def test_jsonl(tmp_path):
    export_for_rating(str(tmp_path / "rate.jsonl"), *TABLE)
    rows = [json.loads(line) for line in (tmp_path / "rate.jsonl").read_text("utf-8").splitlines()]
    assert rows[1] == {"number": 1, "picture": "2.png", "question": TABLE[1][1], "answer": "是\n的", "rating": None}
    assert [path.name for path in tmp_path.iterdir()] == ["rate.jsonl"]


def test_refused_tables(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.csv or \.jsonl"):
        export_for_rating(tmp_path / "rate.txt", *TABLE)
    with pytest.raises(ValueError, match="2 images, 2 questions and 1 answers"):
        export_for_rating(tmp_path / "rate.csv", *TABLE[:2], ["红色"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        export_for_rating(tmp_path / "file" / "rate.csv", *TABLE)
