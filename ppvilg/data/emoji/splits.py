"""Who is trained on and who is held out, decided by concept so that all tones of an emoji go the same way.

- `unseen_concept`: 5 % of the concepts, in every style.
- `validation`: 2 % of the concepts in every style, and one style of another 20 %.
- `unseen_style`: one style of another 20 % of the concepts.
- `composition`: combinations whose parts are all trained on: one tone of each profession, and some colours of
  hearts, squares and circles.
- `train`: everything else.

Every choice is a hash of the concept's id, so adding a style or a concept moves no other.
"""

from hashlib import sha256

from ppvilg.data.emoji.concepts import Emoji

SPLITS = ("train", "validation", "unseen_style", "unseen_concept", "composition")

_UNSEEN_CONCEPTS, _VALIDATION_CONCEPTS = 0.05, 0.02
_UNSEEN_STYLES, _VALIDATION_STYLES = 0.20, 0.20
_STYLES_NEEDED = 4

# Colours are hidden so that each is still trained on in the two other shapes.
_SHAPES = {
    "heart": {"2764", "1F9E1", "1F49B", "1F49A", "1F499", "1FA75", "1F49C", "1F90E", "1F5A4", "1FA76", "1F90D",
              "1FA77"},
    "square": {"1F7E5", "1F7E7", "1F7E8", "1F7E9", "1F7E6", "1F7EA", "1F7EB", "2B1B", "2B1C"},
    "circle": {"1F534", "1F7E0", "1F7E1", "1F7E2", "1F535", "1F7E3", "1F7E4", "26AB", "26AA"},
}  # fmt: skip
_HIDDEN = {"1F9E1", "1F49C", "1F7E6", "1F7EB", "1F7E2", "1F7E1"}
_COLOURED = set().union(*_SHAPES.values())


def _chance(*words: str) -> float:
    """A number in [0, 1) that only depends on the words."""
    return int.from_bytes(sha256(" ".join(words).encode()).digest()[:8], "big") / 2**64


def split_of(emoji: Emoji, style: str, styles: list[str], family: str) -> tuple[str, str]:
    """(split, novelty) of one image.

    `styles`: the styles that have an image of the concept. `family`: the concept, or the smallest id of the concepts
    that share an image with it (a few flags and people look alike), which go the same way.
    """
    if emoji.codepoints in _HIDDEN:
        return "composition", "composition"
    if emoji.concept not in _COLOURED:
        chance = _chance("concept", family)
        if chance < _UNSEEN_CONCEPTS:
            return "unseen_concept", "concept"
        if chance < _UNSEEN_CONCEPTS + _VALIDATION_CONCEPTS:
            return "validation", "concept"
        if emoji.tone is not None and emoji.tone == _hidden_tone(emoji):
            return "composition", "composition"
        if len(styles) >= _STYLES_NEEDED:
            chance = _chance("style", emoji.concept)
            hidden = min(styles, key=lambda name: _chance("which style", emoji.concept, name))
            if style == hidden and chance < _UNSEEN_STYLES:
                return "unseen_style", "style"
            if style == hidden and chance < _UNSEEN_STYLES + _VALIDATION_STYLES:
                return "validation", "style"
    return "train", "none"


def _hidden_tone(emoji: Emoji) -> int | None:
    if emoji.subgroup != "person-role":
        return None
    return 1 + int(5 * _chance("tone", emoji.concept))
