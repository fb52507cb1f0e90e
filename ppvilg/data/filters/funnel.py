"""How many pairs went into each step of the preparation, what it dropped and why: plain data that merges and becomes JSON."""

import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

EXAMPLES = 4
"""Of each reason."""


@dataclass(frozen=True)
class Example:
    """A pair that was dropped, or that lost a caption."""

    key: str
    captions: tuple[str, ...]
    """Those that were dropped."""
    thumbnail: bytes | None = field(default=None, compare=False)
    """JPEG; None where the image can't be shown."""

    @property
    def rank(self) -> tuple[bytes, str, tuple[str, ...]]:
        """Examples with the smallest are kept: random, but the same in any order and on every machine."""
        name = "\0".join((self.key, *self.captions)).encode("utf-8", "surrogatepass")
        return blake2b(name, digest_size=8).digest(), self.key, self.captions


def choose_examples(examples: Iterable[Example]) -> list[Example]:
    """The `EXAMPLES` of smallest rank, in this order; repeated ones count once."""
    return sorted(set(examples), key=lambda example: example.rank)[:EXAMPLES]


@dataclass
class Step:
    """One step: a filter, decoding, the readers, or the global deduplication."""

    name: str
    pairs: int = 0
    """That went in."""
    captions: int = 0
    """That went in with them, all languages together."""
    dropped_pairs: Counter[str] = field(default_factory=Counter)
    """By reason. A pair is dropped as a whole or because its last caption was; then the reason is that caption's."""
    dropped_captions: Counter[str] = field(default_factory=Counter)
    """By reason; those of dropped pairs are among them."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """By reason."""

    @property
    def pairs_out(self) -> int:
        """That came out."""
        return self.pairs - self.dropped_pairs.total()

    @property
    def captions_out(self) -> int:
        """That came out."""
        return self.captions - self.dropped_captions.total()

    def __add__(self, other: "Step") -> "Step":
        if self.name != other.name:
            raise ValueError(f"the steps {self.name} and {other.name} are different ones and don't add up")
        reasons = sorted({*self.examples, *other.examples})
        return Step(
            self.name,
            self.pairs + other.pairs,
            self.captions + other.captions,
            self.dropped_pairs + other.dropped_pairs,
            self.dropped_captions + other.dropped_captions,
            {reason: choose_examples(self.examples.get(reason, []) + other.examples.get(reason, [])) for reason in reasons},
        )


@dataclass
class Funnel:
    """The steps in their order."""

    steps: list[Step] = field(default_factory=list)

    def __add__(self, other: "Funnel") -> "Funnel":
        """Of two parts of the data, through the same steps, in any order; an empty funnel changes nothing. Raises `ValueError`
        for funnels of different steps."""
        if not self.steps or not other.steps:
            return Funnel(list(self.steps or other.steps))
        names = [[step.name for step in funnel.steps] for funnel in (self, other)]
        if names[0] != names[1]:
            raise ValueError(f"funnels of different steps don't add up: {', '.join(names[0])} and {', '.join(names[1])}")
        return Funnel([one + another for one, another in zip(self.steps, other.steps, strict=True)])

    def to_json(self) -> list[dict[str, Any]]:
        """As JSON's types, reasons in alphabetical order; thumbnails are base64."""
        return [
            {
                "step": step.name,
                "pairs": step.pairs,
                "captions": step.captions,
                "dropped_pairs": dict(sorted(step.dropped_pairs.items())),
                "dropped_captions": dict(sorted(step.dropped_captions.items())),
                "examples": {reason: [_to_json(one) for one in some] for reason, some in sorted(step.examples.items())},
            }
            for step in self.steps
        ]

    @classmethod
    def from_json(cls, steps: list[dict[str, Any]]) -> "Funnel":
        """The funnel of which `to_json` made this."""
        return cls(
            [
                Step(
                    step["step"],
                    step["pairs"],
                    step["captions"],
                    Counter(step["dropped_pairs"]),
                    Counter(step["dropped_captions"]),
                    {reason: [_from_json(one) for one in some] for reason, some in step["examples"].items()},
                )
                for step in steps
            ]
        )


def _to_json(example: Example) -> dict[str, Any]:
    thumbnail = None if example.thumbnail is None else base64.b64encode(example.thumbnail).decode()
    return {"key": example.key, "captions": list(example.captions), "thumbnail": thumbnail}


def _from_json(example: dict[str, Any]) -> Example:
    thumbnail = None if example["thumbnail"] is None else base64.b64decode(example["thumbnail"])
    return Example(example["key"], tuple(example["captions"]), thumbnail)
