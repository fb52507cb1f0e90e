"""Questions about an image and what people answered."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image."""

    text: str
    answers: tuple[str, ...]
    """Of one or more people, the same answer as often as it was given; empty where the data keep them secret."""
    id: str = ""
    """By which a file of answers names it; empty where the data has none."""
    kind: str = ""
    """Its type, e.g. "yes/no" or "how many"."""

    @property
    def canonical_answer(self) -> str:
        """The most frequent one, of several the first."""
        return max(self.answers, key=self.answers.count)

    @property
    def language(self) -> str:
        """`zh` if it has a Chinese character, else `en`."""
        return "zh" if re.search("[\u3400-\u9fff]", self.text) else "en"


def take_questions(metadata: dict[str, Any]) -> list[Question]:
    """Remove a sample's questions from its metadata and return them.

    They stand in `questions`, a list of {"question", "answer" or "answers", "id", "type"}, or, where a row of a table is one
    question, in the columns `question`, `answer` or `answers`, `question_id` and `question_type`. What has no text is dropped.
    """
    rows = metadata.pop("questions", None)
    rows = list(rows) if isinstance(rows, list) else []
    columns = {name: metadata.pop(f"question_{name}", None) for name in ("id", "type")}
    answers = {name: metadata.pop(name, None) for name in ("answer", "answers")}
    rows.append({"question": metadata.pop("question", None), **answers, **columns})
    found = []
    for row in rows:
        text = row.get("question") if isinstance(row, dict) else None
        if isinstance(text, str) and text.strip():
            name = row.get("id")
            given = tuple(answer for column in ("answer", "answers") for answer in _texts(row.get(column)))
            found.append(Question(" ".join(text.split()), given, "" if name is None else str(name), str(row.get("type") or "")))
    return found


def _texts(value: Any) -> list[str]:
    return [" ".join(text.split()) for text in (value if isinstance(value, list) else [value]) if _is_text(text)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
