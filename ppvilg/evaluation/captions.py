"""How close written captions are to reference captions: exact match, BLEU, METEOR, ROUGE-L and CIDEr."""

import contextlib
import logging
import re
import shutil
import threading
import unicodedata
import warnings
from typing import Literal

# Chinese characters, those beyond the basic plane included.
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Endings that the Penn Treebank, and so COCO's tokenizer, counts as words: dog's -> dog 's, don't -> do n't.
_ENDING = r"n't\b|'(?:s|m|d|re|ve|ll)\b"
_WORD = rf"[^\W_{_HAN}]+(?:['-][^\W_{_HAN}]+|\.\d+)*"
_SEARCH_ENDING = re.compile(rf"(?<=\w)({_ENDING})")
_SEARCH_TOKEN = re.compile(rf"[{_HAN}]|{_ENDING}|{_WORD}")
_SEARCH_HAN = re.compile(f"[{_HAN}]")
# After which METEOR is given up, with a tenth of a second more for each sample.
_METEOR_SECONDS = 300.0


def caption_scores(
    predictions: list[str], references: list[list[str]], unit: Literal["characters", "words"]
) -> dict[str, float]:
    """Scores of one caption for each of N samples, against one or more references for each.

    The keys: "exact match", the part of the captions that `characters` makes equal to one of their references; "BLEU-1" to
    "BLEU-4" (Papineni et al. 2002, over the whole set, with the length of the closest reference), "ROUGE-L" (Lin 2004, F with
    beta 1.2), "METEOR" (Denkowski & Lavie 2014, version 1.5), all in [0, 1], and "CIDEr" (Vedantam et al. 2015, CIDEr-D),
    in [0, 10]. All but the first are those of pycocoevalcap, over the tokens of `characters` or `words`. Tables in papers
    show them times 100.

    What to know of them:

    - Scores over characters are much higher than over words and can't be compared with them. AIC-ICC's own script counts
      jieba's words. COCO-CN's counts words that came with the data; over characters a score needs no segmenter.
    - METEOR knows English stems and synonyms; Chinese words match where they are equal. It runs in Java, takes up to half a
      minute to start, and is left out with a warning where Java is missing or fails.
    - CIDEr weighs words by how rare they are in the references given here: it is 0 for a single sample.
    - A caption without tokens, such as "", is no match and scores 0 everywhere; in BLEU, which is one score of the whole set,
      it makes the captions shorter than their references. Where no caption has n tokens, BLEU-n is not 0 but tiny.

    Raises `ValueError` if there are no captions, the lists' lengths differ, a sample has no reference with a token, or
    pycocoevalcap is missing.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise ValueError("the caption scores need pycocoevalcap: pip install -r requirements-eval.txt") from None
    if not predictions:
        raise ValueError("there are no captions to score: give one for each sample")
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} captions, but references for {len(references)} samples")
    split = {"characters": characters, "words": words}[unit]
    # The scorers take texts by sample, their tokens joined by spaces.
    written = {i: [" ".join(split(text))] for i, text in enumerate(predictions)}
    expected = {i: [" ".join(tokens) for tokens in map(split, texts) if tokens] for i, texts in enumerate(references)}
    for i, texts in expected.items():
        if not texts:
            raise ValueError(f"sample {i} has no reference caption with a word: leave it out")
    pairs = [(characters(text), texts) for text, texts in zip(predictions, references, strict=True)]
    equal = sum(tokens != [] and tokens in map(characters, texts) for tokens, texts in pairs)
    scores = {"exact match": equal / len(pairs)}
    bleu, _ = Bleu(4).compute_score(expected, written, verbose=0)
    scores |= {f"BLEU-{n}": value for n, value in enumerate(bleu, 1)}
    meteor = _meteor(expected, written)
    if meteor is not None:
        scores["METEOR"] = meteor
    scores["ROUGE-L"], _ = Rouge().compute_score(expected, written)
    scores["CIDEr"], _ = Cider().compute_score(expected, written)
    return {name: float(value) for name, value in scores.items()}


def characters(text: str) -> list[str]:
    """Chinese characters, and words and numbers of other scripts, which are kept whole: "2只Big狗。" -> 2 只 big 狗.

    Letters are lower-cased, full-width ones made narrow (NFKC); English endings are split off as the Penn Treebank does
    (dog 's, do n't). Punctuation and symbols are dropped, as COCO's tokenizer drops them.
    """
    text = _SEARCH_ENDING.sub(r" \1", _narrowed(text).lower())
    return _SEARCH_TOKEN.findall(text)


def words(text: str) -> list[str]:
    """The words of a text: jieba's (its default mode, as in AIC-ICC's script) if there is a Chinese character in it.

    Otherwise those of `characters`, which are COCO's: lower-cased, without punctuation. Chinese words are lower-cased, too,
    after the segmentation, as jieba knows T恤 and not t恤. All punctuation is dropped; AIC-ICC's script leaves the Chinese
    kinds but 。.
    """
    text = _narrowed(text)
    if not _SEARCH_HAN.search(text):
        return characters(text)
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it tells where it reads its dictionary
    return [word.lower() for word in jieba.cut(text) if any(map(str.isalnum, word))]


def _narrowed(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("’", "'")


def _meteor(references: dict[int, list[str]], predictions: dict[int, list[str]]) -> float | None:
    """METEOR of a set, or `None` with a warning where Java is missing or fails."""
    if shutil.which("java") is None:
        warnings.warn("METEOR is left out: it needs Java, and there is no `java` on the PATH", stacklevel=3)
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    # Its lines are read without a limit of time; once killed, it answers with the end of the file.
    limit = threading.Timer(_METEOR_SECONDS + 0.1 * len(predictions), scorer.meteor_p.kill)
    limit.start()
    try:
        score, _ = scorer.compute_score(references, predictions)
        return score
    except (ValueError, OSError):
        warnings.warn("METEOR is left out: its Java program failed or took too long", stacklevel=3)
        return None
    finally:
        limit.cancel()
        for pipe in (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            with contextlib.suppress(OSError):  # what a program that ended did not read any more
                pipe.close()
        if scorer.lock.locked():  # held since the failure, and the scorer's destructor would wait for it for ever
            scorer.lock.release()
