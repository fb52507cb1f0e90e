"""A server on a free port, over the tiny model."""

import copy
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn

from ppvilg import ViLGPipeline
from ppvilg.config import LoRAConfig
from ppvilg.lora import adapter_config, save_adapter
from ppvilg.model.lora import target_names
from ppvilg.server.app import create_app
from ppvilg.server.settings import Settings
from tests.models import STYLES  # noqa: F401  also for the tests


class Redness:
    """A scorer that likes red pictures, whatever the text."""

    def embed_images(self, images):
        share = images[..., 0].mean((1, 2)) / 255
        return np.stack([share, np.sqrt(1 - share**2)], 1).astype(np.float32)

    def embed_texts(self, texts):
        return np.tile(np.array([1, 0], np.float32), (len(texts), 1))


class Slow:
    """A model whose steps take a while, or wait for a gate to open."""

    def __init__(self, model, seconds: float = 0.0):
        self._model, self._seconds = model, seconds
        self.gate = threading.Event()
        self.gate.set()

    def __getattr__(self, name):
        return getattr(self._model, name)

    def decode_step(self, *arguments):
        time.sleep(self._seconds)
        self.gate.wait()
        return self._model.decode_step(*arguments)


@pytest.fixture(scope="session")
def pipeline(tiny_model) -> ViLGPipeline:
    """The tiny model; it knows two styles."""
    return ViLGPipeline.from_pretrained(tiny_model)


def random_adapter(pipeline: ViLGPipeline, folder: Path, seed: int) -> Path:
    """An adapter that changes a lot."""
    config = LoRAConfig(rank=2, alpha=8, targets=["query", "value", "down", "head"])
    weights, generator = pipeline.model.state_dict(), np.random.default_rng(seed)
    arrays = {}
    for name in target_names(config, pipeline.config.transformer.layers):
        inputs, outputs = weights[f"{name}.weight"].shape
        arrays[f"{name}.lora.a"] = 0.3 * generator.standard_normal([inputs, 2], np.float32)
        arrays[f"{name}.lora.b"] = generator.standard_normal([2, outputs], np.float32)
    save_adapter(adapter_config(config, weights), arrays, folder)
    return folder


def slow(pipeline: ViLGPipeline, seconds: float = 0.0) -> ViLGPipeline:
    """The same with `Slow`."""
    other = copy.copy(pipeline)
    other.model = Slow(pipeline.model, seconds)
    return other


class Running:
    """A server that runs: its application and a client of it."""

    def __init__(self, app, client: httpx.Client, server: uvicorn.Server):
        self.app, self.client, self.server = app, client, server

    @property
    def engine(self):
        return self.app.state.engine

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and not line.startswith("#"))


@contextmanager
def serving(pipeline: ViLGPipeline, scorer=None, adapters=None, **settings) -> Iterator[Running]:
    """Start uvicorn in a thread and stop it at the end."""
    pipeline = copy.copy(pipeline)
    pipeline.dual_encoder = scorer
    app = create_app(pipeline, Settings(**settings), adapters or {})
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
            yield Running(app, client, server)
        server.should_exit = True
        thread.join()


def until(true, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def server(pipeline) -> Iterator[Running]:
    """One with a scorer, for tests that leave nothing behind."""
    with serving(pipeline, Redness(), grpc_port=0, max_candidates=16) as running:
        yield running
