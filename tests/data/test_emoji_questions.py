"""The questions about the emoji: colours, counts, and answers that are those of the metadata."""

import cv2
import numpy as np
import pytest

from ppvilg.data.emoji.questions import build_questions, dominant_colour, tiled
from ppvilg.data.images import decode_image
from ppvilg.data.shards import write_manifest, write_shards
from ppvilg.data.sources import open_source

COLOURS = {
    "red": (221, 46, 68),
    "orange": (244, 144, 12),
    "yellow": (255, 204, 77),
    "green": (62, 114, 29),
    "blue": (59, 136, 195),
    "purple": (146, 102, 204),
    "pink": (244, 171, 186),
    "brown": (121, 85, 72),
    "black": (20, 20, 24),
    "grey": (153, 153, 153),
}

THINGS = {"apple": ("food-drink", "red"), "car": ("travel-places", "blue"), "flag": ("flags", "green")}


def disc(colour: tuple[int, int, int], size: int = 64) -> np.ndarray:
    return cv2.circle(np.full((size, size, 3), 255, np.uint8), (size // 2, size // 2), size // 3, colour, -1)


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_has_its_name(name):
    assert dominant_colour(disc(COLOURS[name])) == name


def test_no_colour_is_named_where_none_prevails():
    striped = np.full((64, 64, 3), 255, np.uint8)
    for i, name in enumerate(("red", "green", "blue")):
        striped[:, 20 * i : 20 * i + 20] = COLOURS[name]
    assert dominant_colour(striped) is None
    assert dominant_colour(np.full((64, 64, 3), 255, np.uint8)) is None


def test_copies_are_where_they_should_be():
    made = tiled(disc(COLOURS["red"]), [0, 3])
    dark = (made.min(axis=2) < 200).reshape(2, 32, 2, 32).any(axis=(1, 3))
    np.testing.assert_array_equal(dark, [[True, False], [False, True]])


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """A folder of shards with 40 red apples, blue cars and green flags each, of which ten are for validation."""
    samples = []
    for number in range(40):
        for name, (group, colour) in THINGS.items():
            image = cv2.imencode(".webp", disc(COLOURS[colour])[..., ::-1])[1].tobytes()
            names = {"zh": f"{name}的中文", "en": name}
            metadata = {"captions": names, "style": "noto", "concept": name, "name": names, "group": group, "tone": None}
            metadata |= {"source": "test", "licence": "MIT"}
            samples.append(("validation" if number < 10 else "train", f"{name}{number:02d}", image, metadata))
    folder = tmp_path_factory.mktemp("emoji")
    write_manifest(folder, write_shards(folder, samples))
    return folder


def test_answers_are_those_of_the_metadata(emoji, tmp_path):
    counts = build_questions(emoji, tmp_path / "made", {"tone": ["null"]})
    sources = {split: open_source(tmp_path / "made", split, questions=True) for split in ("train", "validation")}
    for split, source in sources.items():
        assert counts[split].total() == sum(len(record.questions) for record in source.records)
    assert sources["train"].checksum == open_source(tmp_path / "made", "train", questions=True).checksum
    groups = {"apple": ("食物", "food"), "car": ("交通", "travel"), "flag": ("旗帜", "flag")}
    colours = {"apple": ("红色", "red"), "car": ("蓝色", "blue"), "flag": ("绿色", "green")}
    said, numbers = set(), set()
    for i, record in enumerate(sources["train"].records):
        concept, kinds = record.metadata["concept"], {}
        for question in record.questions:
            kinds.setdefault(question.kind, []).append(question)
        zh, en = zip(*[[question.answers[0] for question in asked] for asked in kinds.values()], strict=True)
        answers = {kind: pair for kind, pair in zip(kinds, zip(zh, en, strict=True), strict=True)}
        if "_x" in record.key:
            copies = int(record.key[-1])
            assert answers == {"how many": ("一二三四"[copies - 1], ["one", "two", "three", "four"][copies - 1])}
            image = decode_image(sources["train"][i].image, 64)
            assert (image.min(axis=2) < 200).reshape(2, 32, 2, 32).any(axis=(1, 3)).sum() == copies
            numbers.add(copies)
            continue
        assert answers["what"] == (f"{concept}的中文", concept)
        assert answers["style"] == ("Noto风格", "Noto style")
        assert answers["group"] == groups[concept]
        assert answers["colour"] == colours[concept]
        own = groups[concept][1] in kinds["is it"][1].text
        assert answers["is it"] == (("是", "yes") if own else ("不是", "no"))
        assert answers.get("how many", ("一", "one")) == ("一", "one")
        said.add(answers["is it"][1])
        numbers |= {1} if "how many" in answers else set()
    assert said == {"yes", "no"}
    assert numbers == {1, 2, 3, 4}
