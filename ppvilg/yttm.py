"""Text <-> token ids by a model of YouTokenToMe (github.com/VKCOM/YouTokenToMe), as ruDALL-E's texts are read.

Its file is numbers in text: how many characters and merges there are, each character (a code point) with its id, the merges as
triples of ids (left, right, merged) in the order in which they are applied, and the ids of unknown, pad, begin and end.
"""

import re
from pathlib import Path

_SPACE = "\u2581"  # begins every word
_SPACES = re.compile(f"[ \t\n\v\f\r{_SPACE}]+")
_SPECIAL = ("<UNK>", "<PAD>", "<BOS>", "<EOS>")


class YttmText:
    """Byte-pair encoding of words, lower-cased; the merging is the `tokenizers` library's."""

    def __init__(self, vocabulary: str):
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        self._path = Path(vocabulary)
        try:
            numbers = [int(word) for word in self._path.read_text("ascii").split()]
            names, merges, special = _parsed(numbers)
        except (OSError, ValueError, LookupError, OverflowError):
            raise ValueError(f"text.vocabulary: {vocabulary} is not a model of YouTokenToMe") from None
        self.size = len(names) + len(special)
        names |= {number: name for name, number in special.items()}
        ids = {name: number for number, name in names.items()}
        if len(ids) < self.size or set(names) != set(range(self.size)):
            raise ValueError(f"text.vocabulary: in {vocabulary} ids are missing, or two tokens are spelled alike")
        if missing := [name for name in _SPECIAL if name not in ids]:
            raise ValueError(f"text.vocabulary: {vocabulary} has no {missing[0]}: train it with all four special tokens")
        self.tokens = [names[i] for i in range(self.size)]
        self.unknown, self.pad, self.begin, self.end = (ids[name] for name in _SPECIAL)
        self._specials = set(special.values())
        self._bpe = Tokenizer(BPE(ids, merges, unk_token="<UNK>", fuse_unk=True))

    def encode(self, text: str) -> list[int]:
        """<BOS> pieces <EOS>."""
        known = text.lower().encode("utf-8", "ignore").decode()
        words = [_SPACE + word for word in _SPACES.split(known) if word]
        return [self.begin, *self._bpe.encode(words, is_pretokenized=True, add_special_tokens=False).ids, self.end]

    def decode(self, ids: list[int]) -> str:
        """Words, a space between two of them."""
        return "".join(self.tokens[i] for i in ids if i not in self._specials).replace(_SPACE, " ").removeprefix(" ")

    def save(self, folder: Path) -> str:
        """Copies the model file."""
        (folder / "bpe.model").write_bytes(self._path.read_bytes())
        return "bpe.model"


def _parsed(numbers: list[int]) -> tuple[dict[int, str], list[tuple[str, str]], dict[str, int]]:
    """What the characters' and merged tokens' ids stand for, the merges, and the ids of the special tokens that there are."""
    characters, rules = numbers[:2]
    end = 2 + 2 * characters
    if len(numbers) != end + 3 * rules + 4:
        raise ValueError("the counts do not fit")
    names = {number: chr(point) for point, number in zip(numbers[2:end:2], numbers[3:end:2], strict=True)}
    merges = []
    for i in range(end, end + 3 * rules, 3):
        left, right, merged = numbers[i : i + 3]
        merges.append((names[left], names[right]))
        names[merged] = names[left] + names[right]
    special = {name: number for name, number in zip(_SPECIAL, numbers[-4:], strict=True) if number >= 0}
    return names, merges, special
