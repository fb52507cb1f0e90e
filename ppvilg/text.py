"""Text <-> token ids: ERNIE's tokenizer, a sentencepiece model, or one of YouTokenToMe."""

import re
import shutil
import unicodedata
from pathlib import Path
from typing import Protocol

import numpy as np

from ppvilg.config import TextTokenizerConfig, TokenizerKind
from ppvilg.options import check_texts
from ppvilg.yttm import YttmText


class TextTokenizer(Protocol):
    """What the rest of the project knows of a tokenizer."""

    tokens: list[str]
    """By their ids."""
    size: int
    """Number of tokens."""
    pad: int
    begin: int
    end: int
    unknown: int
    """Stands for what is not in the vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Token ids, with begin and end tokens where the tokenizer has them."""

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""

    def save(self, folder: Path) -> str:
        """Copy the vocabulary into a folder, so that a run is complete; returns its file's name."""


class ErnieText:
    """ERNIE's tokenizer: WordPiece over single Chinese characters and words, lower-cased.

    Gives the ids of PaddleNLP's ErnieTokenizer, but needs neither its seconds nor its memory; a tokenizer that is downloaded by
    its name is PaddleNLP's to find.
    """

    def __init__(self, vocabulary: str):
        path = Path(vocabulary)
        file = path / "vocab.txt" if path.is_dir() else path
        if file.is_file():
            self.tokens = file.read_text("utf-8").removesuffix("\n").split("\n")
        elif path.is_dir() or path.suffix == ".txt":
            raise ValueError(f"text.vocabulary: no vocab.txt at {path}; give the file, its folder or an ERNIE model's name")
        else:
            self.tokens = _download(vocabulary)
        ids = {token: i for i, token in enumerate(self.tokens)}
        if missing := [token for token in _SPECIAL if token not in ids]:
            raise ValueError(f"text.vocabulary: {vocabulary} has no {missing[0]}: give an ERNIE vocabulary")
        self.size = len(self.tokens)
        self.pad, self.begin, self.end, self.unknown = (ids[token] for token in _SPECIAL)
        self._word_piece = _word_piece(ids)

    def encode(self, text: str) -> list[int]:
        """[CLS] tokens [SEP]."""
        # Characters that Python's Unicode does not know yet are dropped, as PaddleNLP drops them; the library's is newer.
        known = "".join(c for c in text if unicodedata.category(c) not in ("Cn", "Cs"))
        return [self.begin, *self._word_piece.encode(known, add_special_tokens=False).ids, self.end]

    def decode(self, ids: list[int]) -> str:
        """Pieces joined to words; a space between two Latin words or numbers only."""
        pieces = [self.tokens[i] for i in ids if i not in (self.pad, self.begin, self.end)]
        text = " ".join(pieces).replace(" ##", "")
        return re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", text)

    def save(self, folder: Path) -> str:
        """Writes vocab.txt."""
        (folder / "vocab.txt").write_text("\n".join(self.tokens) + "\n", "utf-8")
        return "vocab.txt"


class WordPieceText(ErnieText):
    """The same without begin and end tokens around a text; gives the ids of PaddleNLP's ArtistTokenizer, less its offset."""

    def encode(self, text: str) -> list[int]:
        """The tokens alone."""
        return super().encode(text)[1:-1]


_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
# CJK ideographs by the blocks that BERT lists.
_CHINESE = "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"


def _word_piece(vocabulary: dict[str, int]):
    """ERNIE's steps for the `tokenizers` library: lower-case, without accents; words, numbers, and single Chinese characters,
    punctuation marks and symbols; always the longest piece that fits. BERT's own steps there know no symbols.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import NFD, Lowercase, Replace, Sequence
    from tokenizers.pre_tokenizers import Sequence as Splits
    from tokenizers.pre_tokenizers import Split, WhitespaceSplit

    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    controls, accents = Regex(r"[\p{C}\x{FFFD}]"), Regex(r"[\p{Mn}\x{1171E}]")  # U+1171E was Mn before Unicode 15
    white = Replace(Regex(r"[\t\n\r]"), " ")
    tokenizer.normalizer = Sequence([white, Replace(controls, ""), Lowercase(), NFD(), Replace(accents, "")])
    single = Regex(rf"[{_CHINESE}\p{{P}}\p{{S}}²º〇µŋ]")
    tokenizer.pre_tokenizer = Splits([WhitespaceSplit(), Split(single, "isolated")])
    return tokenizer


def _download(name: str) -> list[str]:
    """The tokens of an ERNIE model by its name."""
    from paddlenlp.transformers import ErnieTokenizer

    try:
        vocabulary = ErnieTokenizer.from_pretrained(name).vocab
    except Exception as error:  # the hub clients raise whatever their transport does
        raise ValueError(
            f"text.vocabulary: {name!r} is no file or folder here, and no ERNIE model of that name could be downloaded "
            f"({type(error).__name__}): give its vocab.txt or the folder with it, or go without ERNIE, with a vocabulary of "
            f"your own (tools/build_vocabulary.py) and -o text.embeddings=null"
        ) from None
    return [vocabulary.to_tokens(i) for i in range(len(vocabulary))]


class SentencePieceText:
    """A sentencepiece model; it must have begin and end tokens (bos, eos)."""

    def __init__(self, vocabulary: str):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=vocabulary)
        except (OSError, RuntimeError):
            raise ValueError(f"text.vocabulary: {vocabulary} is not a sentencepiece model file") from None
        self._path = Path(vocabulary)
        self.begin, self.end = self._model.bos_id(), self._model.eos_id()
        if self.begin < 0 or self.end < 0:
            raise ValueError(f"text.vocabulary: {vocabulary} has no begin or end token; train it with bos_id and eos_id")
        # A model may have no pad piece; padding is masked everywhere, so any id serves.
        self.pad = max(self._model.pad_id(), 0)
        self.unknown = self._model.unk_id()
        self.size = self._model.get_piece_size()
        self.tokens = [self._model.id_to_piece(i) for i in range(self.size)]

    def encode(self, text: str) -> list[int]:
        """<s> pieces </s>."""
        return [self.begin, *self._model.encode(text), self.end]

    def decode(self, ids: list[int]) -> str:
        """Pieces joined as the model says."""
        return self._model.decode([i for i in ids if i not in (self.begin, self.end) and not self._model.is_control(i)])

    def save(self, folder: Path) -> str:
        """Copies the model file."""
        shutil.copyfile(self._path, folder / "text.model")
        return "text.model"


_KINDS = {"ernie": ErnieText, "wordpiece": WordPieceText, "sentencepiece": SentencePieceText, "yttm": YttmText}


def load_text_tokenizer(config: TextTokenizerConfig) -> TextTokenizer:
    """The tokenizer that a config names.

    Raises `ValueError` where it cannot be had or has more tokens than the text table has rows.
    """
    tokenizer = _KINDS[config.tokenizer](config.vocabulary)
    if tokenizer.size > config.token_rows:
        padding = config.vocabulary_size - config.token_rows
        more = f" and {padding} padding tokens" if padding else ""
        raise ValueError(
            f"text.vocabulary_size is {config.vocabulary_size}, but {config.vocabulary} has {tokenizer.size} tokens{more}: "
            f"give at least {'their sum' if padding else 'that many'}"
        )
    return tokenizer


def saved_text_tokenizer(folder: Path, kind: TokenizerKind, vocab_size: int) -> TextTokenizer:
    """The tokenizer that `save` put into a model's folder, which may have at most `vocab_size` tokens."""
    vocabulary = next((folder / "text").glob("*"), None)
    if vocabulary is None:
        raise ValueError(f"{folder / 'text'} holds no vocabulary: the folder is incomplete")
    return load_text_tokenizer(TextTokenizerConfig(kind, str(vocabulary), vocab_size))


def encode_prompt(tokenizer: TextTokenizer, text: str, max_length: int) -> list[int]:
    """Token ids of a prompt; an empty or overlong one is a `ValueError`."""
    check_texts("prompt", text)
    ids = tokenizer.encode(text)
    if len(ids) > max_length:
        around = len(tokenizer.encode(""))
        found, most = len(ids) - around, max_length - around
        raise ValueError(f"the text {_shown(text)} has {found} tokens, but the model reads at most {most}: shorten it")
    return ids


def check_known(tokenizer: TextTokenizer, text: str) -> str | None:
    """Raise `ValueError` for a text of which nothing is in the vocabulary; returns a warning if only some of it is."""
    tokens = [token for token in tokenizer.encode(text) if token not in (tokenizer.begin, tokenizer.end)]
    known = sum(token != tokenizer.unknown for token in tokens)
    if not known:
        raise ValueError(f"the text {_shown(text)} has no word that the model knows: use words of what it was trained on")
    return None if known == len(tokens) else f"the model knows {known} of the {len(tokens)} tokens of {_shown(text)}"


def _shown(text: str) -> str:
    return text[:30] + "…" if len(text) > 30 else repr(text)


def styled(prompt: str, style: str, styles: dict[str, dict[str, str]]) -> str:
    """The prompt in a style's words (`text.styles` of the config), in its own language: Chinese if it has Chinese characters,
    else English, else whatever the style has. Raises `ValueError` for an unknown style."""
    if style not in styles:
        known = f"this model knows {', '.join(styles)}" if styles else "this model knows none"
        raise ValueError(f"there is no style {str(style)[:40]!r}: {known}")
    templates = styles[style]
    language = "zh" if re.search("[\u3400-\u9fff]", prompt) else "en"
    return templates.get(language, next(iter(templates.values()), "{}")).replace("{}", prompt)


def encode_cut(tokenizer: TextTokenizer, text: str, max_length: int) -> list[int]:
    """Token ids of a text, at most `max_length`; the end token is kept where the tokenizer gives one."""
    ids = tokenizer.encode(text)
    if len(ids) <= max_length:
        return ids
    return [*ids[: max_length - 1], tokenizer.end] if ids[-1] == tokenizer.end else ids[:max_length]


def pad_batch(texts: list[list[int]], pad: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 [B, m] and validity bool [B, m]; m is the longest text's length rounded up to `multiple`."""
    longest = max(len(ids) for ids in texts)
    length = -(-longest // multiple) * multiple
    ids = np.full((len(texts), length), pad, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    lengths = np.array([len(text) for text in texts])
    return ids, np.arange(length) < lengths[:, None]
