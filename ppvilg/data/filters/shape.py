"""Images too small or too long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ppvilg.config.models import STRICT, Positive
from ppvilg.data.filters.pairs import Pair, ReadyFilter, Verdict


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Drops images whose shorter side is too small."""

    __pydantic_config__ = STRICT
    filter: Literal["image_size"] = "image_size"
    at_least: Positive = 64
    """Pixels."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`."""
        reason = f"a side of fewer than {self.at_least} pixels"
        return ReadyFilter(self.filter, _check(lambda size: min(size) >= self.at_least, reason), needs_image=True)


@dataclass(frozen=True, kw_only=True)
class AspectRatio:
    """Drops images that are too long or too high: training sees the square in their middle."""

    __pydantic_config__ = STRICT
    filter: Literal["aspect_ratio"] = "aspect_ratio"
    at_most: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """Longer side by shorter side."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`."""
        reason = f"sides of more than {self.at_most:g} to 1"
        return ReadyFilter(self.filter, _check(lambda size: max(size) <= self.at_most * min(size), reason), needs_image=True)


def _check(fits: Callable[[tuple[int, int]], bool], reason: str) -> Callable[[Sequence[Pair]], list[Verdict]]:
    return lambda pairs: [Verdict(None if fits(pair.size) else reason) for pair in pairs]
