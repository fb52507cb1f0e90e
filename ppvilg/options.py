"""The options of the pipeline's calls, checked; without paddle, so that tools can check theirs before they load a model."""

import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn. Raises `ValueError` naming the option, its value and what is expected."""

    temperature: float = 1.0
    """0 always takes the likeliest token; else 0.001 to 1000."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that add up to p."""
    seed: int = 0
    """The i-th image of any prompt, or caption of any image, is drawn with seed + i, whatever else is in the call."""
    generator: np.random.Generator | None = None
    """Draws the seed instead."""

    def __post_init__(self):
        check_temperature(self.temperature)
        check_count("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}: expected a probability above 0 and at most 1")
        check_count("seed", self.seed, 0)
        if self.generator is not None and not isinstance(self.generator, np.random.Generator):
            raise ValueError(f"generator is {self.generator!r}: expected a numpy.random.Generator, or None to use the seed")

    def seeds(self, count: int) -> list[int]:
        """Of `count` samples."""
        first = self.seed if self.generator is None else int(self.generator.integers(2**31))
        return [first + i for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class ImageOptions(SamplingOptions):
    """The options of image generation."""

    num_images_per_prompt: int = 1
    guidance_scale: float = 1.0
    """Of classifier-free guidance, at most 1000; 1: none, and half the work; 0 ignores the text."""
    output_type: Literal["pil", "np"] = "pil"
    """PIL images, or arrays uint8 [H, W, 3]."""
    decoder: Literal["codebook", "hidden"] = "codebook"
    """`codebook`: the image tokenizer decodes the tokens; `hidden`: the reconstructor of a model that was trained end to end
    decodes the hidden states."""
    num_candidates: int | None = None
    """Draw so many images of each prompt and keep those that fit it best, the best first; needs a dual encoder."""

    def __post_init__(self):
        super().__post_init__()
        check_count("num_images_per_prompt", self.num_images_per_prompt, 1)
        check_number("guidance_scale", self.guidance_scale, 0, 1000)
        for name, choices in (("output_type", ("pil", "np")), ("decoder", ("codebook", "hidden"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected {' or '.join(map(repr, choices))}")
        if self.num_candidates is not None:
            check_count("num_candidates", self.num_candidates, self.num_images_per_prompt)


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(SamplingOptions):
    """The options of captions, which are greedy by default."""

    temperature: float = 0.0
    num_captions: int = 1
    num_beams: int = 1
    """Above 1, at most 256: the best caption of a beam search."""
    length_penalty: float = 1.0
    """Beam search divides log p by the caption's length to this power, -100 to 100."""

    def __post_init__(self):
        super().__post_init__()
        check_count("num_captions", self.num_captions, 1)
        check_count("num_beams", self.num_beams, 1, 256)
        check_number("length_penalty", self.length_penalty, -100, 100)
        if self.num_beams > 1 and (self.num_captions > 1 or self.temperature):
            how = "give 1 for several captions or a temperature"
            raise ValueError(f"num_beams is {self.num_beams}, but a beam search finds one caption and draws nothing: {how}")


def check_temperature(value: object) -> None:
    """Raise `ValueError` for a temperature that is no number, or by which float32 cannot divide logits."""
    check_number("temperature", value, 0, 1000)
    if 0 < value < 0.001:
        raise ValueError(f"temperature is {value!r}: expected 0 for the likeliest token, or at least 0.001")


def check_count(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Raise `ValueError` for anything but an integer from `least` to `most`."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not least <= value <= most:
        raise ValueError(f"{name} is {reprlib.repr(value)}: expected an integer {_range(least, most)}")


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise `ValueError` for anything but a finite number from `least` to `most`."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or value in (-math.inf, math.inf):
        raise ValueError(f"{name} is {reprlib.repr(value)}: expected a number {_range(least, most)}".rstrip())


def check_texts(name: str, texts: object) -> list[str]:
    """A text, or a sequence of at least one, as a list; raises `ValueError` for anything else, and for an empty text."""
    found = [texts] if isinstance(texts, str) else texts
    if not isinstance(found, Sequence) or not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name} is {reprlib.repr(texts)}: expected a text, or a list of at least one")
    for text in found:
        if not text.strip():
            raise ValueError("the text is empty: give a few words, e.g. 一个红苹果")
        if re.search("[\ud800-\udfff]", text):  # what Python makes of bytes that are not UTF-8
            raise ValueError(f"the text {reprlib.repr(text)} is not UTF-8: write it as such")
    return list(found)


def _range(least: float, most: float) -> str:
    if most < math.inf:
        return f"from {least} to {most}"
    return f"of at least {least}" if least > -math.inf else ""
