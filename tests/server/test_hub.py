"""PaddleHub's `ernie_vilg`, in Python and over HTTP."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ppvilg.hub import NO_STYLE, ErnieVilG
from tests.server.conftest import STYLES


@pytest.fixture(scope="module")
def module(tiny_model, pipeline) -> ErnieVilG:
    made = ErnieVilG(tiny_model)
    made.pipeline = pipeline
    return made


def test_pictures_are_returned_and_saved(module, pipeline, tmp_path):
    prompts = ["红", "../绿/蓝", "红"]
    pictures = module.generate_image(prompts, style="plain", topk=2, output_dir=tmp_path / "out", seed=3)
    expected = pipeline(["红方块", "../绿/蓝方块", "红方块"], 2, seed=3, output_type="np").images
    assert len(pictures) == 6
    for picture, array in zip(pictures, expected, strict=True):
        assert isinstance(picture, Image.Image)
        np.testing.assert_array_equal(np.asarray(picture), array)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted([*(f"红_{i}.png" for i in range(4)), "_绿_蓝_0.png", "_绿_蓝_1.png"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "红_2.png")), expected[4])


def test_nothing_is_saved_unasked(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(module.generate_image("红", topk=1, visualization=False)) == 1
    assert list(tmp_path.iterdir()) == []
    assert len(module.generate_image("红", NO_STYLE, "16*16")) == 6
    assert len(list((tmp_path / "ernievilg_output").iterdir())) == 6


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"style": "油画"}, "plain"),
        ({"resolution": "1024*1024"}, r"16\*16"),
        ({"topk": 0}, "topk"),
        ({"text_prompts": ""}, "empty"),
    ],
)
def test_what_is_refused(module, server, arguments, word):
    arguments = {"text_prompts": "红"} | arguments
    with pytest.raises(ValueError, match=word):
        module.generate_image(**arguments, visualization=False)
    answer = server.client.post("/predict/ernie_vilg", json=arguments)
    assert answer.status_code == 200
    assert answer.json()["status"] == "101"
    assert answer.json()["results"] == ""
    assert answer.json()["msg"]


def test_over_http(server):
    for prompts, style, count in ((["红", "绿"], "plain", 4), ("红", NO_STYLE, 2)):
        request = {"text_prompts": prompts, "style": style, "topk": 2, "visualization": True, "output_dir": "ignored"}
        answer = server.client.post("/predict/ernie_vilg", json=request).json()
        assert (answer["msg"], answer["status"], len(answer["results"])) == ("", "000", count)
        for encoded in answer["results"]:
            assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (16, 16)
    assert len(server.client.post("/predict/ernie_vilg", json={"text_prompts": ["红"]}).json()["results"]) == 6


def test_other_modules_and_bodies_over_http(server):
    assert server.client.post("/predict/lac", json={}).json()["status"] == "111"
    assert server.client.post("/predict/ernie_vilg", content=b"{").json()["status"] == "112"
    for bad in ({}, [], {"text_prompts": 3}, {"text_prompts": "a", "topk": -1}, {"text_prompts": ["a"] * 9, "topk": 2}):
        assert server.client.post("/predict/ernie_vilg", json=bad).json()["status"] == "101"


def test_styles_are_the_models(server):
    assert set(server.client.get("/v1/model").json()["styles"]) == set(STYLES)
