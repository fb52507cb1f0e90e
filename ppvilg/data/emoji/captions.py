"""Captions of an image: a few short sentences per language from its names, tags and style."""

from hashlib import sha256

from ppvilg.data.emoji.concepts import LANGUAGES, Emoji
from ppvilg.data.emoji.styles import Style

# The first is canonical: what evaluation prompts with. Those with a tag are left out where an emoji has none.
_TEMPLATES = {
    "zh": (
        "{style}的{name}",
        "{name}，{style}",
        "一张{style}的{name}图片",
        "{style}的{name}，{tag}",
        "{tag}，{name}，{style}",
        "{name}",
    ),
    "zh-hant": (
        "{style}的{name}",
        "{name}，{style}",
        "一張{style}的{name}圖片",
        "{style}的{name}，{tag}",
        "{tag}，{name}，{style}",
        "{name}",
    ),
    "en": (
        "{name} in {style}",
        "{style} {name}",
        "a {style} picture: {name}",
        "{name} in {style}, {tag}",
        "{tag}, {name}, {style}",
        "{name}",
    ),
}

# Some tags are sentences.
_LONGEST_TAG = {"zh": 6, "zh-hant": 6, "en": 16}


def write_captions(emoji: Emoji, style: Style) -> dict[str, list[str]]:
    """{language: captions}, the canonical one first; the same for the same input on every machine."""
    captions = {}
    for language in LANGUAGES:
        name, word = emoji.names[language], style.words[language]
        tags = [tag for tag in emoji.tags[language] if tag.lower() not in name.lower() and len(tag) <= _LONGEST_TAG[language]]
        # Different styles of an emoji get different tags, so that all of them are used.
        tags.sort(key=lambda tag: sha256(f"{emoji.codepoints} {style.id} {tag}".encode()).digest())
        lines = []
        for template in _TEMPLATES[language]:
            if "{tag}" not in template:
                lines.append(template.format(style=word, name=name))
            elif tags:
                lines.append(template.format(style=word, name=name, tag=tags.pop()))
        captions[language] = lines
    return captions
