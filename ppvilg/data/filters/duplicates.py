"""Hashes by which images and captions are compared with those of the whole corpus, in int64 as Arrow's columns."""

import unicodedata
from hashlib import blake2b

import numpy as np


def image_hash(image: np.ndarray) -> int:
    """The perceptual hash of an image uint8 [H, W, 3] (`imagehash.phash`, 64 bits).

    Most copies at another size or compression have the same one (of emoji at 64x64 pixels 59 % as JPEGs of quality 75, and 75 %
    at 160x160), the others one that differs in a few bits, mostly two. Images of a single colour are all the same.
    """
    import imagehash
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(image)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def caption_hash(text: str) -> int:
    """Equal for captions that differ in upper and lower case, full and half width, punctuation and spaces alone."""
    normalized = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(character for character in normalized if unicodedata.category(character)[0] in "LMNS")
    return int.from_bytes(blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)
