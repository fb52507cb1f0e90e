"""Translation of captions: from a file, by an HTTP service, or none. The original stays beside the translation.

A translation's `setup` gives a function of texts, which a worker keeps; `add_translations` uses it on records.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field

from ppvilg.config.models import STRICT, Positive, PositiveFloat
from ppvilg.data.records import Record
from ppvilg.files import whole_file

if TYPE_CHECKING:
    import httpx
    import tenacity

Translate = Callable[[Sequence[str]], list[str | None]]
"""Texts to their translations; None for one that has none."""

_PROBE = "a dog"
_LONGEST_WAIT = 60.0
_ROWS_TOGETHER = 500


class TranslationError(ValueError):
    """The service fails altogether: the job has to stop, and can be continued later."""


@dataclass(frozen=True, kw_only=True)
class NoTranslation:
    """Captions stay as they are."""

    __pydantic_config__ = STRICT
    by: Literal["none"] = "none"

    def setup(self) -> Translate:
        """A function that translates nothing."""
        return lambda texts: [None] * len(texts)


@dataclass(frozen=True, kw_only=True)
class TranslationFile:
    """Translations that exist already."""

    __pydantic_config__ = STRICT
    by: Literal["file"] = "file"
    file: str
    """TSV (text, tab, translation) or JSONL ({"en": text, "zh": translation}), in UTF-8. Of a text that comes twice the first
    translation counts."""
    source: str = "en"
    target: str = "zh"
    index: str | None = None
    """Where the texts are put to be found without loading them all: a SQLite file, made once; null: beside the file."""

    def setup(self) -> Translate:
        """A function that looks texts up. Raises `ValueError` for a file that is missing or damaged."""
        path = Path(self.file)
        index = Path(self.index or f"{path}.sqlite")
        try:
            found = path.stat()
        except OSError as error:
            raise ValueError(f"the translations {path} cannot be read: {error.strerror}") from None
        stamp = f"{found.st_size} {found.st_mtime_ns} {self.source} {self.target}"
        if not index.exists() or _stamp(index) != stamp:
            try:
                with whole_file(index) as temporary, closing(_open(temporary, stamp)) as store:
                    self._fill(store, path)
            except (OSError, sqlite3.Error) as error:
                remedy = "name a file that can be written, as `index`"
                raise ValueError(f"the index of translations {index} cannot be written ({error}): {remedy}") from None
        store = sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)

        def translate(texts: Sequence[str]) -> list[str | None]:
            known = _get(store, texts)
            return [known.get(text) for text in texts]

        return translate

    def _fill(self, store: sqlite3.Connection, path: Path) -> None:
        # In the order of their key, since to find a place for each of millions takes several times as long.
        with store:
            store.execute("CREATE TEMP TABLE lines (text TEXT, translation TEXT)")
            store.executemany("INSERT INTO lines VALUES (?, ?)", self._lines(path))
            store.execute("INSERT OR IGNORE INTO translations SELECT * FROM lines ORDER BY text, rowid")

    def _lines(self, path: Path) -> Iterator[tuple[str, str]]:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    text, translation = self._split(line.decode("utf-8-sig"), path.suffix)
                except (ValueError, KeyError, TypeError):
                    expected = f'a text, a tab and its translation, or in .jsonl {{"{self.source}": ..., "{self.target}": ...}}'
                    raise ValueError(f"{path}: line {number} is no translation in UTF-8: expected {expected}") from None
                if translation:
                    yield text, translation

    def _split(self, line: str, suffix: str) -> list[str]:
        if suffix == ".jsonl":
            row = json.loads(line)
            columns = [row[self.source], row[self.target]]
        else:
            columns = line.split("\t")
        if len(columns) != 2 or not all(isinstance(column, str) for column in columns):
            raise ValueError("not two texts")
        return [" ".join(column.split()) for column in columns]


@dataclass(frozen=True, kw_only=True)
class TranslationService:
    """A server with LibreTranslate's API: it is sent {"q": [texts], "source", "target", "format": "text"} and answers
    {"translatedText": [texts]}.

    Every answer is kept in the cache at once, so that a job that is started again asks for nothing twice.
    """

    __pydantic_config__ = STRICT
    by: Literal["service"] = "service"
    url: Annotated[str, Field(pattern=r"^https?://.")]
    """Of the function itself, as http://localhost:5000/translate."""
    cache: str
    """A SQLite file, on a local disk; processes of one machine may share it."""
    source: str = "en"
    target: str = "zh"
    target_code: str = "zh-Hans"
    """What the service calls the target language."""
    key_variable: str | None = None
    """Name of the environment variable with the service's API key; null: it needs none."""
    batch_size: Positive = 32
    """Texts in a request."""
    requests_per_second: PositiveFloat = 10.0
    """Of all processes with the same cache together."""
    attempts: Positive = 8
    """How often a request is sent before the job stops."""
    first_wait: PositiveFloat = 1.0
    """Seconds before the second attempt; doubled for each further one, unless the service says when to come again."""
    timeout: PositiveFloat = 60.0
    """Seconds without an answer after which an attempt has failed."""

    def setup(self) -> Translate:
        """A function that asks the cache and then the service; it raises `TranslationError` where the service fails.

        Raises `ValueError` where the service can't be used: wrong address, no key, or it doesn't know the languages.
        """
        import httpx

        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.url} is no address: {error}") from None
        key = os.environ.get(self.key_variable) if self.key_variable else None
        if self.key_variable and not key:
            raise ValueError(f"the environment variable {self.key_variable} is not set: give it the translation service's key")
        path = Path(self.cache)
        stamp = f"{self.url} {self.source} {self.target_code}"
        if path.exists() and (other := _stamp(path)) not in (stamp, None):
            raise ValueError(f"the cache {path} is of another service or language ({other}): give another file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            store = _open(path, stamp)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"the cache of translations {path} cannot be written: {error}") from None
        service = _Service(self, key, store, httpx.Client(timeout=self.timeout, follow_redirects=True))
        # Otherwise a wrong language would look like many texts that can't be translated.
        if not service.translates_anything():
            raise ValueError(f"{self.url} refuses to translate from {self.source} to {self.target_code}: check the languages")
        return service.translate


Translation = Annotated[NoTranslation | TranslationFile | TranslationService, Discriminator("by")]
"""Options in a config; the key `by` says which."""


def add_translations(
    records: Sequence[Record], translate: Translate, source: str = "en", target: str = "zh"
) -> tuple[list[Record], int]:
    """Records with translations of their `source` captions, in the same order, as `target` captions, and how many captions have
    none. Records that have `target` captions or no `source` captions stay as they are."""
    texts = [[] if target in record.captions else record.captions.get(source, []) for record in records]
    answers = iter(translate([text for some in texts for text in some]) if any(texts) else [])
    translated, missing = [], 0
    for record, some in zip(records, texts, strict=True):
        found = [translation for translation in islice(answers, len(some)) if translation]
        missing += len(some) - len(found)
        translated.append(replace(record, captions={**record.captions, target: found}) if found else record)
    return translated, missing


class _Refused(Exception):
    """The service answers, but doesn't translate these texts."""


class _TryAgain(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, what: str, status: int = 0, wait: float | None = None):
        super().__init__(what)
        self.status, self.wait = status, wait


class _Service:
    def __init__(self, options: TranslationService, key: str | None, store: sqlite3.Connection, client: "httpx.Client"):
        self._options, self._key, self._store, self._client = options, key, store, client

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """Asks the service for what is not in the cache."""
        try:
            return self._with_cache(texts)
        except sqlite3.Error as error:
            raise TranslationError(f"the cache of translations {self._options.cache} fails: {error}") from None

    def _with_cache(self, texts: Sequence[str]) -> list[str | None]:
        known = _get(self._store, texts)
        unknown = list(dict.fromkeys(text for text in texts if text not in known))
        for first in range(0, len(unknown), self._options.batch_size):
            batch = unknown[first : first + self._options.batch_size]
            _put(self._store, zip(batch, self._translate(batch), strict=True))
            known |= _get(self._store, batch)  # what another process has put there first is what counts
        return [known[text] for text in texts]

    def translates_anything(self) -> bool:
        """Whether it translates the probe, now or once before."""
        if _get(self._store, [_PROBE]):
            return True
        answer = self._translate([_PROBE])
        if answer != [None]:
            _put(self._store, [(_PROBE, *answer)])
        return answer != [None]

    def _translate(self, texts: list[str]) -> list[str | None]:
        try:
            return self._request(texts)
        except _Refused:
            if len(texts) == 1:
                return [None]
            half = len(texts) // 2
            return self._translate(texts[:half]) + self._translate(texts[half:])

    def _request(self, texts: list[str]) -> list[str | None]:
        import tenacity

        options = self._options
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(options.attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(_TryAgain),
            sleep=time.sleep,
            reraise=True,
        )
        try:
            return attempts(self._attempt, texts)
        except _TryAgain as error:
            if error.status == 500 and texts != [_PROBE]:
                # The server may stumble over one text; if it translates another, the fault is not its own.
                self._request([_PROBE])
                raise _Refused from None
            kept = f"start again later; what is translated is kept in {options.cache}"
            raise TranslationError(f"{options.url} failed {options.attempts} times, at last: {error}; {kept}") from None

    def _wait(self, state: "tenacity.RetryCallState") -> float:
        told = state.outcome.exception().wait
        return min(self._options.first_wait * 2 ** (state.attempt_number - 1), _LONGEST_WAIT) if told is None else told

    def _attempt(self, texts: list[str]) -> list[str | None]:
        import httpx

        options = self._options
        self._wait_for_turn()
        body = {"q": texts, "source": options.source, "target": options.target_code, "format": "text"}
        try:
            response = self._client.post(options.url, json=body | ({"api_key": self._key} if self._key else {}))
        except httpx.RequestError as error:
            raise _TryAgain(f"{type(error).__name__} {error}") from None
        status = response.status_code
        if status in (400, 413, 422):
            raise _Refused
        if status in (408, 425, 429) or status >= 500:
            raise _TryAgain(f"HTTP {status}", status, _retry_after(response.headers.get("Retry-After")))
        if status != 200:
            raise TranslationError(f"{options.url} answers with HTTP {status}: check the address and the key")
        return _translations(response, len(texts))

    def _wait_for_turn(self) -> None:
        """Wait so that all processes with this cache together send no more requests than they may."""
        interval = 1 / self._options.requests_per_second
        with self._store:
            self._store.execute("BEGIN IMMEDIATE")
            now = time.time()
            turn = max(float(self._store.execute("SELECT value FROM facts WHERE name = 'turn'").fetchone()[0]), now)
            self._store.execute("UPDATE facts SET value = ? WHERE name = 'turn'", [turn + interval])
        if turn > now:
            time.sleep(turn - now)


def _translations(response: "httpx.Response", count: int) -> list[str | None]:
    try:
        found: Any = response.json()["translatedText"]
        if isinstance(found, list) and len(found) == count and all(isinstance(text, str) for text in found):
            return [" ".join(text.split()) or None for text in found]
    except (ValueError, KeyError, TypeError):
        pass
    raise _TryAgain(f"an answer that is not {count} translations")


def _retry_after(header: str | None) -> float | None:
    """Seconds that a header Retry-After, a number or a date, asks to wait."""
    if header is None:
        return None
    try:
        return max(0.0, float(header) if header.strip().isdigit() else parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _open(path: Path, stamp: str) -> sqlite3.Connection:
    """A store of translations: a new one, or one with this stamp."""
    store = sqlite3.connect(path, timeout=60, check_same_thread=False)
    with store:
        store.execute("CREATE TABLE IF NOT EXISTS translations (text TEXT PRIMARY KEY, translation TEXT) WITHOUT ROWID")
        store.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value)")
        store.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", [("stamp", stamp), ("turn", 0)])
    return store


def _stamp(path: Path) -> str | None:
    """What the translations in a store are of; None for a store that has just been made, or something else."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as store:
            return store.execute("SELECT value FROM facts WHERE name = 'stamp'").fetchone()[0]
    except (sqlite3.Error, TypeError):
        return None


def _put(store: sqlite3.Connection, rows: Iterable[tuple[str, str | None]]) -> None:
    with store:
        store.executemany("INSERT OR IGNORE INTO translations VALUES (?, ?)", rows)


def _get(store: sqlite3.Connection, texts: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for first in range(0, len(texts), _ROWS_TOGETHER):
        some = texts[first : first + _ROWS_TOGETHER]
        marks = ", ".join("?" * len(some))
        found |= store.execute(f"SELECT text, translation FROM translations WHERE text IN ({marks})", some).fetchall()
    return found
