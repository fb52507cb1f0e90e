"""The HTTP API: what it answers to good requests."""

import base64
import copy
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ppvilg.model.vilg import ViLG
from ppvilg.server.requests import png, png_base64
from tests.server.conftest import STYLES, Redness, serving


def decoded(encoded: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def events(response) -> list[tuple[str, dict]]:
    """The server-sent events of an answer."""
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_pictures_are_the_pipelines(server, pipeline):
    sampling = {"temperature": 0.9, "top_k": 8, "top_p": 0.95, "guidance": 2.0}
    answer = server.client.post("/v1/images", json={"prompt": "红色方块", "n": 3, "seed": 5, **sampling})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["seed"], content["prompt"]) == (5, "红色方块")
    assert sorted(entry["seed"] for entry in content["data"]) == [5, 6, 7]
    options = {name: value for name, value in sampling.items() if name != "guidance"}
    expected = pipeline("红色方块", 3, 2.0, seed=5, output_type="np", **options).images
    for entry in content["data"]:
        np.testing.assert_array_equal(decoded(entry["b64_json"]), expected[entry["seed"] - 5])
        assert 0 <= entry["score"] <= 1


def test_the_best_of_candidates(server):
    request = {"prompt": "红色方块", "n": 2, "seed": 3, "candidates": 9}
    chosen = server.client.post("/v1/images", json=request).json()["data"]
    drawn = [server.client.post("/v1/images", json={"prompt": "红色方块", "seed": 3 + i}).json()["data"][0] for i in range(9)]
    best = sorted(drawn, key=lambda entry: -entry["score"])[:2]
    assert [entry["score"] for entry in chosen] == pytest.approx([entry["score"] for entry in best])
    by_seed = {entry["seed"]: entry["b64_json"] for entry in drawn}
    assert all(by_seed[entry["seed"]] == entry["b64_json"] for entry in chosen)


def test_without_a_seed_every_answer_is_another(server):
    seeds = {server.client.post("/v1/images", json={"prompt": "红"}).json()["seed"] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("prompt", "style", "expected"),
    [("红", "plain", "红方块"), ("红", "only_zh", "大红"), ("红", None, "红")],
)
def test_styles(server, prompt, style, expected):
    answer = server.client.post("/v1/images", json={"prompt": prompt, "style": style, "temperature": 0})
    assert answer.json()["prompt"] == expected


def test_a_picture_is_completed(server, pipeline):
    picture = np.full((16, 16, 3), 200, np.uint8)
    request = {"prompt": "红", "image": png_base64(picture), "keep_rows": 3, "seed": 1}
    made = decoded(server.client.post("/v1/images", json=request).json()["data"][0]["b64_json"])
    np.testing.assert_array_equal(made, pipeline.complete(picture, 3, "红", seed=1).images[0])
    request |= {"image": "data:image/png;base64," + request["image"], "keep_rows": None}
    made = decoded(server.client.post("/v1/images", json=request).json()["data"][0]["b64_json"])
    np.testing.assert_array_equal(made, pipeline.complete(picture, 2, "红", seed=1).images[0])


def test_a_png_file(server, pipeline):
    answer = server.client.post("/v1/images", json={"prompt": "红", "seed": 4, "response_format": "png"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == png(pipeline("红", seed=4, output_type="np").images[0])


def test_streaming(server, pipeline):
    n = pipeline.config.transformer.image_length
    answer = server.client.post("/v1/images", json={"prompt": "红", "n": 2, "seed": 4, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *partial, (last, done) = events(answer)
    assert last == "done"
    assert {name for name, _ in partial} == {"partial"}
    assert [data["tokens"] for _, data in partial] == list(range(n // 8, n, n // 8))
    assert all(data["of"] == n and len(data["data"]) == 2 for _, data in partial)
    plain = server.client.post("/v1/images", json={"prompt": "红", "n": 2, "seed": 4}).json()
    assert [entry["b64_json"] for entry in done["data"]] == [entry["b64_json"] for entry in plain["data"]]
    expected = list(pipeline.stream("红", n // 8, num_images_per_prompt=2, seed=4))
    for (_, data), (_, pictures) in zip(partial, expected, strict=False):
        np.testing.assert_array_equal([decoded(entry["b64_json"]) for entry in data["data"]], [*map(np.asarray, pictures)])


def test_partial_every(server, pipeline):
    answer = server.client.post("/v1/images", json={"prompt": "红", "stream": True, "partial_every": 5})
    assert [data["tokens"] for name, data in events(answer) if name == "partial"] == [5, 10, 15]


def test_captions(server, pipeline):
    picture = np.full((16, 16, 3), 200, np.uint8)
    request = {"image": png_base64(picture)}
    for options, arguments in (
        ({}, {}),
        ({"beams": 3}, {"num_beams": 3}),
        ({"n": 2, "temperature": 0.8, "seed": 3}, {"num_captions": 2, "seed": 3, "temperature": 0.8}),
    ):
        answer = server.client.post("/v1/captions", json=request | options)
        assert answer.status_code == 200, answer.text
        assert [entry["text"] for entry in answer.json()["captions"]] == pipeline.caption([picture], **arguments)[0]
        assert all(0 <= entry["score"] <= 1 for entry in answer.json()["captions"])


def test_answers(pipeline):
    """Of a model with slots for a question; the others refuse."""
    answering = copy.copy(pipeline)
    config = replace(pipeline.config.transformer, question_length=6)
    answering.config, answering.model = replace(pipeline.config, transformer=config), ViLG(config)
    answering.model.set_state_dict(pipeline.model.state_dict())
    answering.model.eval()
    picture, question = np.full((16, 16, 3), 200, np.uint8), "红色？"
    request = {"image": png_base64(picture), "question": question}
    with serving(answering, Redness()) as running:
        for options, arguments in (
            ({}, {}),
            ({"beams": 3}, {"num_beams": 3}),
            ({"n": 2, "temperature": 0.8, "seed": 3}, {"num_answers": 2, "seed": 3, "temperature": 0.8}),
        ):
            answer = running.client.post("/v1/answers", json=request | options)
            assert answer.status_code == 200, answer.text
            expected = answering.answer([picture], question, **arguments)[0]
            assert answer.json() == {"answers": [{"text": text} for text in expected]}
        assert running.client.get("/v1/model").json()["max_question"] == 4
        for refused, why in ((question * 3, "the model reads at most 4"), ("\uc548", "no word that the model knows")):
            answer = running.client.post("/v1/answers", json=request | {"question": refused})
            assert answer.status_code == 422
            assert why in answer.json()["error"]["message"]


def test_what_a_page_needs(server, pipeline):
    model = server.client.get("/v1/model").json()
    assert model["styles"] == STYLES
    assert (model["image_size"], model["rows"] * model["columns"]) == (16, model["image_tokens"])
    assert model["max_text"] == pipeline.config.transformer.max_text_length - 2
    assert model["dual_encoder"]
    assert model["guidance"]
    assert model["limits"]["candidates"] == 16


def test_health_metrics_and_documentation(server):
    assert server.client.get("/healthz").json() == {"status": "ok"}
    before = server.metric("ppvilg_tokens_total")
    server.client.post("/v1/images", json={"prompt": "红", "n": 2})
    n = server.client.get("/v1/model").json()["image_tokens"]
    assert server.metric("ppvilg_tokens_total") == before + 2 * n
    assert server.metric('http_requests_total{handler="/v1/images",method="POST",status="200"}') >= 1
    assert server.metric("ppvilg_tokens_per_second") > 0
    assert server.metric("process_resident_memory_bytes") > 2**20
    server.client.get("/never/heard/of")
    assert server.metric('http_requests_total{handler="none",method="GET",status="404"}') >= 1
    assert "/v1/images" in server.client.get("/openapi.json").json()["paths"]
    page = server.client.get("/docs").text
    assert "http" not in page.replace("http-equiv", ""), "the page loads nothing from elsewhere"


def test_without_a_dual_encoder(pipeline):
    with serving(pipeline) as running:
        answer = running.client.post("/v1/images", json={"prompt": "红"})
        assert answer.json()["data"][0]["score"] is None
        answer = running.client.post("/v1/images", json={"prompt": "红", "candidates": 3})
        assert answer.status_code == 422
        assert "dual encoder" in answer.json()["error"]["message"]
        assert not running.client.get("/v1/model").json()["dual_encoder"]


def test_the_page(server):
    page = server.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
    assert files
    for name in files:
        found = server.client.get(f"/{name}")
        assert (found.status_code, found.headers["cache-control"]) == (200, "no-cache"), name
    assert server.client.get("/static/missing.js").json()["error"]["code"] == "not_found"
    assert server.client.get("/static/%2e%2e/app.py").status_code == 404
