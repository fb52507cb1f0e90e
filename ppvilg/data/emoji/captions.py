"""Captions of an image: a few short sentences per language from its names, tags and style."""

from hashlib import sha256

from ppvilg.data.emoji.concepts import LANGUAGES, WORDS, Emoji
from ppvilg.data.emoji.styles import Style


def write_captions(emoji: Emoji, style: Style) -> dict[str, list[str]]:
    """{language: captions}, the canonical one first; the same for the same input on every machine."""
    captions = {}
    for language in LANGUAGES:
        name, word = emoji.names[language], style.words[language]
        tags = [
            tag
            for tag in emoji.tags[language]
            if tag.lower() not in name.lower() and len(tag) <= WORDS["longest_tag"][language]
        ]
        # Different styles of an emoji get different tags, so that all of them are used.
        tags.sort(key=lambda tag: sha256(f"{emoji.codepoints} {style.id} {tag}".encode()).digest())
        lines = []
        for template in WORDS["templates"][language]:
            if "{tag}" not in template:
                lines.append(template.format(style=word, name=name))
            elif tags:
                lines.append(template.format(style=word, name=name, tag=tags.pop()))
        captions[language] = lines
    return captions
