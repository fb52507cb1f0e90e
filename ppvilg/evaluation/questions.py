"""How well a model answers the questions of a data set, beside always giving the most frequent answer."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from ppvilg.data.images import decode_image
from ppvilg.data.questions import Question
from ppvilg.data.records import Record
from ppvilg.data.sources import Source
from ppvilg.evaluation.answers import answer_accuracy, export_for_rating
from ppvilg.files import write_whole
from ppvilg.pictures import save_png
from ppvilg.pipeline import ViLGPipeline

_IMAGES = 32  # whose questions are answered together


@dataclass(frozen=True)
class Answered:
    """A question and what the model answers."""

    index: int
    """Of the image in its source."""
    image: str
    question: Question
    answer: str
    frequent: str
    """The most frequent answer to questions of its type and language in training; empty if there was none."""


def answer_questions(
    pipeline: ViLGPipeline, source: Source, training: Sequence[Record], count: int | None, num_beams: int, seed: int
) -> list[Answered]:
    """Answers to all questions of a source that have answers, or to `count` of them drawn with the seed.

    A question that the model cannot read, too long or without a word that it knows, has the answer "", which is wrong. Raises
    `ValueError` for a model that answers no questions.
    """
    pipeline.check_answers()
    frequent, answered = frequent_answers(training), []
    for asked in _by_images(source, count, seed):
        readable = [(i, question.text) for i, question in asked if _can_read(pipeline, question.text)]
        pictures = {i: decode_image(source[i].image, pipeline.config.image_size) for i in {i for i, _ in readable}}
        answers = {}
        if readable:
            images, questions = np.stack([pictures[i] for i, _ in readable]), [text for _, text in readable]
            found = pipeline.answer(images, questions, num_beams=num_beams)
            answers = dict(zip(readable, (texts[0] for texts in found), strict=True))
        for i, question in asked:
            usual = frequent.get((question.kind, question.language), "")
            answered.append(Answered(i, source.records[i].key, question, answers.get((i, question.text), ""), usual))
    return answered


def _can_read(pipeline: ViLGPipeline, question: str) -> bool:
    try:
        pipeline.encode_questions(question)
    except ValueError:
        return False
    return True


def frequent_answers(training: Sequence[Record]) -> dict[tuple[str, str], str]:
    """The most frequent answer by type of question and language."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for record in training:
        for question in record.questions:
            counts[question.kind, question.language].update(question.answers)
    return {key: found.most_common(1)[0][0] for key, found in counts.items() if found}


def accuracies(answered: list[Answered]) -> dict[str, dict[str, float]]:
    """For each type of question, and for "all": the number of questions, accuracies "exact" and "soft" as of `answer_accuracy`,
    and "frequent exact" and "frequent soft" of the most frequent answers."""
    by_kind: dict[str, list[Answered]] = defaultdict(list)
    for one in answered:
        by_kind[one.question.kind or "questions"].append(one)
    groups = {**dict(sorted(by_kind.items())), "all": answered}
    return {kind: _accuracies(group) for kind, group in groups.items()}


def as_table(scores: dict[str, dict[str, float]]) -> str:
    """The accuracies in percent, a line for each type of question."""
    lines = [f"{'':12} {'questions':>9} {'exact':>7} {'soft':>7}   always the most frequent: exact, soft"]
    for kind, found in scores.items():
        percent = [100 * found[name] for name in ("exact", "soft", "frequent exact", "frequent soft")]
        lines.append(
            f"{kind:12} {found['questions']:9} {percent[0]:7.1f} {percent[1]:7.1f} {percent[2]:9.1f} {percent[3]:7.1f}"
        )
    return "\n".join(lines)


def write_answers(folder: Path, source: Source, answered: list[Answered], rated: int, size: int, seed: int) -> None:
    """Write answers.jsonl and scores.json, and for people to rate `rated` of the answers (rating.csv) with their pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"image": one.image, "question": one.question.text, "type": one.question.kind, "text": one.answer}
        | {"texts": one.question.answers, "frequent": one.frequent}
        for one in answered
    ]
    write_whole(folder / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_whole(folder / "scores.json", json.dumps(accuracies(answered), ensure_ascii=False, indent=1) + "\n")
    chosen = np.random.default_rng(seed).permutation(len(answered))[:rated]
    some, names = [answered[i] for i in chosen], []
    for one in some:
        names.append(f"images/{one.index:06d}.png")
        (folder / "images").mkdir(exist_ok=True)
        save_png(decode_image(source[one.index].image, size), folder / names[-1])
    export_for_rating(folder / "rating.csv", names, [one.question.text for one in some], [one.answer for one in some])


def _by_images(source: Source, count: int | None, seed: int) -> Iterator[list[tuple[int, Question]]]:
    """(image, question) of some images after another, in the order of the images."""
    every = [(i, q) for i, record in enumerate(source.records) for q in record.questions if q.answers]
    if count is not None:
        chosen = np.random.default_rng(seed).permutation(len(every))[:count]
        every = [every[i] for i in sorted(chosen)]
    for _, asked in groupby(every, key=lambda one: one[0] // _IMAGES):
        yield list(asked)


def _accuracies(answered: list[Answered]) -> dict[str, float]:
    given = [list(one.question.answers) for one in answered]
    own = answer_accuracy([one.answer for one in answered], given)
    frequent = answer_accuracy([one.frequent for one in answered], given)
    found = {"questions": len(answered), **own}
    return found | {f"frequent {name}": value for name, value in frequent.items()}
