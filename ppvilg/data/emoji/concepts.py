"""What there are images of: every emoji's id, its names in three languages, its tone and its group."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from ppvilg.data.emoji.packages import read

LANGUAGES = ("zh", "zh-hant", "en")

WORDS = yaml.safe_load(files("ppvilg.data.emoji").joinpath("captions.yml").read_text("utf-8"))


@dataclass(frozen=True)
class Emoji:
    """One emoji: a concept, or a concept in one skin tone."""

    codepoints: str
    """Upper-case hexadecimal code points joined by `-`, without variation selectors, e.g. `1F44B-1F3FB`."""
    concept: str
    """`codepoints` of the emoji without tone."""
    tone: int | None
    """1 (light) to 5 (dark)."""
    label: str
    """CLDR's English name as it stands there; what icon names are derived from."""
    names: dict[str, str]
    """What captions call it, by language."""
    tags: dict[str, list[str]]
    """Search words of the concept, by language."""
    group: str
    subgroup: str


def normal_id(codepoints: str) -> str:
    """Code points in any spelling (`263a-fe0f`) as `Emoji.codepoints` spells them (`263A`)."""
    return "-".join(point for point in codepoints.upper().split("-") if point != "FE0F")


def read_emoji(tarball: Path) -> list[Emoji]:
    """Every emoji of the emojibase-data tarball that is drawn in one tone or none, in Unicode's order.

    Left out: the building blocks (tones, hair, regional letters) and couples whose members differ in tone, whose names
    are too long to learn from.
    """
    tables = {}
    for language in LANGUAGES:
        entries = json.loads(read(tarball, f"{language}/data.json")[f"{language}/data.json"])
        tables[language] = {entry["hexcode"]: entry for entry in entries}
    groups = json.loads(read(tarball, "meta/groups.json")["meta/groups.json"])
    emoji = []
    for entry in sorted(tables["en"].values(), key=lambda entry: entry.get("order", 0)):
        group = groups["groups"].get(str(entry.get("group")))
        if group in (None, "component"):
            continue
        own = {language: tables[language][entry["hexcode"]] for language in LANGUAGES}
        names = {language: _name(language, own[language]["label"], group) for language in LANGUAGES}
        tags = {language: [_clean(tag) for tag in own[language].get("tags", [])] for language in LANGUAGES}
        concept = normal_id(entry["hexcode"])
        for form in [entry, *entry.get("skins", [])]:
            tone = form.get("tone")
            if isinstance(tone, list):
                if len(set(tone)) > 1:
                    continue
                tone = tone[0]
            emoji.append(
                Emoji(
                    codepoints=normal_id(form["hexcode"]),
                    concept=concept,
                    tone=tone,
                    label=form["label"],
                    names=names if tone is None else {k: _with_tone(k, names[k], tone) for k in LANGUAGES},
                    tags=tags,
                    group=group,
                    subgroup=groups["subgroups"][str(entry["subgroup"])],
                )
            )
    return emoji


def _clean(text: str) -> str:
    """Without typographic variety that would only enlarge the vocabulary."""
    text = text.replace("’", "'").replace("“", '"').replace("”", '"').replace("\xa0", " ")
    return " ".join(text.split())


def _name(language: str, label: str, group: str) -> str:
    """CLDR writes `flag: China` and `family: man, boy`; a caption says `flag of China` and `family (man, boy)`."""
    head, colon, rest = _clean(label.replace("：", ": ")).partition(":")
    head, rest = head.strip(), rest.strip()
    if not colon:
        return head
    if group == "flags":
        return f"flag of {rest}" if language == "en" else f"{rest}{'旗帜' if language == 'zh' else '旗幟'}"
    if head.lower() == "keycap" or head in ("按键", "按鍵"):
        return f"{head} {rest}" if language == "en" else f"{head}{rest}"
    return f"{head} ({rest})" if language == "en" else f"{head}（{rest}）"


def _with_tone(language: str, name: str, tone: int) -> str:
    word = WORDS["tones"][language][tone - 1]
    if language == "en":
        return f"{name}, {word}"
    return f"{name[:-1]}，{word}）" if name.endswith("）") else f"{name}（{word}）"
