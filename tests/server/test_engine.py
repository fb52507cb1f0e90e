"""The engine: queue, deadline, clients that go away, stopping, and bugs."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from ppvilg.server.requests import png_base64
from ppvilg.server.settings import Settings, read_api_keys
from tests.server.conftest import Redness, serving, slow, until

PICTURE = png_base64(np.zeros((16, 16, 3), np.uint8))


def ask(running, **request) -> httpx.Response:
    return running.client.post("/v1/images", json={"prompt": "红色方块"} | request)


def test_many_at_once_get_what_each_gets_alone(pipeline):
    requests = [
        {"n": 1 + i % 3, "seed": i, "temperature": [0, 0.8, 1.0][i % 3], "guidance": [1.0, 2.0][i % 2], "top_k": i % 5}
        for i in range(24)
    ]
    with serving(pipeline, Redness(), capacity=7) as running, ThreadPoolExecutor(24) as threads:
        together = [answer.json() for answer in threads.map(lambda request: ask(running, **request), requests)]
        for request, answer in zip(requests, together, strict=True):
            assert answer["data"] == ask(running, **request).json()["data"]
        assert running.engine._batch.sequences == 0


def test_a_full_queue_refuses_and_loses_nothing(pipeline):
    held = slow(pipeline)
    held.model.gate.clear()
    with serving(held, capacity=2, queue=4, max_n=2, max_candidates=2) as running, ThreadPoolExecutor(12) as threads:
        first = [threads.submit(ask, running, n=2)]
        until(lambda: running.metric("ppvilg_running_sequences") == 2)
        waiting = [threads.submit(ask, running, n=2, seed=i) for i in range(2)]
        until(lambda: running.metric("ppvilg_queue_sequences") == 4)
        for refused in threads.map(lambda _: ask(running), range(8)):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
            assert int(refused.headers["retry-after"]) > 0
        refused = running.client.post("/v1/captions", json={"image": PICTURE})
        assert refused.status_code == 503
        held.model.gate.set()
        assert [future.result().status_code for future in first + waiting] == [200] * 3
        assert running.metric("ppvilg_rejected_total") == 9
        assert ask(running).status_code == 200


def test_a_request_larger_than_the_batch(pipeline):
    with serving(pipeline, Redness(), capacity=3) as running:
        whole = ask(running, n=8, guidance=2.0, seed=1, stream=True)
    with serving(pipeline, Redness(), capacity=32) as running:
        expected = ask(running, n=8, guidance=2.0, seed=1).json()["data"]
    done = json.loads(whole.text.split("event: done\ndata: ")[1])
    assert done["data"] == expected


def test_the_deadline(pipeline):
    with serving(slow(pipeline, 0.05), deadline=0.3) as running:
        answer = ask(running)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline"
        answer = ask(running, stream=True)
        assert "event: error" in answer.text
        assert '"code": "deadline"' in answer.text
        until(lambda: running.metric("ppvilg_running_sequences") == 0)
        assert running.metric("ppvilg_late_total") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(pipeline, stream):
    held = slow(pipeline)
    held.model.gate.clear()
    with serving(held, capacity=4) as running:
        request = {"prompt": "红", "n": 4, "stream": stream}
        for _ in range(2):  # one that runs, one that waits
            with (
                pytest.raises(httpx.ReadTimeout),
                running.client.stream("POST", "/v1/images", json=request, timeout=0.5) as answer,
            ):
                answer.read()
        until(lambda: running.metric("ppvilg_queue_sequences") == 4)
        held.model.gate.set()
        until(lambda: running.metric("ppvilg_cancelled_total") == 2)
        assert running.metric("ppvilg_running_sequences") == 0
        assert ask(running).status_code == 200
        n = held.config.transformer.image_length
        assert running.metric("ppvilg_tokens_total") < 4 * n + n, "what nobody waits for is not written"


def test_captions_and_pictures_do_not_starve_each_other(pipeline):
    with serving(slow(pipeline, 0.005), capacity=4) as running, ThreadPoolExecutor(12) as threads:
        captions = [threads.submit(running.client.post, "/v1/captions", json={"image": PICTURE}) for _ in range(6)]
        pictures = [threads.submit(ask, running) for _ in range(6)]
        assert {future.result().status_code for future in captions + pictures} == {200}


def test_stopping_finishes_what_was_accepted(pipeline):
    held = slow(pipeline)
    held.model.gate.clear()
    with serving(held, capacity=2) as running, ThreadPoolExecutor(4) as threads:
        accepted = [threads.submit(ask, running, n=2) for _ in range(2)]
        until(lambda: running.metric("ppvilg_queue_sequences") == 2)
        running.engine.drain()
        health = running.client.get("/healthz")
        assert health.status_code == 503
        refused = ask(running)
        assert refused.status_code == 503
        running.server.should_exit = True
        held.model.gate.set()
        assert [future.result().status_code for future in accepted] == [200, 200]
    assert not running.engine._thread.is_alive()


def test_a_bug_is_told_without_details_and_does_not_stop_the_server(pipeline, caplog):
    broken = slow(pipeline)
    with serving(broken) as running:
        broken.model.decode_step = lambda *arguments: 1 / 0
        for answer in (ask(running), ask(running, stream=True)):
            assert "division" not in answer.text
            assert "internal" in answer.text
        assert ask(running).status_code == 500
        assert "ZeroDivisionError" in caplog.text
        del broken.model.decode_step
        assert ask(running).status_code == 200


def test_a_bug_at_the_very_end_is_told_too(pipeline):
    scorer = Redness()
    with serving(pipeline, scorer) as running:
        scorer.embed_texts = lambda texts: 1 / 0
        assert ask(running).status_code == 500
        assert "event: error" in ask(running, stream=True).text
        del scorer.embed_texts
        assert ask(running).status_code == 200


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"capacity": 1}, "capacity"),
        ({"queue": 100}, "queue"),
        ({"port": 70_000}, "port"),
        ({"deadline": 0}, "deadline"),
        ({"rate": -1}, "rate"),
        ({"max_n": 65}, "max_candidates"),
        ({"max_body": 0}, "max_body"),
    ],
)
def test_refused_settings(settings, word):
    with pytest.raises(ValueError, match=word):
        Settings(**settings)


def test_api_keys(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("# for tests\nfirst\n second # of a friend\n\n")
    assert read_api_keys(str(path)) == {"first", "second"}
    monkeypatch.setenv("PPVILG_API_KEYS", "third, fourth")
    assert read_api_keys(None) == {"third", "fourth"}
    monkeypatch.delenv("PPVILG_API_KEYS")
    assert read_api_keys(None) == frozenset()
    path.write_text("# none\n")
    for bad in (path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"key"):
            read_api_keys(str(bad))


def test_threads_end_with_the_server(pipeline):
    before = threading.active_count()
    for _ in range(2):
        with serving(pipeline) as running:
            ask(running)
    until(lambda: threading.active_count() <= before + 1)
