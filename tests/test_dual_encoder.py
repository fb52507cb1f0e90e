"""The dual encoder: loss against numpy, invariances, reranking, training by the tool."""

import numpy as np
import paddle
import pytest
import yaml

from ppvilg.dual_encoder import DualEncoderScorer, load_scorer, rerank, scores
from ppvilg.model.dual_encoder import DualEncoder, DualEncoderSizes, contrastive_loss
from tests.helpers import run_tool

SIZES = DualEncoderSizes(
    image_size=16,
    text_vocab_size=20,
    max_text_length=6,
    hidden=16,
    heads=2,
    image_layers=1,
    text_layers=1,
    patch_size=8,
    embedding=8,
    temperature=0.07,
)


def pairs(count: int = 5):
    ids = paddle.randint(1, 20, [count, 6])
    mask = paddle.arange(6).unsqueeze(0) < paddle.randint(2, 7, [count, 1])
    return paddle.rand([count, 3, 16, 16]) * 2 - 1, ids, mask


def loss(model: DualEncoder, pixels: paddle.Tensor, ids: paddle.Tensor, mask: paddle.Tensor) -> dict[str, paddle.Tensor]:
    image, text = model.embed_image(pixels), model.embed_text(ids, mask)
    return contrastive_loss(image, text, model.scale(), image, text)


def test_loss_is_symmetric_infonce():
    model = DualEncoder(SIZES)
    batch = pairs()
    pixels, ids, mask = batch
    image, text = model.embed_image(pixels).numpy(), model.embed_text(ids, mask).numpy()
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
    logits = image @ text.T / 0.07

    def cross_entropy(rows: np.ndarray) -> float:
        return float(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(rows)]))

    measures = loss(model, *batch)
    assert measures["loss"].item() == pytest.approx((cross_entropy(logits) + cross_entropy(logits.T)) / 2, rel=1e-5)
    assert measures["image_to_text"].item() == pytest.approx((logits.argmax(1) == np.arange(5)).mean())
    assert measures["text_to_image"].item() == pytest.approx((logits.argmax(0) == np.arange(5)).mean())


def test_pairs_of_several_processes_find_each_other():
    """Losses of parts of a batch against all of it add up to the whole's."""
    model = DualEncoder(SIZES)
    pixels, ids, mask = pairs(6)
    image, text = model.embed_image(pixels), model.embed_text(ids, mask)
    whole = contrastive_loss(image, text, model.scale(), image, text)
    for name, value in whole.items():
        parts = [
            contrastive_loss(image[i : i + 2], text[i : i + 2], model.scale(), image, text, first=i)[name] for i in (0, 2, 4)
        ]
        assert np.mean([part.item() for part in parts]) == pytest.approx(value.item(), rel=1e-5)


def test_the_scale_is_learned_up_to_a_limit():
    model = DualEncoder(SIZES)
    assert model.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    model.log_scale.set_value(paddle.to_tensor([9.0]))
    assert model.scale().item() == pytest.approx(100, rel=1e-5)


def test_padding_and_the_batch_do_not_matter():
    model = DualEncoder(SIZES)
    _, ids, mask = pairs()
    together = model.embed_text(ids, mask).numpy()
    changed = paddle.where(mask, ids, (ids + 3) % 20)
    np.testing.assert_allclose(model.embed_text(changed, mask).numpy(), together, atol=1e-6)
    for i in range(5):
        length = int(mask[i].astype("int64").sum())
        alone = model.embed_text(ids[i : i + 1, :length], mask[i : i + 1, :length]).numpy()
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_gradients_reach_every_parameter_as_finite_differences_say():
    model = DualEncoder(SIZES)
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    batch = pairs()
    loss(model, *batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert np.abs(parameter.grad.numpy()).max() > 0, name
    for parameter in (
        model.image_projection.weight,
        model.patch_embedding.weight,
        model.text_encoder.layers[0].mlp.up.weight,
        model.text_encoder.layers[0].attention.value.weight,
    ):
        gradient = parameter.grad.numpy()
        value, direction = parameter.numpy(), np.sign(gradient).astype(np.float32)
        results = []
        for step in (1e-4, -1e-4):
            parameter.set_value(value + step * direction)
            results.append(loss(model, *batch)["loss"].item())
        parameter.set_value(value)
        assert (results[0] - results[1]) / 2e-4 == pytest.approx(float(np.abs(gradient).sum()), rel=0.03)


class Colours:
    """A scorer that knows red, green and blue."""

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        mean = images.mean((1, 2)).astype(np.float32)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([np.eye(3, dtype=np.float32)["红绿蓝".index(text)] for text in texts])


def test_reranking_and_scores():
    images = [np.full((4, 4, 3), colour, np.uint8) for colour in ([0, 0, 200], [200, 0, 0], [100, 100, 0])]
    assert rerank(Colours(), images, "红") == [1, 2, 0]
    assert rerank(Colours(), images, "蓝") == [0, 1, 2], "equal ones stay in order"
    found = scores(Colours(), np.stack(images), ["红", "红", "红"])
    np.testing.assert_allclose(found, [0.5, 1, (1 + 0.5**0.5) / 2], rtol=1e-6)


def test_a_saved_dual_encoder_is_the_same(tiny_dual_encoder, tmp_path):
    scorer = load_scorer(tiny_dual_encoder)
    assert isinstance(scorer, DualEncoderScorer)
    scorer.save_pretrained(tmp_path / "saved")
    again = load_scorer(str(tmp_path / "saved"))
    images, texts = np.random.default_rng(0).integers(0, 256, [70, 16, 16, 3], np.uint8), ["红色", "蓝" * 40, "一"] * 30
    np.testing.assert_array_equal(again.embed_images(images), scorer.embed_images(images))
    np.testing.assert_array_equal(again.embed_texts(texts), scorer.embed_texts(texts))
    np.testing.assert_allclose(scorer.embed_texts(texts)[3], scorer.embed_texts(["红色"])[0], atol=1e-5)
    with pytest.raises(ValueError, match="exists already"):
        scorer.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"\[N, 16, 16, 3\]"):
        scorer.embed_images(np.zeros((1, 8, 8, 3), np.uint8))


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


def test_a_trained_dual_encoder_tells_colours(trained):
    scorer = load_scorer(trained)
    images = []
    for colour in ([255, 0, 0], [0, 160, 0], [0, 0, 255]):
        image = np.full((16, 16, 3), 255, np.uint8)
        image[:8, :8] = colour
        images.append(image)
    fits = [scores(scorer, np.stack(images), [f"{name}色方块一"] * 3) for name in "红绿蓝"]
    assert [int(row.argmax()) for row in fits] == [0, 1, 2]
    assert 0 <= np.min(fits) <= np.max(fits) <= 1


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
    images, texts = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8), ["红", "红色", "色"]
    similarity = scorer.embed_images(images) @ scorer.embed_texts(texts).T
    inputs = processor(text=texts, images=[Image.fromarray(image) for image in images], return_tensors="pd", padding=True)
    model.eval()
    with paddle.no_grad():
        expected = model(**inputs).logits_per_image / model.temperature.exp()
    np.testing.assert_allclose(similarity, expected.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="cannot get ErnieViL"):
        load_scorer("ernie_vil-of-nobody")
