"""What is known of a sample before its image is read."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppvilg.data.questions import Question

Place = bytes | Path | tuple[Path, int, int] | None
"""Where an image is: its content, its file, (file, offset, size), or nowhere, where its tokens alone were kept."""


@dataclass(frozen=True, slots=True)
class Record:
    """A sample whose image has not been read."""

    key: str
    captions: dict[str, list[str]]
    metadata: dict[str, Any]
    place: Place
    version: str = ""
    """Changes when the image's file does (folders only)."""
    questions: list[Question] = field(default_factory=list)


def read_place(place: Place, at_most: int = -1) -> bytes:
    """An image's encoded content, or the beginning of it; raises `OSError` for a file that can't be read."""
    if isinstance(place, bytes):
        return place[: at_most if at_most >= 0 else None]
    path, offset, size = place if isinstance(place, tuple) else (place, 0, -1)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size if at_most < 0 else at_most if size < 0 else min(size, at_most))


def metadata_text(value: Any) -> str:
    """A metadata value as configs write it."""
    return "null" if value is None else str(value)


def take_captions(metadata: dict[str, Any]) -> dict[str, list[str]]:
    """Remove `captions`, `caption`, `text` and `language` from a sample's metadata and return {language: captions}.

    Captions may be a text, a list of texts or {language: text or list}; empty ones are dropped. A text without a
    language is Chinese if it has a Chinese character and English otherwise.
    """
    language = metadata.pop("language", None)
    language = language if isinstance(language, str) else None
    found: dict[str, list[str]] = {}
    for column in ("captions", "caption", "text"):
        value = metadata.pop(column, None)
        for tongue, texts in (value if isinstance(value, dict) else {language: value}).items():
            for text in texts if isinstance(texts, list) else [texts]:
                if isinstance(text, str) and text.strip():
                    known = tongue or ("zh" if re.search("[\u3400-\u9fff]", text) else "en")
                    found.setdefault(str(known), []).append(" ".join(text.split()))
    return found
