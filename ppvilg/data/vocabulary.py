"""A vocabulary in ERNIE's format that spells every caption without [UNK]."""

from collections import Counter
from collections.abc import Iterable

# The first four stand where ERNIE has them; ERNIE's [UNK] is its last line, which a growing file can't keep.
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"
_ENDINGS = ("ing", "ed", "er", "es", "ly", "ness", "tion", "al", "ish", "y")
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~，。、；：？！“”‘’（）《》【】…—·"


def build_vocabulary(captions: Iterable[str], limit: int = 6000) -> list[str]:
    """Tokens for PaddleNLP's `ErnieTokenizer`, one per line of vocab.txt, most useful first.

    Special tokens, punctuation, digits and letters (alone and as `##` continuations, so that every Latin word can be
    spelt), every other character of the captions, and the Latin words that occur most often, up to `limit` lines.
    """
    from paddlenlp.transformers.bert.tokenizer import BasicTokenizer

    split = BasicTokenizer(do_lower_case=True).tokenize
    words = Counter()
    for caption, count in Counter(captions).items():
        for word in split(caption):
            words[word] += count
    characters = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    singles = [*_PUNCTUATION, *_DIGITS, *_LETTERS]
    continued = [f"##{c}" for c in (*_DIGITS, *_LETTERS)]
    others = sorted(set(characters) - set(singles), key=lambda c: (-characters[c], c))
    # Characters that occur inside longer words are looked up with `##`.
    inside = {c for word in words for c in word[1:]} - set(_DIGITS + _LETTERS)
    tokens = [*_SPECIAL, *singles, *continued, *others, *(f"##{c}" for c in sorted(inside))]
    tokens += [f"##{ending}" for ending in _ENDINGS if len(ending) > 1]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    tokens += frequent[: max(0, limit - len(tokens))]
    return list(dict.fromkeys(tokens))
