"""A server with the API of ppvilg.server and no model: it draws squares, remembers what it is asked, fails when told to."""

import base64
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import ppvilg

WEB = Path(ppvilg.__file__).parent / "server" / "web"
MODEL = {
    "version": "9.9",
    "styles": {
        "noto": {"zh": "Noto风格的{}", "en": "{} in Noto style"},
        "fluent-3d": {"zh": "立体风格的{}", "en": "{} in 3D style"},
    },
    "image_size": 64,
    "rows": 8,
    "columns": 8,
    "image_tokens": 64,
    "max_text": 22,
    "max_question": 14,
    "adapters": [],
    "dual_encoder": True,
    "guidance": True,
    "limits": {"n": 6, "candidates": 32, "prompt_characters": 100, "body_bytes": 2**20, "picture_pixels": 2**20},
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html; charset=utf-8"}


@dataclass
class Failure:
    """What is answered in place of a drawing or captions."""

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)


class Fake:
    """What tests see of the server: `asked` grows, `failures` are used up one by one, `finish` lets drawings end.

    With a `place` in the queue a drawing waits for `begin`; its pictures `early` are done before the others. Unless they end
    otherwise: `breaks` closes the connection, `gives_up` sends an error after the partial pictures.
    """

    def __init__(self, url: str):
        self.url = url
        self.reset()

    def reset(self) -> None:
        """Forget everything, and fail no more."""
        self.model: dict[str, Any] = MODEL
        self.asked: list[tuple[str, dict, str | None]] = []
        self.failures: deque[Failure] = deque()
        self.breaks = False
        self.gives_up: dict[str, str] | None = None
        self.place: int | None = None
        self.begin = threading.Event()
        self.early: list[int] = []
        self.finish = threading.Event()
        self.finish.set()
        self.gone = threading.Event()


def square(seed: int, filled: float = 1.0) -> str:
    """A picture in base64: a colour of the seed's, as far down as it is filled."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[: round(64 * filled)] = np.random.default_rng(seed).integers(60, 255, 3)
    return base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()


class _Handler(BaseHTTPRequestHandler):
    fake: Fake

    def do_GET(self) -> None:
        if self.path == "/v1/model":
            return self._json(200, self.fake.model)
        path = WEB / ("index.html" if self.path == "/" else self.path.removeprefix("/static/"))
        if path.parent != WEB or not path.is_file():
            return self._json(404, {"error": {"code": "not_found", "message": "Not Found"}})
        self._answer(200, _TYPES[path.suffix], path.read_bytes())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.asked.append((self.path, body, self.headers.get("Authorization")))
        if self.fake.failures:
            failure = self.fake.failures.popleft()
            return self._json(failure.status, {"error": {"code": failure.code, "message": failure.message}}, failure.headers)
        if self.path == "/v1/captions":
            texts = [f"caption {i} of {body['n']}" for i in range(body["n"])]
            return self._json(200, {"captions": [{"text": text, "score": 0.875} for text in texts]})
        if self.path == "/v1/answers":
            return self._json(200, {"answers": [{"text": f"answer to {body['question']}"}]})
        self._draw(body)

    def _draw(self, body: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        seed = 1234 if body["seed"] is None else body["seed"]
        seeds = range(seed, seed + body["n"])
        if self.fake.place is not None:
            self._event("place", {"place": self.fake.place})
            self.fake.begin.wait()
        self._event("partial", {"tokens": 36, "of": 64, "data": [{"b64_json": square(i, 0.5)} for i in seeds]})
        for index in self.fake.early:
            self._event("picture", {"index": index, "seed": seed + index, "b64_json": square(seed + index)})
        while not self.fake.finish.wait(0.02):
            self._write(b": still here\n\n")
            if self.fake.gone.is_set():
                return
        if self.fake.breaks:
            return
        if self.fake.gives_up:
            return self._event("error", {"error": self.fake.gives_up})
        prompt = body["prompt"] if body["style"] is None else f"{body['prompt']} in {body['style']} style"
        data = [{"b64_json": square(i), "seed": i, "score": 0.75} for i in seeds]
        self._event("done", {"created": 0, "seed": seed, "prompt": prompt, "data": data})

    def _event(self, name: str, data: dict) -> None:
        self._write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())

    def _write(self, content: bytes) -> None:
        try:
            self.wfile.write(content)
        except OSError:
            self.fake.gone.set()

    def _json(self, status: int, data: dict, headers: dict[str, str] | None = None) -> None:
        self._answer(status, "application/json", json.dumps(data).encode(), headers)

    def _answer(self, status: int, kind: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fake_server() -> Iterator[Fake]:
    """A fake server on a free port; it stops with the block."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.fake = Fake(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler.fake
    finally:
        handler.fake.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()
