"""Paddle Serving's protocol: what its clients send and get, over HTTP and gRPC."""

import json
import re
from pathlib import Path

import grpc
import numpy as np
import pytest

from ppvilg.server import paddle_serving
from ppvilg.server.paddle_serving import BUSY, LATE, NAME, PACKAGE, REFUSED, message_class
from ppvilg.server.requests import png_base64
from tests.server.conftest import Running, serving, slow
from tests.server.test_api import decoded

PICTURE = png_base64(np.full((16, 16, 3), 200, np.uint8))
EMPTY = {"key": [], "value": [], "tensors": []}


def post(server: Running, values: dict[str, str] | bytes, path: str = f"/{NAME}/prediction", **fields):
    if isinstance(values, dict):
        tree = {"key": list(values), "value": list(values.values()), "tensors": [], "logid": 0, "clientip": ""}
        values = json.dumps(tree | fields).encode()
    return server.client.post(path, content=values)


def infer(server: Running, values: dict[str, str], metadata=(), **fields):
    """Over gRPC, as Paddle Serving's own client calls it."""
    request = message_class("Request")(key=list(values), value=list(values.values()), **fields)
    with grpc.insecure_channel(f"127.0.0.1:{server.app.state.grpc_port}") as channel:
        call = channel.unary_unary(
            f"/{PACKAGE}.PipelineService/inference",
            request_serializer=message_class("Request").SerializeToString,
            response_deserializer=message_class("Response").FromString,
        )
        return call(request, timeout=60, metadata=metadata)


def test_the_messages_are_those_of_the_file():
    text = Path(paddle_serving.__file__).with_name("pipeline_service.proto").read_text("utf-8")
    assert f"package {PACKAGE};" in text
    for name in ("Tensor", "Request", "Response"):
        body = re.search(rf"message {name} {{(.*?)}}", text, re.DOTALL).group(1)
        written = {key: (int(n), kind) for kind, key, n in re.findall(r"(\w+) (\w+) = (\d+);", body)}
        built = {
            field.name: (field.number, field.message_type.name if field.message_type else None)
            for field in message_class(name).DESCRIPTOR.fields
        }
        assert {key: number for key, (number, _) in written.items()} == {key: number for key, (number, _) in built.items()}
        assert [key for key, (_, kind) in written.items() if kind == "Tensor"] == [key for key, (_, k) in built.items() if k]
    # What protoc's classes write.
    request = message_class("Request")(
        key=["k"], value=["v"], tensors=[{"name": "t", "shape": [2, 3], "elem_type": 12}], logid=7
    )
    expected = b"\x0a\x01k\x12\x01v\x1a\x0c\xa0\x01\x0c\xaa\x01\x02\x02\x03\xba\x01\x01t0\x07"
    assert request.SerializeToString(deterministic=True) == expected


def test_pictures(server, pipeline):
    values = {"prompt": "红色方块", "n": "2", "seed": "5", "temperature": "0.8", "candidates": "2", "guidance": "2"}
    answer = post(server, values).json()
    assert (answer["err_no"], answer["err_msg"], answer["tensors"]) == (0, "", [])
    assert answer["key"] == ["images", "seeds", "scores"]
    images, seeds, scores = map(json.loads, answer["value"])
    expected = server.client.post(
        "/v1/images", json={"prompt": "红色方块", "n": 2, "seed": 5, "temperature": 0.8, "guidance": 2}
    ).json()["data"]
    assert images == [entry["b64_json"] for entry in expected]
    assert seeds == [entry["seed"] for entry in expected]
    assert scores == pytest.approx([entry["score"] for entry in expected])
    assert decoded(images[0]).shape == (16, 16, 3)
    response = infer(server, values)
    assert (response.err_no, list(response.key), list(response.value)) == (0, answer["key"], answer["value"])


def test_captions(server, pipeline):
    answer = post(server, {"image": PICTURE}).json()
    assert answer["key"] == ["captions", "scores"]
    assert json.loads(answer["value"][0]) == pipeline.caption([np.full((16, 16, 3), 200, np.uint8)])[0]
    assert list(infer(server, {"image": PICTURE}).value) == answer["value"]


def test_a_prompt_in_a_tensor(server):
    body = {"tensors": [{"name": "prompt", "elem_type": 12, "str_data": ["红", "色"]}], "key": ["seed"], "value": ["3"]}
    answer = post(server, json.dumps(body).encode()).json()
    assert answer == post(server, {"prompt": "红色", "seed": "3"}).json()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "红" * 11}, "at most 10"),
        ({"prompt": "a", "n": "-1"}, "n"),
        ({"prompt": "a", "n": "many"}, "n"),
        ({"prompt": "a", "temperature": "nan"}, "temperature"),
        ({"prompt": "a", "style": "cubism"}, "plain"),
        ({"prompt": "a", "colour": "red"}, "colour"),
        ({"image": "???"}, "base64"),
    ],
)
def test_what_is_refused(server, values, word):
    answer = post(server, values)
    assert answer.status_code == 200
    content = answer.json()
    assert content == {"err_no": REFUSED, "err_msg": content["err_msg"], **EMPTY}
    assert word in content["err_msg"]
    response = infer(server, values)
    assert (response.err_no, response.err_msg) == (REFUSED, content["err_msg"])


def test_other_errors(server):
    wrong = {"err_no": 3002, "err_msg": "Failed to inference: Service name error.", **EMPTY}
    assert post(server, {"prompt": "a"}, "/other/prediction").json() == wrong
    assert infer(server, {"prompt": "a"}, name="other").err_no == 3002
    assert infer(server, {"prompt": "红"}, name=NAME).err_no == 0
    package = {"err_no": 8000, "err_msg": "rpc package error: list index out of range", **EMPTY}
    assert post(server, b'{"key": ["prompt", "n"], "value": ["a"]}').json() == package
    answer = post(server, b'{"tensors": [{"name": "prompt", "elem_type": 99}]}').json()
    assert answer == package | {"err_msg": "rpc package error: elem_type:99 error"}


@pytest.mark.parametrize(
    "body",
    [b'{"key": ["a"', b"x", b'{"key": ["a"], "value": [3]}', b'{"key": "a"}', b"[1]", b"[" * 100_000, b'{"logid": "x"}'],
)
def test_what_is_no_message(server, body):
    answer = post(server, body)
    assert answer.status_code == 400
    content = answer.json()
    assert content == {"error": content["error"], "code": 3, "message": content["error"], "details": []}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"key": null, "value": null}',
        b'{"unknown": 1, "logid": "12", "name": "ignored"}',
        b'{"key": [], "value": ["left over"]} and more',
    ],
)
def test_what_is_an_empty_message(server, body):
    assert post(server, body).json()["err_no"] == REFUSED


def test_values_that_are_not_utf8(server):
    red = "红".encode()
    assert post(server, b'{"key": ["prompt"], "value": ["' + red + b'\xff\xfe"]}').json()["err_no"] == 0
    assert post(server, b'{"key": ["prompt"], "value": ["\xff\xfe"]}').json()["err_no"] == REFUSED


def test_busy_late_and_broken(pipeline):
    broken = slow(pipeline, 0.05)
    with serving(broken, grpc_port=0, deadline=0.2) as running:
        assert post(running, {"prompt": "红"}).json()["err_no"] == LATE
        broken.model.decode_step = lambda *arguments: 1 / 0
        answer = post(running, {"prompt": "红"}, logid=7).json()
        assert (answer["err_no"], answer["err_msg"]) == (10000, "Log_id: 7  Raise_msg: internal error")
        running.engine.drain()
        assert post(running, {"prompt": "红"}).json()["err_no"] == BUSY
        assert infer(running, {"prompt": "红"}).err_no == BUSY


def test_keys_over_grpc(pipeline):
    with serving(pipeline, grpc_port=0, api_keys=frozenset({"secret"})) as running:
        with pytest.raises(grpc.RpcError) as raised:
            infer(running, {"prompt": "红"})
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert infer(running, {"prompt": "红"}, metadata=[("authorization", "Bearer secret")]).err_no == 0
        assert post(running, {"prompt": "红"}).status_code == 401


def test_bytes_that_are_no_message_over_grpc(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.app.state.grpc_port}") as channel:
        call = channel.unary_unary(f"/{PACKAGE}.PipelineService/inference")
        for content in (b"\xff\xff\xff", bytes(10 * 2**20)):
            with pytest.raises(grpc.RpcError):
                call(content, timeout=10)
    assert infer(server, {"prompt": "红"}).err_no == 0
