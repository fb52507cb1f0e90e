"""Our server against the real Paddle Serving 0.9.0, with the same export behind both: the same requests, the same answers.

It needs an environment with requirements-paddle-serving.txt and Paddle Serving (deploy/paddle_serving/README.md); the variable
PADDLE_SERVING_PYTHON names its Python where it is another than the one that runs the tests.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
import yaml

from ppvilg import ViLGPipeline
from ppvilg.export.write import write_export
from ppvilg.server.paddle_serving import NAME, PACKAGE, message_class
from tests.server.conftest import serving, until
from tests.server.test_paddle_serving import PICTURE

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("PADDLE_SERVING_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None and importlib.util.find_spec("paddle_serving_server") is None, reason="Paddle Serving is not installed"
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def peers(tiny_model, tmp_path_factory):
    """(URL, gRPC address) of Paddle Serving and of our server, with one export."""
    folder = tmp_path_factory.mktemp("paddle_serving")
    pipeline, model = ViLGPipeline.from_pretrained(tiny_model), folder / "export"
    write_export(model, pipeline.model, pipeline.vqgan, pipeline.text_tokenizer, pipeline.config, {})
    config = yaml.safe_load((ROOT / "deploy/paddle_serving/config.yml").read_text("utf-8"))
    config |= {"rpc_port": free_port(), "http_port": free_port()}
    (folder / "config.yml").write_text(yaml.safe_dump(config), "utf-8")
    command = [PYTHON or sys.executable, ROOT / "deploy/paddle_serving/web_service.py", "--model", model]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    # It writes its logs where it stands, and its gateway is a process of its own: both end with the group.
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--config", folder / "config.yml"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    theirs = f"http://127.0.0.1:{config['http_port']}"
    try:
        until(lambda: process.poll() is not None or answers(theirs), 120)
        assert process.poll() is None, (folder / "log").read_text("utf-8")
        with serving(ViLGPipeline.from_pretrained(model), grpc_port=0) as ours:
            yield (
                (theirs, f"127.0.0.1:{config['rpc_port']}"),
                (str(ours.client.base_url), f"127.0.0.1:{ours.app.state.grpc_port}"),
            )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.post(f"{url}/{NAME}/prediction", content=b"{}").status_code == 200
    except httpx.TransportError:
        return False


def pack(values: dict[str, str], **fields) -> bytes:
    return json.dumps({"key": list(values), "value": list(values.values())} | fields).encode()


@pytest.mark.parametrize(
    "body",
    [
        pack({"prompt": "红色方块", "seed": "3"}),
        pack({"prompt": "红色方块", "seed": "3", "n": "3", "temperature": "0.8", "top_k": "5", "guidance": "2"}),
        pack({"prompt": "红", "temperature": "0", "seed": "1"}, tensors=[], logid=7, clientip="::1", unknown=[1]),
        pack({"prompt": "红", "temperature": "0", "seed": "1"}, name="other", method="other"),
        pack({"prompt": "红", "seed": "1", "image": PICTURE, "keep_rows": "2"}),
        pack({"image": PICTURE}),
        pack({"image": PICTURE, "beams": "3"}),
        pack({"seed": "4"}, tensors=[{"name": "prompt", "elem_type": 12, "str_data": ["红", "色"]}]),
        pack({}, logid="12"),
        b"",
        b"{}",
        b'{"key": null, "value": null}',
        b'{"value": ["left over"]}',
        b"{} and more",
        pack({"prompt": ""}),
        pack({"prompt": "红" * 11}),
        pack({"prompt": "红" * 10_000}),
        pack({"prompt": "红", "n": "-1"}),
        pack({"prompt": "红", "n": "99"}),
        pack({"prompt": "红", "style": "<&>"}),
        pack({"prompt": "红", "colour": "red"}),
        pack({"prompt": "红", "candidates": "3"}),
        pack({"image": "???"}),
        b'{"key": ["prompt", "n"], "value": ["a"]}',
        b'{"tensors": [{"name": "prompt", "elem_type": 99}]}',
        b'{"tensors": [{"name": "prompt", "elem_type": 0, "int64_data": [1], "shape": [1]}]}',
    ],
)
def test_http(peers, body):
    theirs, ours = (httpx.post(f"{url}/{NAME}/prediction", content=body, timeout=60) for url, _ in peers)
    assert ours.status_code == theirs.status_code == 200
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert ours.json() == theirs.json()
    assert list(ours.json()) == list(theirs.json()), "the fields' order"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"x",
        b"[1]",
        b'{"key": "a"}',
        b'{"key": ["a"], "value": [3]}',
        b'{"logid": "x"}',
        b'{"logid": 1.5}',
        b'{"key": [null',
    ],
)
def test_http_bodies_that_are_no_message(peers, body):
    """The texts come from Go and from Python, the rest is the same."""
    theirs, ours = (httpx.post(f"{url}/{NAME}/prediction", content=body, timeout=60) for url, _ in peers)
    assert ours.status_code == theirs.status_code == 400
    for content in (ours.json(), theirs.json()):
        assert content == {"error": content["error"], "code": 3, "message": content["error"], "details": []}


def test_http_names(peers):
    theirs, ours = (httpx.post(f"{url}/other/prediction", content=pack({"prompt": "红"}), timeout=60) for url, _ in peers)
    assert ours.json() == theirs.json()
    assert ours.json()["err_no"] == 3002


@pytest.mark.parametrize(
    "request_",
    [
        {"key": ["prompt", "seed", "n"], "value": ["红色方块", "3", "2"], "name": NAME, "logid": 5, "clientip": "::1"},
        {"key": ["image"], "value": [PICTURE]},
        {"key": ["prompt"], "value": ["红"], "name": "other"},
        {"key": ["prompt"], "value": []},
        {"key": ["prompt"], "value": [""]},
        {},
    ],
)
def test_grpc(peers, request_):
    responses = []
    for _, address in peers:
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(f"/{PACKAGE}.PipelineService/inference")
            responses.append(call(message_class("Request")(**request_).SerializeToString(), timeout=60))
    theirs, ours = responses
    # Bytes may differ in the order of fields only; as messages they are equal.
    assert message_class("Response").FromString(ours) == message_class("Response").FromString(theirs)
