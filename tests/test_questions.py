"""Visual question answering from a table of questions to answers: training, the pipeline, the tools, an export."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from paddle.nn import functional as F

from ppvilg import ViLGPipeline
from ppvilg.config import load_config
from ppvilg.data.loader import canonical_question, draw_question
from ppvilg.data.questions import Question
from ppvilg.data.report import Report
from ppvilg.data.sources import Source, open_source
from ppvilg.data.table import RecordTable
from ppvilg.evaluation.answers import answer_accuracy
from ppvilg.evaluation.questions import Answered, accuracies, answer_questions, frequent_answers
from ppvilg.export.write import origin, write_export
from ppvilg.model.loss import vilg_loss
from ppvilg.model.mask import Direction
from ppvilg.train import build_task
from ppvilg.train.context import ParallelContext
from tests.helpers import losses, run_tool

WHAT, COLOUR = "方块一？", "块"


@pytest.fixture(scope="module")
def config(tiny_data, tiny_configs, tiny_runs, tmp_path_factory) -> Path:
    """A config that fine-tunes the tiny transformer on two questions about each of the tiny pictures."""
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for line in (tiny_data / "captions.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        shutil.copy(tiny_data / row["file"], folder / row["file"])
        colour = row["caption"][:2]
        rows.append({"file": row["file"], "question": WHAT, "answers": [colour, colour, "方块"], "question_type": "colour"})
        rows.append({"file": row["file"], "question": COLOUR, "answer": row["caption"][-1], "question_type": "what"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    tree = {"base": str(tiny_configs / "vilg.yml"), "data": {"path": str(folder)}, "text": {"question_length": 7}}
    # A copy, beside which the tokens of these pictures are kept.
    shutil.copytree(tiny_runs / "vqgan", folder / "vqgan")
    tree["train"] = {
        "output": str(folder / "run"),
        "tokenizer": str(folder / "vqgan"),
        "init_from": str(tiny_runs / "vilg"),
        "txt2img_weight": 0.0,
        "text_drop": 0.0,
    }
    (folder / "vqa.yml").write_text(yaml.safe_dump(tree))
    return folder / "vqa.yml"


@pytest.fixture(scope="module")
def run(config) -> Path:
    done = run_tool("train", "-c", config)
    assert done.returncode == 0, done.stderr
    return config.parent / "run"


@pytest.fixture(scope="module")
def pipe(run) -> ViLGPipeline:
    return ViLGPipeline.from_pretrained(run)


def test_a_run_trains_answers_alone(run):
    assert all("img2txt" in line and "txt2img" not in line for line in losses(run))
    [preview] = [path.read_text("utf-8") for path in (run / "preview").glob("*validation*")]
    assert WHAT in preview
    assert "→" in preview


def test_the_loss_is_that_of_answers_after_question_and_image(config):
    """Each answer by a forward pass of its own, without padding of the answers."""
    task = build_task(load_config(config, ["transformer.dropout=0.0"]), ParallelContext())
    task.prepare()
    task.model.eval()
    batch = task.batch(range(6)).to_tensors()
    assert set(batch.question_mask.sum(1).tolist()) == {3, 6}
    total = vilg_loss(task.model(batch), batch)["img2txt"].item()
    nats = []
    for i in range(6):
        one, ids = slice(i, i + 1), batch.text[i][batch.text_mask[i]].unsqueeze(0)
        states, _ = task.model.hidden_states(
            *(ids, ids >= 0, batch.image_input[one], Direction.IMAGE_TO_TEXT, batch.question[one], batch.question_mask[one])
        )
        log_p = F.log_softmax(task.model.text_logits(states[:, :-1]))[0].numpy()
        nats += (-log_p[np.arange(len(log_p)), ids[0, 1:].numpy()]).tolist()
    assert total == pytest.approx(np.mean(nats), rel=1e-4)


def test_questions_and_answers_are_drawn():
    asked = [Question("这是什么？", ("猫", "狗")), Question("what?", ("cat",)), Question("why?", ())]
    drawn = [draw_question(asked, {"zh": 3.0, "en": 1.0}, 0, epoch, 0) for epoch in range(2000)]
    assert drawn == [draw_question(asked, {"zh": 3.0, "en": 1.0}, 0, epoch, 0) for epoch in range(2000)]
    shares = {pair: drawn.count(pair) / 2000 for pair in set(drawn)}
    assert shares == pytest.approx({("这是什么？", "猫"): 0.375, ("这是什么？", "狗"): 0.375, ("what?", "cat"): 0.25}, abs=0.03)
    assert [canonical_question(asked, turn) for turn in range(3)] == [
        ("这是什么？", "猫"),
        ("what?", "cat"),
        ("这是什么？", "猫"),
    ]
    assert canonical_question([Question("?", ("a", "b", "b"))], 0) == ("?", "b")


def test_the_pipeline_answers(pipe, config):
    images = [config.parent / f"{i:02d}.png" for i in range(3)]
    answers = pipe.answer(images, [WHAT, COLOUR, WHAT])
    assert [len(texts) for texts in answers] == [1, 1, 1]
    for image, question, texts in zip(images, [WHAT, COLOUR, WHAT], answers, strict=True):
        assert pipe.answer(image, question) == [texts], "whatever else is asked"
    assert pipe.answer(images[0], [WHAT, COLOUR]) == [pipe.answer(images[0], question)[0] for question in (WHAT, COLOUR)]
    assert pipe.answer(images, WHAT) == [pipe.answer(image, WHAT)[0] for image in images]
    drawn = pipe.answer(images, WHAT, num_answers=4, temperature=3.0, seed=1)
    assert len({text for texts in drawn for text in texts}) > 3
    assert pipe.answer(images, WHAT, num_beams=3)
    assert len(pipe.caption(images)) == 3, "without a question"


def test_what_cannot_be_asked(pipe, tiny_runs, config):
    image = config.parent / "00.png"
    for images, questions, said in (
        ([image, image], [WHAT] * 3, "3 questions for 2 images"),
        (image, "", "the text is empty"),
        (image, WHAT * 3, "the model reads at most 5"),
        (image, [], "questions is"),
        (image, "\uc548", "no word that the model knows"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe.answer(images, questions)
    with pytest.raises(ValueError, match="answers no questions"):
        ViLGPipeline.from_pretrained(tiny_runs / "vilg").answer(image, WHAT)


def test_infer_writes_what_eval_reads(pipe, run, config, tmp_path):
    images = [config.parent / f"{i:02d}.png" for i in range(2)]
    done = run_tool(
        *("infer", "--mode", "vqa", "--model", run, "--image", images[0], "--image", images[1]),
        *("--question", WHAT, "--json", tmp_path / "answers.json"),
    )
    assert done.returncode == 0, done.stderr
    expected = pipe.answer(images, WHAT)
    assert done.stdout.splitlines() == [f"{image}  {WHAT}  {text}" for image, (text,) in zip(images, expected, strict=True)]
    entries = json.loads((tmp_path / "answers.json").read_text("utf-8"))
    assert entries == [
        {"image": str(image), "question": WHAT, "answers": texts} for image, texts in zip(images, expected, strict=True)
    ]
    references = [{"image": image.name, "question": WHAT, "texts": [expected[0][0]]} for image in images]
    (tmp_path / "references.jsonl").write_text("".join(json.dumps(line) + "\n" for line in references))
    done = run_tool("eval", "answers", tmp_path / "answers.json", tmp_path / "references.jsonl")
    assert done.returncode == 0, done.stderr
    same = answer_accuracy([texts[0] for texts in expected], [line["texts"] for line in references])["exact"]
    assert f"exact            {same:.4f}" in done.stdout
    done = run_tool("infer", "--mode", "vqa", "--model", run, "--image", images[0])
    assert (done.returncode, done.stderr) == (2, "error: there is no question: give --question\n")


def test_eval_asks_a_split(pipe, run, config):
    done = run_tool("eval", "vqa", "--model", run, "--split", "validation", "--rated", 3)
    assert done.returncode == 0, done.stderr
    folder = run / "vqa" / "validation"
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()]
    scores = json.loads((folder / "scores.json").read_text("utf-8"))
    assert list(scores) == ["colour", "what", "all"]
    assert scores["all"]["questions"] == len(lines) == 2 * len({line["image"] for line in lines})
    for line in lines:
        assert pipe.answer(config.parent / line["image"], line["question"]) == [[line["text"]]]
    exact = answer_accuracy([line["text"] for line in lines], [line["texts"] for line in lines])["exact"]
    assert scores["all"]["exact"] == pytest.approx(exact)
    with open(folder / "rating.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert all((folder / row["picture"]).is_file() for row in rows)


def test_questions_that_cannot_be_read_are_answered_wrong(pipe, tiny_runs, config):
    source = open_source(config.parent, "all", captions="questions.jsonl", questions=True)
    first, second = (replace(record, questions=[*record.questions]) for record in source.records[:2])
    unreadable = [Question(WHAT * 3, ("红色",)), Question("\uc548", ("红色",))]
    first.questions[1:1] = unreadable
    second.questions[:] = unreadable
    odd = Source(RecordTable.of([first, second]), [], Report("odd"))
    answered = answer_questions(pipe, odd, source.records, None, 1, 0)
    assert [one.question for one in answered] == [*first.questions, *second.questions]
    (what,), (colour,) = pipe.answer(config.parent / first.key, [first.questions[0].text, first.questions[3].text])
    assert [one.answer for one in answered] == [what, "", "", colour, "", ""]
    assert accuracies(answered[1:3])["all"]["exact"] == 0
    with pytest.raises(ValueError, match="answers no questions"):
        answer_questions(ViLGPipeline.from_pretrained(tiny_runs / "vilg"), odd, source.records, None, 1, 0)


def test_the_most_frequent_answer_is_that_of_type_and_language():
    def question(text, kind, *answers):
        return Question(text, answers, kind=kind)

    class Asked:
        def __init__(self, *questions):
            self.questions = questions

    training = [
        Asked(question("是猫吗？", "is it", "是"), question("cat?", "is it", "no"), question("几个？", "number", "二")),
        Asked(question("是狗吗？", "is it", "不是"), question("是马吗？", "is it", "不是")),
    ]
    found = frequent_answers(training)
    assert found == {("is it", "zh"): "不是", ("is it", "en"): "no", ("number", "zh"): "二"}
    asked = [
        question("是鸟吗？", "is it", "是"),
        question("是鱼吗？", "is it", "不是"),
        question("几只？", "number", "三", "二"),
    ]
    scores = accuracies([Answered(0, "", q, "是", found[q.kind, "zh"]) for q in asked])
    assert {kind: (s["questions"], s["exact"], s["frequent exact"]) for kind, s in scores.items()} == {
        "is it": (2, 0.5, 0.5),
        "number": (1, 0, 1),
        "all": (3, pytest.approx(1 / 3), pytest.approx(2 / 3)),
    }
    assert scores["number"]["frequent soft"] == 0.5


def test_an_export_answers_alike(pipe, run, config, tmp_path):
    made_from = {"model": origin(run)}
    write_export(tmp_path / "export", pipe.model, pipe.vqgan, pipe.text_tokenizer, pipe.config, made_from)
    exported = ViLGPipeline.from_pretrained(tmp_path / "export")
    images = [config.parent / f"{i:02d}.png" for i in range(4)]
    for question in (WHAT, COLOUR):
        assert exported.answer(images, question) == pipe.answer(images, question)
    assert exported.caption(images) == pipe.caption(images)


def test_configs_that_cannot_be(config):
    for override, said in (
        ("train.txt2img_weight=1.0", "expected 0 with text.question_length"),
        ("text.question_length=13", "expected at most text.max_length = 12"),
    ):
        with pytest.raises(ValueError, match=said):
            load_config(config, [override])
