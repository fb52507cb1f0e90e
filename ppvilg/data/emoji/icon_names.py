"""Which emoji an icon's name means.

The icon sets name their images after CLDR or Unicode names of their day, or after nothing but their own taste. An
icon is taken only if its name is one of the emoji's official names or stands in a table of icon_names.yml.
"""

import re
import unicodedata
from collections.abc import Iterable
from importlib.resources import files

import yaml

from ppvilg.data.emoji.concepts import Emoji, normal_id

_TONED = re.compile(r"(.+?)-(?:tone(?P<number>[1-5])|(?P<word>(?:medium-)?(?:light|dark)|medium)-skin-tone)")
_TABLES = yaml.safe_load(files("ppvilg.data.emoji").joinpath("icon_names.yml").read_text("utf-8"))
_TONE_WORDS = ("light", "medium-light", "medium", "medium-dark", "dark")


def slug(name: str) -> str:
    """A name as the icon sets spell it: `Côte d’Ivoire` -> `cote-divoire`."""
    plain = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c) and c not in "'’.").replace("&", " and ")
    return re.sub("[^a-z0-9]+", "-", plain.replace("ı", "i")).strip("-")


class IconNames:
    """Looks icon names up."""

    def __init__(self, emoji: list[Emoji], unicode_names: dict[str, str]):
        """`unicode_names`: {code points: Unicode character names}, as in emojibase's meta/unicode-names.json."""
        self._known = {e.codepoints for e in emoji}
        self._toned = {(e.concept, e.tone): e.codepoints for e in emoji}
        self._official = {slug(e.label): e.codepoints for e in emoji}
        self._characters = {}
        for codepoints, name in unicode_names.items():
            if normal_id(codepoints) in self._known:
                self._characters.setdefault(slug(name), normal_id(codepoints))
        for country, region in _TABLES["old_countries"].items():
            self._official.setdefault(f"flag-{country}", "-".join(f"{0x1F1E6 + ord(c) - 65:X}" for c in region))
        self._squeezed: dict[str, str] = {}  # fxemoji's names have no hyphens
        for table in (self._official, self._characters, _TABLES["old_names"]):
            for key, codepoints in table.items():
                self._squeezed.setdefault(key.replace("-", ""), codepoints)

    def find(self, style: str, names: Iterable[str]) -> str | None:
        """The emoji that an icon of a style with these names (its own and its aliases) shows; None if unknown."""
        names = list(names)
        if names[0] in _TABLES["misleading"].get(style, ()):
            return None
        if style == "fxemoji":
            return self._find_fxemoji(names[0])
        found = {self._find(name) for name in names} - {None}
        # Names that disagree (an image shared by two emoji) are settled by the icon's own name, which comes first.
        return self._find(names[0]) or min(found) if found else None

    def _find(self, name: str) -> str | None:
        plain = name.replace("flag-for-flag-", "flag-").replace("flag-for-", "flag-")
        for table, key in ((self._official, name), (_TABLES["old_names"], name), (self._official, plain)):
            if key in table:
                return table[key]
        if name in self._characters:
            return self._characters[name]
        if toned := _TONED.fullmatch(name):
            base = self._find(toned[1])
            tone = int(toned["number"]) if toned["number"] else _TONE_WORDS.index(toned["word"]) + 1
            return self._toned.get((base, tone))
        return None

    def _find_fxemoji(self, name: str) -> str | None:
        return _TABLES["fxemoji"].get(name) or self._squeezed.get(name.replace("-", ""))
