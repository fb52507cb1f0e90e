"""Translation from files and by a service that fails in every way."""

import json
import sqlite3
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ppvilg.data import translation
from ppvilg.data.records import Record
from ppvilg.data.translation import (
    NoTranslation,
    Translation,
    TranslationError,
    TranslationFile,
    TranslationService,
    add_translations,
)


class Service:
    """A translation server: `plan` says what it does instead of translating, request by request."""

    def __init__(self):
        self.plan, self.requests, self.refused, self.breaks = [], [], set(), set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                service.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/translate"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, handler, body: dict):
        self.requests.append(body)
        what = self.plan.pop(0) if self.plan else 200
        texts = body["q"]
        if what == 200 and self.refused & set(texts):
            what = 400
        if what == 200 and self.breaks & set(texts):
            what = 500
        headers, content = {}, json.dumps({"translatedText": [translated(text) for text in texts]}).encode()
        if isinstance(what, tuple):
            what, headers = what[0], {"Retry-After": what[1]}
        if isinstance(what, bytes):
            what, content = 200, what
        if what == "close":
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(200 if what == "cut" else what)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:10] if what == "cut" else content)
        handler.close_connection = what == "cut"

    @property
    def texts(self) -> Counter:
        """How often each text was asked for, the probe apart."""
        return Counter(text for body in self.requests for text in body["q"] if text != "a dog")


def translated(text: str) -> str:
    return f"译{text[::-1]}"


@pytest.fixture
def service():
    made = Service()
    yield made
    made.close()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long is waited, instead of waiting."""
    found = []
    monkeypatch.setattr(translation.time, "sleep", found.append)
    return found


@pytest.fixture
def options(service, tmp_path):
    def make(**changes) -> TranslationService:
        defaults = {"url": service.url, "cache": str(tmp_path / "cache" / "zh.sqlite"), "requests_per_second": 1e6}
        return TranslationService(**defaults | changes)

    return make


def test_nothing_is_translated():
    assert NoTranslation().setup()(["a dog", "a cat"]) == [None, None]


def test_service_translates_in_batches(service, options):
    translate = options(batch_size=3).setup()
    texts = [f"text {i % 8}" for i in range(10)]
    assert translate(texts) == [translated(text) for text in texts]
    assert service.texts == {f"text {i}": 1 for i in range(8)}
    assert [len(body["q"]) for body in service.requests] == [1, 3, 3, 2]
    assert service.requests[1] | {"q": []} == {"q": [], "source": "en", "target": "zh-Hans", "format": "text"}


def test_service_is_asked_for_nothing_twice(service, options):
    options().setup()(["one", "two"])
    asked = len(service.requests)
    assert options().setup()(["two", "three", "one"]) == [translated(text) for text in ("two", "three", "one")]
    assert [body["q"] for body in service.requests[asked:]] == [["three"]]
    service.close()
    assert options().setup()(["three"]) == [translated("three")]


FAULTS = [
    500,
    502,
    503,
    429,
    408,
    "close",
    "cut",
    b"no JSON",
    b'{"translatedText": ["x"]}',
    b'{"translatedText": "xy"}',
    b"[1]",
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_service_that_fails_is_asked_again(service, options, waits, fault):
    translate = options(attempts=4, first_wait=1.0).setup()
    service.plan = [fault, fault, fault]
    assert translate(["one", "two"]) == [translated("one"), translated("two")]
    assert [wait for wait in waits if wait > 0.1] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("fault", [502, 429, "close", "cut", b"no JSON"], ids=str)
def test_service_that_keeps_failing_stops_the_job_which_goes_on_later(service, options, waits, fault):
    translate = options(attempts=3, batch_size=1).setup()
    service.plan = [200, fault, fault, fault]
    with pytest.raises(TranslationError, match=r"failed 3 times, at last: .*start again later"):
        translate(["one", "two", "three"])
    assert options().setup()(["one", "two", "three"]) == [translated(text) for text in ("one", "two", "three")]
    assert service.texts == {"one": 1, "two": 4, "three": 1}


def test_waits_as_long_as_it_is_told(service, options, waits):
    translate = options().setup()
    service.plan = [(429, "7"), (503, "0"), (429, formatdate(time.time() + 30, usegmt=True)), (429, "soon")]
    translate(["one"])
    told, at_once, date, doubled = [wait for wait in waits if wait > 0.1 or wait == 0]
    assert (told, at_once, doubled) == (7, 0, 8)
    assert 25 < date <= 30


def test_longest_wait(service, options, waits):
    translate = options(attempts=9).setup()
    service.plan = [503] * 8
    translate(["one"])
    assert [wait for wait in waits if wait > 0.1] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_texts_that_are_refused_have_no_translation(service, options):
    service.refused = {"text 3", "text 9"}
    texts = [f"text {i}" for i in range(11)]
    assert options().setup()(texts) == [None if text in service.refused else translated(text) for text in texts]
    asked = len(service.requests)
    assert options().setup()(["text 9"]) == [None]
    assert len(service.requests) == asked


def test_a_text_over_which_the_server_stumbles_does_not_stop_the_job(service, options, waits):
    service.breaks = {"text 2"}
    texts = [f"text {i}" for i in range(4)]
    assert options(attempts=2).setup()(texts) == [None if text == "text 2" else translated(text) for text in texts]


def test_a_server_that_stumbles_over_everything_stops_the_job(service, options, waits):
    translate = options(attempts=2).setup()
    service.breaks = {"one", "two", "a dog"}
    with pytest.raises(TranslationError, match="HTTP 500"):
        translate(["one", "two"])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_wrong_address_or_key_is_said_at_once(service, options, status):
    service.plan = [status]
    with pytest.raises(TranslationError, match=f"HTTP {status}: check the address and the key"):
        options().setup()
    assert len(service.requests) == 1


def test_languages_that_the_service_does_not_know(service, options):
    for _ in range(2):
        service.plan = [400]
        with pytest.raises(ValueError, match="refuses to translate from en to xx"):
            options(target_code="xx").setup()
    assert options(target_code="xx").setup()(["one"]) == [translated("one")]


def test_key_of_the_service(service, options, monkeypatch):
    monkeypatch.setenv("TRANSLATION_KEY", "secret")
    options(key_variable="TRANSLATION_KEY").setup()
    assert service.requests[0]["api_key"] == "secret"
    monkeypatch.delenv("TRANSLATION_KEY")
    with pytest.raises(ValueError, match="TRANSLATION_KEY is not set"):
        options(key_variable="TRANSLATION_KEY").setup()


def test_requests_are_spread_over_all_processes_of_a_cache(service, options, monkeypatch):
    clock, sent = [1000.0], []
    monkeypatch.setattr(translation.time, "time", lambda: clock[0])
    monkeypatch.setattr(translation.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    workers = [options(requests_per_second=4.0, batch_size=1).setup() for _ in range(2)]
    for i in range(6):
        workers[i % 2]([f"text {i}"])
        sent.append(clock[0])
    assert sent == pytest.approx([1000.25 + i / 4 for i in range(6)])  # the probe came first
    clock[0] += 100
    workers[0](["later"])
    assert clock[0] == pytest.approx(sent[-1] + 100)


def test_processes_at_once_share_a_cache(options):
    workers = [options(batch_size=2).setup() for _ in range(4)]
    texts = [f"text {i}" for i in range(40)]
    results = [None] * len(workers)

    def work(i: int):
        results[i] = workers[i](texts[i * 5 :])

    threads = [threading.Thread(target=work, args=[i]) for i in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[translated(text) for text in texts[i * 5 :]] for i in range(len(workers))]


def test_cache_of_another_service(service, options, tmp_path):
    options().setup()
    with pytest.raises(ValueError, match="is of another service or language"):
        options(target_code="ja").setup()
    (tmp_path / "text").write_text("no database, but a text that somebody keeps here" * 100)
    with pytest.raises(ValueError, match="cannot be written"):
        options(cache=str(tmp_path / "text")).setup()
    assert (tmp_path / "text").read_text().startswith("no database")


def test_cache_that_fails(options, tmp_path):
    translate = options().setup()
    with sqlite3.connect(tmp_path / "cache" / "zh.sqlite") as store:
        store.execute("DROP TABLE translations")
    with pytest.raises(TranslationError, match=r"the cache of translations .* fails"):
        translate(["one"])


TSV = "a dog\t一只狗\n\na  cat \t 一只 猫\r\na dog\t狗\nnothing\t \n"
JSONL = '{"en": "a dog", "zh": "一只狗"}\n{"en": "a  cat", "zh": "一只 猫", "id": 1}\n{"en": "a dog", "zh": "狗"}'


@pytest.mark.parametrize(("name", "content"), [("t.tsv", TSV), ("t.jsonl", JSONL), ("t.txt", "\ufeff" + TSV)])
def test_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    for _ in range(2):
        translate = TranslationFile(file=str(tmp_path / name)).setup()
        assert translate(["a cat", "a dog", "a bird", "nothing", "a dog"]) == ["一只 猫", "一只狗", None, None, "一只狗"]


def test_file_is_read_again_when_it_changed(tmp_path):
    file, index = tmp_path / "t.tsv", tmp_path / "index" / "i.sqlite"
    index.parent.mkdir()
    options = TranslationFile(file=str(file), index=str(index))
    file.write_text("a dog\t狗", "utf-8")
    assert options.setup()(["a dog"]) == ["狗"]
    made = index.stat().st_mtime_ns
    options.setup()
    assert index.stat().st_mtime_ns == made
    file.write_text("a dog\t一只狗", "utf-8")
    assert options.setup()(["a dog"]) == ["一只狗"]
    assert [path.name for path in index.parent.iterdir()] == ["i.sqlite"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", b"a dog\tx\nno tab"),
        ("t.tsv", b"a dog\tx\na\tb\tc"),
        ("t.tsv", b"a dog\tx\n\xff\tb"),
        ("t.jsonl", b'{"en": "a", "zh": "b"}\n{"en": "a"}'),
        ("t.jsonl", b'{"en": "a", "zh": "b"}\n{"en": "a", "zh": 3}'),
        ("t.jsonl", b'{"en": "a", "zh": "b"}\n[]'),
        ("t.jsonl", b'{"en": "a", "zh": "b"}\n{"en'),
    ],
)
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="line 2 is no translation"):
        TranslationFile(file=str(tmp_path / name)).setup()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        TranslationFile(file=str(tmp_path / "t.tsv")).setup()
    (tmp_path / "t.tsv").write_text("a\tb")
    with pytest.raises(ValueError, match="name a file that can be written"):
        TranslationFile(file=str(tmp_path / "t.tsv"), index=str(tmp_path / "none" / "i")).setup()


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("ab "), st.text("狗猫 ")), max_size=8), st.lists(st.text("ab", max_size=3), max_size=1200))
def test_file_against_a_dictionary(tmp_path_factory, rows, texts):
    folder = tmp_path_factory.mktemp("translations")
    (folder / "t.tsv").write_text("".join(f"{text}\t{other}\n" for text, other in rows), "utf-8")
    expected = {}
    for text, other in rows:
        if other.strip():
            expected.setdefault(" ".join(text.split()), " ".join(other.split()))
    assert TranslationFile(file=str(folder / "t.tsv")).setup()(texts) == [expected.get(text) for text in texts]


def record(**captions: list[str]) -> Record:
    return Record("k", captions, {"a": 1}, b"image", "v")


def test_translations_stand_beside_the_originals():
    asked = []

    def translate(texts):
        asked.append(list(texts))
        return [None if "bird" in text else translated(text) for text in texts]

    records = [
        record(en=["a dog", "a bird", "a cat"], fr=["un chien"]),
        record(zh=["狗"], en=["a dog"]),
        record(fr=["un chien"]),
        record(en=["a bird"]),
        record(en=["a fish"]),
    ]
    found, missing = add_translations(records, translate)
    assert asked == [["a dog", "a bird", "a cat", "a bird", "a fish"]]
    assert missing == 2
    assert found == [
        record(en=["a dog", "a bird", "a cat"], fr=["un chien"], zh=[translated("a dog"), translated("a cat")]),
        *records[1:4],
        record(en=["a fish"], zh=[translated("a fish")]),
    ]
    assert add_translations([records[2]], translate, "fr", "de")[0] == [record(fr=["un chien"], de=[translated("un chien")])]
    asked.clear()
    assert add_translations([records[1]], translate) == ([records[1]], 0)
    assert not asked


def test_translation_in_a_config():
    adapter = TypeAdapter(Translation)
    assert adapter.validate_json('{"by": "none"}') == NoTranslation()
    assert adapter.validate_json('{"by": "file", "file": "a.tsv"}') == TranslationFile(file="a.tsv")
    for wrong in ('{"by": "service", "url": "localhost", "cache": "a"}', '{"by": "file"}', '{"by": "none", "x": 1}', "{}"):
        with pytest.raises(ValidationError):
            adapter.validate_json(wrong)


def test_nothing_is_kept_of_a_batch_that_failed(service, options, waits, tmp_path):
    translate = options(attempts=1).setup()
    service.plan = [503]
    with pytest.raises(TranslationError):
        translate(["one"])
    rows = sqlite3.connect(tmp_path / "cache" / "zh.sqlite").execute("SELECT text FROM translations").fetchall()
    assert rows == [("a dog",)]
