"""deploy/serve.py and the example clients, as a user runs them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from ppvilg import ViLGPipeline
from ppvilg.benchmark import serving, soak
from tests.server.conftest import serving as running
from tests.server.conftest import until
from tests.server.test_api import decoded

ROOT = Path(__file__).parents[2]


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120, **options)


def test_help_answers_at_once():
    began = time.monotonic()
    done = run(sys.executable, "deploy/serve.py", "--help", cwd=ROOT)
    assert done.returncode == 0
    assert "--grpc-port" in done.stdout
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--capacity", "0"], "capacity"),
        (["--api-keys-file", "missing"], "missing"),
        (["--config", "missing.yml"], "missing.yml"),
        (["--adapter", "ink"], "NAME=FOLDER"),
        (["--precision", "fp8"], "precision"),
        (["--model", "missing"], "missing"),
    ],
)
def test_mistakes_are_one_line(arguments, word):
    done = run(sys.executable, "deploy/serve.py", *arguments, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_real_server_and_its_clients(tiny_model, tmp_path):
    with serving.served(str(tiny_model)) as server:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        client = [sys.executable, ROOT / "deploy/clients/client.py", "--url", server.url]
        done = run(*client, "红色方块", "--n", 2, "--seed", 1, "--output", tmp_path / "out", env=environment)
        assert done.returncode == 0, done.stderr
        assert "16 tokens" in done.stderr
        assert len(list((tmp_path / "out").iterdir())) == 2
        done = run(*client, "--caption", tmp_path / "out" / "0.png", env=environment)
        assert done.returncode == 0, done.stderr
        done = run(*client, "红" * 20, env=environment)
        assert (done.returncode, done.stderr[:4]) == (1, "422:")
        client = [sys.executable, ROOT / "deploy/paddle_serving/client.py", "--url", server.url]
        done = run(*client, "--text", "红色方块", "--output", tmp_path / "red.png", env=environment)
        assert done.returncode == 0, done.stderr
        script = (ROOT / "deploy/clients/curl.sh").read_text("utf-8")
        # The tiny model has no styles and fewer rows.
        script = script.replace('"style": "noto", ', "").replace('"keep_rows": 4', '"keep_rows": 2')
        done = run("bash", "-c", script, "curl.sh", server.url, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "completed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_signal_lets_accepted_requests_finish(tiny_model, tmp_path):
    with serving.served(str(tiny_model), capacity=2) as server:
        request = {"prompt": "红色方块", "n": 8, "guidance": 2.0, "stream": True, "partial_every": 1}
        with httpx.stream("POST", f"{server.url}/v1/images", json=request, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.terminate()
            until(lambda: refuses(server.url))
            assert "event: done" in list(lines)
        # Uvicorn ends by the signal that it got, once it is done.
        assert server.process.wait(20) == -signal.SIGTERM


def refuses(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 503
    except httpx.TransportError:
        return True


@pytest.mark.slow
def test_an_exported_model_is_served_like_its_run(pipeline, tmp_path):
    from ppvilg.export.write import write_export

    write_export(tmp_path / "export", pipeline.model, pipeline.vqgan, pipeline.text_tokenizer, pipeline.config, {})
    request = {"prompt": "红色方块", "n": 3, "seed": 4, "guidance": 2.0, "top_k": 8}
    with running(pipeline) as run, running(ViLGPipeline.from_pretrained(tmp_path / "export")) as exported:
        expected, made = (server.client.post("/v1/images", json=request).json()["data"] for server in (run, exported))
    for one, other in zip(expected, made, strict=True):
        np.testing.assert_allclose(decoded(one["b64_json"]).astype(int), decoded(other["b64_json"]).astype(int), atol=1)


@pytest.mark.slow
def test_the_benchmark(tiny_model):
    lines = list(serving.measure_serving(str(tiny_model), "红色方块", [1, 2], 4))
    assert [line.split(":")[0] for line in lines if "vanish" in line]
    assert lines[-1].startswith("the next client")
    full = [line for line in lines if line.startswith("64 clients")]
    assert len(full) == 3
    assert all("not 200" not in line or "{503: " in line for line in full)


@pytest.mark.slow
def test_the_soak(tiny_model):
    *minutes, whole, memory, others, _ = soak.soak(str(tiny_model), "红色方块", 0.1, clients=4)
    assert len(minutes) == 2
    assert int(whole.split()[1]) > 10
    assert whole.split()[5] == "0"
    assert memory.endswith("lost: none")
    for what in ("vanished", "garbage, refused", "not HTTP", "stalled"):
        assert what in others
    assert "internal error" not in others
