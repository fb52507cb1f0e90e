"""Filters that do to a worker what a hostile input may do."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from ppvilg.data.filters import Pair, ReadyFilter, Verdict
from ppvilg.data.translation import TranslationError


@dataclass(frozen=True)
class Killer:
    """Kills the worker, or raises, at some pairs."""

    keys: tuple[str, ...]
    filter: str = "killer"
    raises: bool = False

    def setup(self) -> ReadyFilter:
        return ReadyFilter(self.filter, self.check)

    def check(self, pairs: Sequence[Pair]) -> list[Verdict]:
        if any(pair.record.key in self.keys for pair in pairs):
            if self.raises:
                raise ValueError("a bug")
            os.kill(os.getpid(), signal.SIGKILL)
        return [Verdict()] * len(pairs)


@dataclass(frozen=True)
class Unavailable:
    """Something outside of the data fails."""

    filter: str = "unavailable"

    def setup(self) -> ReadyFilter:
        return ReadyFilter(self.filter, self.check)

    def check(self, pairs: Sequence[Pair]) -> list[Verdict]:
        if pairs:
            raise TranslationError("the service is gone: start again later")
        return []
