"""The matching model: loss against numpy, invariances, ranking, training by the tool."""

import numpy as np
import paddle
import pytest
import yaml

from ppvilg.config import DataConfig, DualEncoderConfig, DualEncoderExperiment, TextTokenizerConfig
from ppvilg.errors import UserError
from ppvilg.matching import Matching, MatchingModel, best_first, load_scorer, scores
from tests.helpers import run_tool

CONFIG = DualEncoderExperiment(
    data=DataConfig(image_size=16),
    text=TextTokenizerConfig(vocabulary_size=20, max_length=6),
    dual_encoder=DualEncoderConfig(hidden=16, heads=2, image_layers=1, text_layers=1, embedding=8),
)


def pairs(count: int = 5):
    ids = paddle.randint(1, 20, [count, 6])
    valid = paddle.arange(6).unsqueeze(0) < paddle.randint(2, 7, [count, 1])
    return paddle.rand([count, 3, 16, 16]) * 2 - 1, ids, valid


def test_loss_is_symmetric_infonce():
    model = Matching(CONFIG)
    pictures, ids, valid = pairs()
    image, text = model.embed_image(pictures).numpy(), model.embed_text(ids, valid).numpy()
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
    logits = image @ text.T / 0.07

    def cross_entropy(rows: np.ndarray) -> float:
        return float(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(rows)]))

    measures = model.loss(pictures, ids, valid)
    assert measures["loss"].item() == pytest.approx((cross_entropy(logits) + cross_entropy(logits.T)) / 2, rel=1e-5)
    assert measures["picture_to_text"].item() == pytest.approx((logits.argmax(1) == np.arange(5)).mean())
    assert measures["text_to_picture"].item() == pytest.approx((logits.argmax(0) == np.arange(5)).mean())


def test_padding_and_the_batch_do_not_matter():
    model = Matching(CONFIG)
    _, ids, valid = pairs()
    together = model.embed_text(ids, valid).numpy()
    changed = paddle.where(valid, ids, (ids + 3) % 20)
    np.testing.assert_allclose(model.embed_text(changed, valid).numpy(), together, atol=1e-6)
    for i in range(5):
        length = int(valid[i].astype("int64").sum())
        alone = model.embed_text(ids[i : i + 1, :length], valid[i : i + 1, :length]).numpy()
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_gradients_reach_every_parameter_as_finite_differences_say():
    model = Matching(CONFIG)
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    batch = pairs()
    model.loss(*batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert np.abs(parameter.grad.numpy()).max() > 0, name
    for parameter in (model.image_projection, model.patch_embedding.weight, model.text_encoder.layers[0].ffn.up.weight):
        gradient = parameter.grad.numpy()
        value, direction = parameter.numpy(), np.sign(gradient).astype(np.float32)
        results = []
        for step in (1e-4, -1e-4):
            parameter.set_value(value + step * direction)
            results.append(model.loss(*batch)["loss"].item())
        parameter.set_value(value)
        assert (results[0] - results[1]) / 2e-4 == pytest.approx(float(np.abs(gradient).sum()), rel=0.03)


class Colours:
    """A scorer that knows red, green and blue."""

    def embed_pictures(self, pictures: np.ndarray) -> np.ndarray:
        mean = pictures.mean((1, 2)).astype(np.float32)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([np.eye(3, dtype=np.float32)["红绿蓝".index(text)] for text in texts])


def test_ranking_and_scores():
    pictures = [np.full((4, 4, 3), colour, np.uint8) for colour in ([0, 0, 200], [200, 0, 0], [100, 100, 0])]
    assert best_first(Colours(), pictures, "红") == [1, 2, 0]
    assert best_first(Colours(), pictures, "蓝") == [0, 1, 2], "equal ones stay in order"
    np.testing.assert_allclose(
        scores(Colours(), np.stack(pictures), ["红", "红", "红"]), [0.5, 1, (1 + 0.5**0.5) / 2], rtol=1e-6
    )


@pytest.fixture(scope="module")
def trained(tiny_configs):
    """A run of task dual_encoder on the tiny data, by the tool."""
    tree = {
        "base": ["base.yml", "text.yml"],
        "task": "dual_encoder",
        "train": {"output": str(tiny_configs / "runs" / "dual_encoder"), "batch_size": 6},
    }
    tree["dual_encoder"] = {"hidden": 32, "heads": 2, "image_layers": 2, "text_layers": 1, "patch_size": 4, "embedding": 16}
    tree["train"] |= {"steps": 120, "learning_rate": 0.003, "validate_every": 120, "save_every": 120}
    (tiny_configs / "dual_encoder.yml").write_text(yaml.safe_dump(tree), "utf-8")
    done = run_tool("train", "-c", tiny_configs / "dual_encoder.yml")
    assert done.returncode == 0, done.stderr
    return tiny_configs / "runs" / "dual_encoder"


def test_a_trained_model_tells_colours(trained):
    model = load_scorer(str(trained))
    assert isinstance(model, MatchingModel)
    pictures = []
    for colour in ([255, 0, 0], [0, 160, 0], [0, 0, 255]):
        picture = np.full((16, 16, 3), 255, np.uint8)
        picture[:8, :8] = colour
        pictures.append(picture)
    fits = [scores(model, np.stack(pictures), [f"{name}色方块一"] * 3) for name in "红绿蓝"]
    assert [int(row.argmax()) for row in fits] == [0, 1, 2]
    assert 0 <= np.min(fits) <= np.max(fits) <= 1
    with pytest.raises(UserError, match="16x16"):
        model.embed_pictures(np.zeros((1, 8, 8, 3), np.uint8))


def test_best_of_by_the_tool(trained, tiny_runs, tmp_path):
    arguments = [
        "--mode",
        "t2i",
        "--model",
        tiny_runs / "vilg",
        "--dual-encoder",
        trained,
        "--text",
        "红色方块",
        "--output",
        tmp_path,
    ]
    done = run_tool("infer", *arguments, "--best-of", 8, "--samples", 2)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.png", "0001.png", "grid.png"]
    refused = run_tool("infer", *arguments, "--best-of", 1, "--samples", 2)
    assert refused.returncode == 2
    assert "the best of 1 candidates cannot be 2" in refused.stderr
    missing = run_tool("infer", *arguments[:-2], "--best-of", 4, "--dual-encoder", tmp_path / "no")
    assert missing.returncode == 2
    assert "there is no folder" in missing.stderr


def test_ernie_vil_from_a_local_folder(tmp_path):
    """With random weights: the similarities are those of PaddleNLP's own forward pass."""
    from paddlenlp.transformers import (
        ErnieViLConfig,
        ErnieViLImageProcessor,
        ErnieViLModel,
        ErnieViLProcessor,
        ErnieViLTokenizer,
    )
    from PIL import Image

    (tmp_path / "words.txt").write_text("[PAD]\n[CLS]\n[SEP]\n[MASK]\n[UNK]\n红\n色\n", "utf-8")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = sizes | {"vocab_size": 10, "max_position_embeddings": 16}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    model = ErnieViLModel(ErnieViLConfig(text_config_dict=text, vision_config_dict=vision, projection_dim=16))
    pixels = ErnieViLImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = ErnieViLProcessor(pixels, ErnieViLTokenizer(str(tmp_path / "words.txt")))
    model.save_pretrained(str(tmp_path / "model"))
    processor.save_pretrained(str(tmp_path / "model"))

    scorer = load_scorer(str(tmp_path / "model"))
    pictures, texts = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8), ["红", "红色", "色"]
    similarity = scorer.embed_pictures(pictures) @ scorer.embed_texts(texts).T
    inputs = processor(text=texts, images=[Image.fromarray(picture) for picture in pictures], return_tensors="pd", padding=True)
    model.eval()
    with paddle.no_grad():
        expected = model(**inputs).logits_per_image / model.temperature.exp()
    np.testing.assert_allclose(similarity, expected.numpy(), atol=1e-5)
    with pytest.raises(UserError, match="cannot get ErnieViL"):
        load_scorer("ernie_vil-of-nobody")
