"""The engine: queue, deadline, clients that go away, stopping, and bugs."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from ppvilg.server.requests import png_base64
from ppvilg.server.settings import Settings, read_api_keys
from tests.server.conftest import Redness, random_adapter, serving, slow, until
from tests.server.test_api import decoded, events

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
        assert running.engine._sequences() == 0


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


def test_each_picture_of_a_large_request_comes_when_it_is_done(pipeline):
    with serving(pipeline, capacity=3) as running:
        *early, (_, done) = events(ask(running, n=5, guidance=1.0, seed=1, stream=True))
        *chosen, _ = events(ask(running, n=2, seed=1, stream=True))
    found = {data["index"]: data for name, data in early if name == "picture"}
    assert found.keys() == {0, 1, 2}
    for index, data in found.items():
        assert (data["seed"], data["b64_json"]) == (1 + index, done["data"][index]["b64_json"])
    assert {name for name, _ in chosen} == {"partial"}


def test_who_waits_is_told_its_place(pipeline):
    held = slow(pipeline)
    held.model.gate.clear()
    with serving(held, capacity=2) as running, ThreadPoolExecutor(4) as threads:
        first = threads.submit(ask, running, n=2)
        until(lambda: running.metric("ppvilg_running_sequences") == 2)
        waiting = []
        for i in range(3):
            waiting.append(threads.submit(ask, running, n=2, stream=True))
            until(lambda i=i: running.metric("ppvilg_queue_sequences") == 2 * (i + 1))
        held.model.gate.set()
        assert first.result().status_code == 200
        places = [[data["place"] for name, data in events(job.result()) if name == "place"] for job in waiting]
    # A step may end, with one more job in the queue, before those that came after it.
    assert [own[-1] for own in places] == [0, 0, 0]
    assert all(own == sorted(own, reverse=True) and len(set(own)) == len(own) for own in places)
    assert places[2][0] == 2


def test_adapters_are_chosen_by_name(pipeline, tmp_path):
    folders = {name: random_adapter(pipeline, tmp_path / name, seed) for seed, name in enumerate(("ink", "pixel"))}
    adapters = {name: pipeline.with_adapter(folder) for name, folder in folders.items()}
    requests = [
        {"n": 1 + i % 2, "seed": i, "guidance": [1.0, 2.0][i % 2], "lora": [None, "ink", "pixel"][i % 3]} for i in range(12)
    ]
    with serving(pipeline, adapters=adapters, capacity=5) as running, ThreadPoolExecutor(12) as threads:
        answers = [answer.json()["data"] for answer in threads.map(lambda request: ask(running, **request), requests)]
        caption = {"image": PICTURE, "temperature": 0.7, "seed": 1}
        captions = [running.client.post("/v1/captions", json=caption | {"lora": name}).json() for name in (None, "ink")]
        assert running.client.get("/v1/model").json()["adapters"] == ["ink", "pixel"]
        refused = ask(running, lora="oil")
        assert refused.status_code == 422
        assert "'oil': this server has the adapters ink, pixel" in refused.json()["error"]["message"]
    for request, answer in zip(requests, answers, strict=True):
        alone = adapters.get(request["lora"], pipeline)
        expected = alone("红色方块", request["n"], request["guidance"], seed=request["seed"], output_type="np").images
        for picture, entry in zip(expected, answer, strict=True):
            np.testing.assert_array_equal(decoded(entry["b64_json"]), picture)
    assert captions[0] != captions[1]
    expected = adapters["ink"].caption([np.zeros((16, 16, 3), np.uint8)], temperature=0.7, seed=1)[0]
    assert [entry["text"] for entry in captions[1]["captions"]] == expected


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
        ({"rate": "5 per fortnight"}, "rate"),
        ({"max_connections": 0}, "max_connections"),
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
