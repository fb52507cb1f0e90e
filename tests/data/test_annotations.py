"""Published data sets, read as their files come: small files of the same form, with images where the data sets have them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppvilg.data.sources import Source, open_source


def write(folder: Path, trees: dict[str, object], images: list[str]) -> None:
    for name, tree in trees.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(tree, ensure_ascii=False), "utf-8")
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((4, 4, 3), 200, np.uint8))


def by_key(source: Source) -> dict:
    return {record.key: record for record in source.records}


def test_coco_cn_captions(tmp_path):
    """COCO's form; names with or without an ending, images in the folders of COCO's archives."""
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg"}, {"id": 9, "file_name": "COCO_val2014_000000000009"}]
    annotations = [
        {"id": 1, "image_id": 7, "caption": "一只猫"},
        {"id": 2, "image_id": 7, "caption": "睡着的猫"},
        {"id": 3, "image_id": 9, "caption": "两辆车"},
        {"id": 4, "image_id": 8, "caption": "没有图片"},
    ]
    files = ["train2014/COCO_train2014_000000000007.jpg", "val2014/COCO_val2014_000000000009.jpg"]
    write(tmp_path, {"coco-cn.json": {"images": images, "annotations": annotations}}, files)
    everything = open_source(tmp_path, "all", captions="coco-cn.json")
    assert {key: record.captions for key, record in by_key(everything).items()} == {
        files[0]: {"zh": ["一只猫", "睡着的猫"]},
        files[1]: {"zh": ["两辆车"]},
    }
    assert everything.report.skipped == {"no such file": 1}
    assert [r.key for r in open_source(tmp_path, "train", captions="coco-cn.json").records] == files[:1]
    assert [r.key for r in open_source(tmp_path, "validation", captions="coco-cn.json").records] == files[1:]


def test_coco_cn_as_text(tmp_path):
    """As it is published: a file of captions, and a list of images for each split."""
    names = [f"COCO_{part}2014_{i:012d}" for part in ("train", "val") for i in range(2)]
    write(tmp_path, {}, [f"images/{name}.jpg" for name in names])
    lines = [f"{name}#{number}\t一只猫 {number}\n" for name in names for number in range(2)]
    (tmp_path / "imageid.human-written-caption.txt").write_text("".join(lines), "utf-8")
    (tmp_path / "coco-cn_train.txt").write_text("\n".join(names[1:]))
    (tmp_path / "coco-cn_val.txt").write_text(names[0])
    captions = ["imageid.human-written-caption.txt", "coco-cn_train.txt", "coco-cn_val.txt"]
    source = open_source(tmp_path, "train", captions=captions)
    assert {key: record.captions for key, record in by_key(source).items()} == {
        f"images/{name}.jpg": {"zh": ["一只猫 0", "一只猫 1"]} for name in names[1:]
    }
    (record,) = open_source(tmp_path, "validation", captions=captions).records
    assert record.key == f"images/{names[0]}.jpg"


def test_aic_icc_captions_of_two_files(tmp_path):
    names = {
        "caption_train_annotations_20170902.json": "caption_train_images_20170902/8f00f3d0f1008e085ab660e70dffced16a8259f6.jpg",
        "caption_validation_annotations_20170910.json": "caption_validation_images_20170910/3cd32bef87ed98572bac868.jpg",
    }
    trees = {}
    for file, image in names.items():
        captions = [f"人在走路{i}\n" for i in range(5)]
        trees[file] = [{"url": "http://x.cn/1.jpg", "image_id": image.split("/")[1], "caption": captions}]
    write(tmp_path, trees, list(names.values()))
    for split, image in zip(("train", "validation"), names.values(), strict=True):
        (record,) = open_source(tmp_path, split, captions=list(names)).records
        assert record.key == image
        assert record.captions == {"zh": [f"人在走路{i}" for i in range(5)]}


def test_fm_iqa(tmp_path):
    asked = {"image_id": "000000000042", "question_id": "1-1", "Question": "这是什么？", "Answer": "一只猫。"}
    second = {**asked, "question_id": "1-2", "Question": "它在做什么？", "Answer": "睡觉。"}
    tree = {"train": [asked, second], "val": [{**asked, "image_id": "9"}]}
    files = ["train2014/COCO_train2014_000000000042.jpg", "val2014/COCO_val2014_000000000009.jpg"]
    write(tmp_path, {"FM-IQA.json": tree}, files)
    (record,) = open_source(tmp_path, "train", captions="FM-IQA.json", questions=True).records
    assert record.key == files[0]
    assert [(q.text, q.answers, q.id, q.language) for q in record.questions] == [
        ("这是什么？", ("一只猫。",), "1-1", "zh"),
        ("它在做什么？", ("睡觉。",), "1-2", "zh"),
    ]
    (record,) = open_source(tmp_path, "validation", captions="FM-IQA.json", questions=True).records
    assert record.key == files[1]


def test_vqa_v2(tmp_path):
    """Questions and answers are two files; those of a test split have no answers."""
    trees = {}
    for subtype, image in (("train2014", 458752), ("val2014", 262148)):
        question = {"image_id": image, "question": "Is it raining?", "question_id": image * 1000}
        answers = [{"answer": "no" if i else "yes", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
        annotation = {"question_id": image * 1000, "image_id": image, "answer_type": "yes/no", "answers": answers}
        annotation |= {"question_type": "is it", "multiple_choice_answer": "no"}
        common = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": subtype}
        trees[f"v2_OpenEnded_mscoco_{subtype}_questions.json"] = {**common, "task_type": "", "questions": [question]}
        trees[f"v2_mscoco_{subtype}_annotations.json"] = {**common, "annotations": [annotation]}
    files = ["train2014/COCO_train2014_000000458752.jpg", "val2014/COCO_val2014_000000262148.jpg"]
    write(tmp_path, trees, files)
    for split, file in zip(("train", "validation"), files, strict=True):
        (record,) = open_source(tmp_path, split, captions=list(trees), questions=True).records
        (question,) = record.questions
        assert (record.key, question.text, question.kind) == (file, "Is it raining?", "yes/no")
        assert question.answers == ("yes", *["no"] * 9)
        assert question.id in ("458752000", "262148000")
    with pytest.raises(ValueError, match="no question with an answer"):
        open_source(tmp_path, "train", captions=next(iter(trees)), questions=True)


def test_questions_in_a_table_of_ones_own(tmp_path):
    rows = [
        {"file": "a.jpg", "question": "这是什么？", "answers": ["猫", "小猫"], "question_type": "what"},
        {"file": "a.jpg", "question": "how many?", "answer": "one", "question_id": 5},
        {"file": "b.jpg", "caption": "一只狗"},
        {"file": "b.jpg", "question": " "},
    ]
    write(tmp_path, {}, ["a.jpg", "b.jpg"])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked = open_source(tmp_path, "all", questions=True)
    (record,) = asked.records
    assert [(q.text, q.answers, q.kind, q.id) for q in record.questions] == [
        ("这是什么？", ("猫", "小猫"), "what", ""),
        ("how many?", ("one",), "", "5"),
    ]
    assert asked.report.skipped == {"no caption": 1, "no question with an answer": 1}
    (record,) = open_source(tmp_path, "all").records
    assert record.key == "b.jpg"


def test_what_is_no_such_file_is_refused(tmp_path):
    write(tmp_path, {"other.json": {"a": 1}, "damaged.json": {"images": [{"id": 1}], "annotations": []}}, ["a.jpg"])
    (tmp_path / "cut.json").write_text('{"images": [')
    for name, said in (
        ("other.json", "other.json is of no known format"),
        ("damaged.json", "damaged.json is damaged: an entry lacks 'file_name'"),
        ("cut.json", "cut.json is not valid JSON"),
        ("missing.json", "cannot read"),
    ):
        with pytest.raises(ValueError, match=said):
            open_source(tmp_path, captions=name)
