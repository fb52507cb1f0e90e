"""What the server answers to bad requests: an error in the one form, and the next request works."""

import base64
import socket
import struct
import zlib
from contextlib import suppress

import httpx
import numpy as np
import pytest

from ppvilg.server.requests import png_base64
from tests.server.conftest import serving

PNG = png_base64(np.zeros((16, 16, 3), np.uint8))


def bomb(width: int, height: int) -> str:
    """A small PNG file that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10**6))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")).decode()


def check(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message"}
    for word in words:
        assert word in error["message"]
    assert "Traceback" not in answer.text
    assert "/ppvilg" not in answer.text


@pytest.fixture(autouse=True)
def _still_works(server):
    yield
    assert server.client.post("/v1/images", json={"prompt": "红"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "\\ud800"}', 422),
        (b'{"prompt": 1' + b"0" * 10_000 + b"}", 400),
        (b'{"prompt": "a", "temperature": NaN}', 422),
        (b'{"prompt": "a", "temperature": 1e999}', 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"prompt"', 422),
    ],
)
def test_what_is_no_request(server, body, status):
    headers = {"Content-Type": "application/json"}
    for route in ("/v1/images", "/v1/captions"):
        check(server.client.post(route, content=body, headers=headers), status)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "empty"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "红" * 11}, "at most 10"),
        ({"prompt": "红" * 10_000}, "at most 1000"),
        ({"prompt": "红", "n": -1}, "n"),
        ({"prompt": "红", "n": 0}, "n"),
        ({"prompt": "红", "n": 9}, "at most 8"),
        ({"prompt": "红", "n": "1"}, "n"),
        ({"prompt": "红", "n": 1.5}, "n"),
        ({"prompt": "红", "n": 3, "candidates": 2}, "candidates"),
        ({"prompt": "红", "candidates": 17}, "at most 16"),
        ({"prompt": "红", "seed": -1}, "seed"),
        ({"prompt": "红", "seed": 2**63}, "seed"),
        ({"prompt": "红", "temperature": -0.5}, "temperature"),
        ({"prompt": "红", "top_p": 0}, "top_p"),
        ({"prompt": "红", "top_k": -1}, "top_k"),
        ({"prompt": "红", "guidance": -1}, "guidance"),
        ({"prompt": "红", "style": "cubism"}, "plain"),
        ({"prompt": "红", "styl": "plain"}, "styl"),
        ({"prompt": "红", "n": 2, "response_format": "png"}, "n = 1"),
        ({"prompt": "红", "stream": True, "response_format": "png"}, "stream"),
        ({"prompt": "🍎"}, "no word that the model knows"),
        ({"prompt": "🍎", "style": "plain"}, "no word that the model knows"),
        ({"prompt": "红", "keep_rows": 2}, "image"),
        ({"prompt": "红", "image": PNG, "keep_rows": 4}, "keep_rows"),
        ({"prompt": "红", "image": "???"}, "base64"),
        ({"prompt": "红", "image": base64.b64encode(b"hello").decode()}, "not an image"),
        ({"prompt": "红", "image": PNG[:60]}, ""),
        ({"prompt": "红", "image": bomb(50_000, 50_000)}, "limit of"),
        ({"prompt": "红", "image": bomb(5000, 5000)}, "limit of"),
        ({"prompt": "红", "image": bomb(0, 0)}, ""),
    ],
)
def test_pictures_that_cannot_be(server, request_, word):
    for stream in (False, True):
        if "response_format" not in request_:
            request_ = request_ | {"stream": stream}
        check(server.client.post("/v1/images", json=request_), 422, word)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({}, "image"),
        ({"image": ""}, "image"),
        ({"image": bomb(50_000, 50_000)}, "limit of"),
        ({"image": PNG, "n": 9}, "at most 8"),
        ({"image": PNG, "beams": 17}, "at most 16"),
        ({"image": PNG, "beams": 2, "n": 2}, "beam"),
        ({"image": PNG, "prompt": "a"}, "prompt"),
    ],
)
def test_captions_that_cannot_be(server, request_, word):
    check(server.client.post("/v1/captions", json=request_), 422, word)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"image": PNG}, "question"),
        ({"image": PNG, "question": ""}, "question"),
        ({"image": PNG, "question": "红？"}, "answers no questions"),
        ({"question": "红？"}, "image"),
    ],
)
def test_questions_that_cannot_be(server, request_, word):
    check(server.client.post("/v1/answers", json=request_), 422, word)


def test_other_kinds_methods_and_paths(server):
    check(server.client.post("/v1/images", content=b'{"prompt": "a"}'), 415, "application/json")
    check(server.client.post("/v1/images", data={"prompt": "a"}), 415)
    check(server.client.post("/v1/images", files={"image": b"x"}), 415)
    check(server.client.get("/v1/images"), 405)
    check(server.client.put("/v1/model", json={}), 405)
    check(server.client.get("/v1/nothing"), 404)
    check(server.client.get("/static/../conftest.py"), 404)
    check(server.client.get("/%00"), 404)


def test_ten_megabytes_are_refused_at_the_limit(server):
    check(server.client.post("/v1/images", json={"prompt": "a", "image": "A" * 10 * 2**20}), 413, str(8 * 2**20))


def test_a_body_without_a_length_is_refused_at_the_limit(server):
    check(server.client.post("/v1/images", content=(bytes(2**16) for _ in range(160))), 413)
    with suppress(httpx.TransportError):  # the server hangs up on who never stops
        check(server.client.post("/v1/images", content=(bytes(2**16) for _ in range(2**13))), 413)


def test_a_client_that_is_cut_off(server):
    with socket.create_connection((server.client.base_url.host, server.client.base_url.port)) as raw:
        raw.sendall(b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    with socket.create_connection((server.client.base_url.host, server.client.base_url.port)) as raw:
        raw.sendall(b"\x00\xff\xfe GET / HTTP\r\n\r\n")
        assert b" 400 " in raw.recv(1000)


def test_keys_and_rates(pipeline):
    keys = frozenset({"first", "second"})
    request = {"prompt": "红", "temperature": 0}
    with serving(pipeline, api_keys=keys, rate="3/10second;100/day") as running:
        first = {"Authorization": "Bearer first"}
        for headers in ({}, {"Authorization": "first"}, {"Authorization": "Bearer third"}, {"Authorization": "Bearer fir"}):
            answer = running.client.post("/v1/images", json=request, headers=headers)
            check(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert running.client.get("/v1/model").status_code == 200
        statuses = [running.client.post("/v1/images", json=request, headers=first).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        answer = running.client.post("/v1/images", json=request, headers=first)
        check(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        assert running.client.post("/v1/images", json=request, headers={"Authorization": "Bearer second"}).status_code == 200
