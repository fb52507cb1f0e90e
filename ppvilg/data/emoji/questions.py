"""Questions about the emoji, with answers from their metadata and pixels: a small data set for visual question answering.

Every picture is asked what it is, in which style, of which colour, of which kind and whether it is of a certain kind. To be
counted, there is a second picture of every other one, with two to four small copies.
"""

from collections import Counter
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from ppvilg.data.emoji.styles import STYLES
from ppvilg.data.images import decode_image
from ppvilg.data.shards import read_manifest, write_manifest, write_shards
from ppvilg.data.sources import Sample, open_source

_WORDS = yaml.safe_load(files("ppvilg.data.emoji").joinpath("questions.yml").read_text("utf-8"))
_STYLES = {style.id: style.words for style in STYLES}
_LANGUAGES = ("zh", "en")
_SIZE = 64
_CLEAR = 0.5  # part of the picture that a colour has to fill to be its colour
_METADATA = ("style", "concept", "group", "source", "licence")


def build_questions(emoji: Path, output: Path, keep: dict[str, list[str]], limit: int | None = None) -> dict[str, Counter]:
    """Write a folder of tar shards with the pictures of `emoji` that `keep` chooses, at most `limit` of a split, with their
    questions and answers, in the same splits; returns {split: questions by type}. The same emoji give the same bytes."""
    samples, counts = [], {}
    for split in sorted({entry["split"] for entry in read_manifest(emoji)["shards"]}):
        source = open_source(emoji, split, keep=keep)
        counts[split] = Counter()
        for i in range(min(len(source), limit or len(source))):
            for key, image, metadata in _asked(source[i]):
                samples.append((split, key, image, metadata))
                counts[split].update(question["type"] for question in metadata["questions"])
    write_manifest(output, write_shards(output, samples), counts={split: dict(found) for split, found in counts.items()})
    return counts


def dominant_colour(image: np.ndarray) -> str | None:
    """The colour, a key of `colours` in questions.yml, of at least half of what is not white in an image uint8 [H, W, 3], RGB;
    None where no colour is so frequent or all is white."""
    hue, saturation, value = (x.ravel().astype(int) for x in cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)))
    shown = (saturation > 25) | (value < 225)  # OpenCV's hue is 0 .. 179, the others 0 .. 255
    if shown.sum() < image.shape[0]:
        return None
    names = np.select(
        [value < 60, saturation < 45, hue < 8, hue < 20, hue < 34, hue < 85, hue < 130, hue < 150, hue < 172],
        ["black", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink"],
        "red",
    )
    dark = np.isin(names, ["orange", "red"]) & (value < 170) & (hue < 20)
    names[dark] = "brown"
    names[(names == "red") & (saturation < 120) & (value > 200)] = "pink"
    (name, count), *_ = Counter(names[shown].tolist()).most_common(1)
    return name if count >= _CLEAR * shown.sum() else None


def tiled(image: np.ndarray, cells: list[int]) -> np.ndarray:
    """White with a small copy of an image uint8 [H, W, 3] in each of some quarters, numbered 0 to 3."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    copy, made = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.full_like(image, 255)
    for cell in cells:
        top, left = cell // 2 * height, cell % 2 * width
        made[top : top + height, left : left + width] = copy
    return made


def _asked(sample: Sample) -> list[tuple[str, bytes, dict[str, Any]]]:
    """(key, WebP image, metadata) of a picture, and of one with several copies of it if there is one, with their questions."""
    draw = np.random.default_rng(int.from_bytes(sha256(sample.key.encode()).digest()[:8], "big"))
    image, metadata = decode_image(sample.image, _SIZE), sample.metadata
    kept = {name: metadata[name] for name in _METADATA}
    others = [group for group in _WORDS["groups"] if group != metadata["group"]]
    asked = metadata["group"] if draw.random() < 0.5 else others[draw.integers(len(others))]
    copies = int(draw.integers(2, 5))
    answers: dict[str, dict[str, str] | None] = {
        "what": metadata["name"],
        "style": _STYLES[metadata["style"]],
        "colour": _WORDS["colours"].get(dominant_colour(image)),
        "group": _WORDS["groups"][metadata["group"]],
        "is it": _WORDS["yes" if asked == metadata["group"] else "no"],
        "how many": _number(1) if draw.random() < 1 / 6 else None,  # about as often as two, three or four
    }
    questions = _questions(sample.key, answers, _WORDS["groups"][asked], draw)
    found = [(sample.key, sample.image, {**kept, "captions": sample.captions, "questions": questions})]
    if draw.random() < 0.5:
        return found
    cells = np.sort(draw.choice(4, copies, replace=False)).tolist()
    counted = _questions(f"{sample.key}_x{copies}", {"how many": _number(copies)}, {}, draw)
    encoded = cv2.imencode(".webp", cv2.cvtColor(tiled(image, cells), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 101])[1]
    return [*found, (f"{sample.key}_x{copies}", encoded.tobytes(), {**kept, "questions": counted})]


def _number(count: int) -> dict[str, str]:
    return {language: words[count - 1] for language, words in _WORDS["numbers"].items()}


def _questions(
    key: str, answers: dict[str, dict[str, str] | None], group: dict[str, str], draw: np.random.Generator
) -> list[dict[str, Any]]:
    """One question of each type that has an answer, in each language."""
    found = []
    for kind, answer in answers.items():
        for language in _LANGUAGES if answer is not None else ():
            wordings = _WORDS["questions"][kind][language]
            text = wordings[draw.integers(len(wordings))].format(group.get(language))
            found.append({"question": text, "answers": [answer[language]], "id": f"{key}:{kind}:{language}", "type": kind})
    return found
