"""Answers to questions about images: accuracies, and tables for people to rate."""

import csv
import io
import json
from pathlib import Path

from ppvilg.evaluation.captions import characters
from ppvilg.files import write_whole

COLUMNS = ("number", "picture", "question", "answer", "rating")


def answer_accuracy(predictions: list[str], answers: list[list[str]]) -> dict[str, float]:
    """Accuracies in [0, 1] of one answer for each of N questions, against what one or more people answered.

    - "exact": the part of the answers that equal one of their question's.
    - "soft": the mean of min(c / 3, 1), c being how many people gave the answer, itself the mean over leaving out each of
      the people (Antol et al. 2015, as computed by the evaluation code of VQA v2). Where fewer than 4 people answered, so
      that 3 can't be left to agree, c is divided by the number of people left, and by 1 where only one answered.

    Answers are equal if they have the same `characters`: case, width, spaces and punctuation do not count. The English rules
    of VQA's script (no articles, digits for numbers) are not applied. An answer of no characters is wrong. Raises
    `ValueError` if there are no answers, the lists' lengths differ, or nobody answered a question.
    """
    if not predictions:
        raise ValueError("there are no answers to score: give one for each question")
    if len(predictions) != len(answers):
        raise ValueError(f"there are {len(predictions)} answers, but {len(answers)} questions")
    exact, soft = 0.0, 0.0
    for i, (prediction, given) in enumerate(zip(predictions, answers, strict=True)):
        people = len(given)
        if not people:
            raise ValueError(f"question {i} has no answer to compare with: leave it out")
        tokens = characters(prediction)
        same = sum(characters(answer) == tokens for answer in given) if tokens else 0
        needed = max(1, min(3, people - 1))
        # One of the `same` who agree is left out, or one of the others; alone, a person is not left out.
        left = [same - 1] * same + [same] * (people - same) if people > 1 else [same]
        exact += same > 0
        soft += sum(min(count / needed, 1) for count in left) / people
    return {"exact": exact / len(predictions), "soft": soft / len(predictions)}


def export_for_rating(path: str | Path, images: list[str], questions: list[str], answers: list[str]) -> None:
    """Write a table for people to rate: the columns of `COLUMNS`, one row for each of N answers, the ratings empty.

    A name that ends in .csv gives CSV in UTF-8 with the mark that spreadsheets know it by, one in .jsonl a JSON object on
    each line, with the rating null. `images` are paths or addresses, written as they are. Raises `ValueError` for other
    names, lists of different lengths, or if the file can't be written.
    """
    path = Path(path)
    if not len(images) == len(questions) == len(answers):
        raise ValueError(f"there are {len(images)} images, {len(questions)} questions and {len(answers)} answers")
    rows = [(i, *row) for i, row in enumerate(zip(images, questions, answers, strict=True))]
    if path.suffix == ".csv":
        table = io.StringIO(newline="")
        csv.writer(table).writerows([COLUMNS, *((*row, "") for row in rows)])
        content = table.getvalue().encode("utf-8-sig")
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(COLUMNS, (*row, None), strict=True)), ensure_ascii=False) + "\n" for row in rows]
        content = "".join(lines).encode()
    else:
        raise ValueError(f"{path}: a table for rating ends in .csv or .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
