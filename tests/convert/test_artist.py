"""PaddleNLP's Artist, converted: the original's logits, greedy tokens and token ids; what is no Artist is refused."""

import json
import logging
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle
import pytest

from ppvilg.config import CodebookConfig, VQGANConfig
from ppvilg.convert.artist import convert_artist
from ppvilg.convert.paddle_file import read_paddle
from ppvilg.generate.engine import generate_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.batch import pad_prompts
from ppvilg.model.mask import Direction
from ppvilg.pipeline import ViLGPipeline
from ppvilg.text import WordPieceText
from ppvilg.vqgan.folder import save_vqgan
from ppvilg.vqgan.model import VQGAN

VOCABULARY = "data/emoji/vocab.txt"
CODES, SIDE, LENGTH = 96, 4, 12
TEXTS = ["红苹果", "Noto风格的玫瑰", "a Red APPLE, 3 个", "😀é①", "一" * 12]


@pytest.fixture(scope="module")
def paddlenlp():
    logging.getLogger("datasets").setLevel(logging.WARNING)  # it announces at INFO where it finds torch
    return pytest.importorskip("paddlenlp.transformers.artist.modeling")


def paddlenlp_tokenizer(vocabulary, codes: int):
    from paddlenlp.transformers import ArtistTokenizer

    return ArtistTokenizer(str(vocabulary), image_vocab_size=codes)


@pytest.fixture(scope="module")
def tokenizer(paddlenlp):
    return paddlenlp_tokenizer(VOCABULARY, CODES)


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory):
    paddle.seed(0)
    folder = tmp_path_factory.mktemp("image_tokenizer") / "vqgan"
    config = VQGANConfig(8, [1, 2], 1, [8], 8, patch_size=2, codebook=CodebookConfig(CODES, 4))
    save_vqgan(VQGAN(config, 4 * SIDE), folder)
    return folder


def random_artist(paddlenlp, vocabulary: int, positions: int, layers: int, hidden: int, heads: int, spread: float):
    """The original with random weights, biases too."""
    paddle.seed(0)
    config = paddlenlp.ArtistConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = paddlenlp.ArtistForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.set_value(parameter + paddle.randn(parameter.shape) * spread)
    model.eval()
    return model


@pytest.fixture(scope="module")
def original(paddlenlp, tokenizer):
    return random_artist(paddlenlp, CODES + len(tokenizer), LENGTH + SIDE**2, 3, 32, 4, 0.2)


@pytest.fixture(scope="module")
def folder(original, tokenizer, tmp_path_factory):
    """As PaddleNLP saves it."""
    folder = tmp_path_factory.mktemp("artist") / "pai-painter"
    original.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def pipeline(folder, image_tokenizer, tmp_path_factory) -> ViLGPipeline:
    out = tmp_path_factory.mktemp("converted") / "artist"
    assert convert_artist(folder, image_tokenizer, out).endswith("3 layers of width 32, 12 + 16 tokens")
    return ViLGPipeline.from_pretrained(out)


def prompts(tokenizer) -> np.ndarray:
    return np.array([tokenizer(text, max_length=LENGTH)["input_ids"] for text in TEXTS])


def test_the_same_token_ids(pipeline, tokenizer):
    encoded = pipeline.encode_prompts(TEXTS)
    ids, mask = pad_prompts(encoded, pipeline.text_tokenizer.pad, pipeline.config.transformer)
    np.testing.assert_array_equal(ids + CODES, prompts(tokenizer))
    assert mask.all()


@contextmanager
def outputs_of(layers) -> Iterator[dict[str, np.ndarray]]:
    """What each of the layers returns, filled in while they run."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str):
        return lambda _, __, output: found.update({name: output.numpy()})

    hooks = [layer.register_forward_post_hook(keep(f"layer {i}")) for i, layer in enumerate(layers)]
    yield found
    for hook in hooks:
        hook.remove()


@paddle.no_grad()
def assert_equal(pipeline, original, text: np.ndarray) -> None:
    """Of texts with random images: each layer, and the logits of every slot over the whole vocabulary. Prints a table."""
    sizes, model = pipeline.config.transformer, pipeline.model
    image = np.random.default_rng(0).integers(0, sizes.image_vocab_size, [len(text), sizes.image_length])
    with outputs_of(original.gpt.decoder.layers) as theirs:
        theirs["logits"] = original(paddle.to_tensor(np.concatenate([text, image], axis=1))).numpy()
    words, mask = paddle.to_tensor(text - sizes.image_vocab_size), paddle.ones(text.shape, "bool")
    with outputs_of(model.blocks) as ours:
        states = model.hidden_states(words, mask, paddle.to_tensor(image), Direction.TEXT_TO_IMAGE)
    states = paddle.concat(states, axis=1)
    ours["logits"] = paddle.concat([model.image_logits(states), model.text_logits(states)], axis=-1).numpy()
    assert theirs["logits"].std() > 0.5
    for name, expected in sorted(theirs.items(), key=lambda item: list(ours).index(item[0])):
        print(f"| {name} | {list(expected.shape)} | {abs(expected).max():.1f} | {abs(ours[name] - expected).max():.1e} |")
        np.testing.assert_allclose(ours[name], expected, atol=1e-4, rtol=1e-6, err_msg=name)


def test_all_logits(pipeline, original, tokenizer):
    assert_equal(pipeline, original, prompts(tokenizer))


def greedy(pipeline, original, texts: list[str], text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image tokens, ours and the original's, which is kept from text tokens, both with caches."""
    sizes, head = pipeline.config.transformer, original.lm_head.weight
    before, codes = head.numpy(), sizes.image_vocab_size
    head.set_value(np.concatenate([before[:codes], np.zeros_like(before[codes:])]))
    expected, _ = original.generate(
        paddle.to_tensor(text),
        decode_strategy="greedy_search",
        max_new_tokens=sizes.image_length,
        eos_token_id=-1,
        use_cache=True,
    )
    head.set_value(before)
    ids, seeds = pipeline.encode_prompts(texts), [0] * len(texts)
    *_, output = generate_images(pipeline.model, ids, pipeline.text_tokenizer, seeds, Sampling(temperature=0.0))
    return output.tokens, expected.numpy()


def test_greedy_decoding_with_caches(pipeline, original, tokenizer):
    found, expected = greedy(pipeline, original, TEXTS, prompts(tokenizer))
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "hidden", "heads"), [(12, 768, 12), (24, 1024, 16)], ids=["base", "large"])
def test_the_published_sizes(layers, hidden, heads, paddlenlp, tmp_path):
    """With a vocabulary of their size, and without a config file. Prints a table of the differences (pytest -s)."""
    with open(VOCABULARY, encoding="utf-8") as file:
        words = file.read().split("\n")[:-1]
    words += [f"[more{i}]" for i in range(21128 - len(words))]
    (tmp_path / "artist").mkdir()
    (tmp_path / "artist" / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    original = random_artist(paddlenlp, 37512, 288, layers, hidden, heads, 0.03)
    paddle.save(original.state_dict(), str(tmp_path / "artist" / "model_state.pdparams"))
    vqgan = VQGAN(VQGANConfig(8, [1, 1, 1, 1, 2], 1, [16], 8, codebook=CodebookConfig(16384, 4)), 256)
    save_vqgan(vqgan, tmp_path / "vqgan")
    convert_artist(tmp_path / "artist", tmp_path / "vqgan", tmp_path / "out")
    pipeline = ViLGPipeline.from_pretrained(tmp_path / "out")
    tokenizer = paddlenlp_tokenizer(tmp_path / "artist" / "vocab.txt", 16384)
    text = np.array([tokenizer(text)["input_ids"] for text in TEXTS[:2]])
    assert_equal(pipeline, original, text)
    found, expected = greedy(pipeline, original, TEXTS[:2], text)
    print(f"| tokens drawn with caches | {list(expected.shape)} | | {(found != expected).sum()} differ |")
    np.testing.assert_array_equal(found, expected)


def test_it_draws_but_writes_no_captions(pipeline):
    images = pipeline("红苹果", num_images_per_prompt=2).images
    assert [image.size for image in images] == [(16, 16)] * 2
    with pytest.raises(ValueError, match="trained to draw images of texts only"):
        pipeline.caption(images)
    with pytest.raises(ValueError, match="has 13 tokens, but the model reads at most 12"):
        pipeline("一" * 13)


def copied(folder, tmp_path, **changes):
    """The folder with other weights; None: without one."""
    shutil.copytree(folder, tmp_path / "copy")
    weights = read_paddle(folder / "model_state.pdparams") | changes
    weights = {name: array for name, array in weights.items() if array is not None}
    with open(tmp_path / "copy" / "model_state.pdparams", "wb") as file:
        pickle.dump(weights, file, protocol=2)
    return tmp_path / "copy"


def test_files_of_2022(folder, image_tokenizer, pipeline, tmp_path):
    """Another name of the head, the image tokenizer's decoder beside it, and nested arguments."""
    head = read_paddle(folder / "model_state.pdparams")["lm_head.weight"]
    painter = {
        f"vqgan_detokenizer.{name.replace('quantize.', '')}": tensor.numpy()
        for name, tensor in pipeline.vqgan.state_dict().items()
        if name.startswith(("decoder.", "post_quant_conv.", "quantize."))
    }
    old = copied(folder, tmp_path, **{"lm_head.weight": None, "lm_head.decoder_weight": head}, **painter)
    (old / "config.json").unlink()
    inner = {"init_class": "ArtistModel", "num_attention_heads": 4, "hidden_act": "gelu_python"}
    config = {"init_args": [{"init_args": [inner], "init_class": "ArtistForConditionalGeneration"}]}
    (old / "model_config.json").write_text(json.dumps(config | {"init_class": "ArtistForImageGeneration"}))
    convert_artist(old, image_tokenizer, tmp_path / "out")
    again = ViLGPipeline.from_pretrained(tmp_path / "out").model.state_dict()
    for name, tensor in pipeline.model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), again[name].numpy())


def test_what_is_no_artist(folder, image_tokenizer, tmp_path):
    def refused(match, source, tokenizer=image_tokenizer):
        with pytest.raises(ValueError, match=match):
            convert_artist(source, tokenizer, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        if source != folder:
            shutil.rmtree(source)

    other = {"vqgan_detokenizer.post_quant_conv.bias": np.ones(8, "float32")}
    refused("is not the image tokenizer that .* was trained with", copied(folder, tmp_path, **other))
    refused(r"has the unknown decoder\.layers\.0\.x; known are", copied(folder, tmp_path, **{"decoder.layers.0.x": np.ones(1)}))
    refused(r"lacks decoder\.norm\.weight; known are", copied(folder, tmp_path, **{"gpt.decoder.norm.weight": None}))
    refused("holds decoder.* known are", copied(folder, tmp_path, **{"gpt.embeddings.word_embeddings.weight": None}))
    without = copied(folder, tmp_path)
    (without / "config.json").unlink()
    refused("has neither config.json nor model_config.json, and its width is 32: known are", without)
    post_norm = copied(folder, tmp_path)
    (post_norm / "config.json").write_text('{"num_attention_heads": 4, "normalize_before": false}')
    refused("normalize_before is False; only True can be converted", post_norm)
    short = copied(folder, tmp_path)
    (short / "vocab.txt").write_text("[PAD]\n[CLS]\n[SEP]\n[UNK]\n")
    refused(r"has \d+ tokens, but its vocab.txt 4 and the image tokenizer 96, together 100", short)
    dangerous = copied(folder, tmp_path)
    (dangerous / "model_state.pdparams").write_bytes(pickle.dumps({"x": print}))
    refused("it names builtins.print, which is no part of weights", dangerous)
    refused("cannot read .*model_state.pdparams", image_tokenizer)


def test_word_pieces_without_begin_and_end():
    tokenizer = WordPieceText(VOCABULARY)
    assert tokenizer.encode("") == []
    assert tokenizer.decode(tokenizer.encode("Noto风格的红苹果")) == "noto风格的红苹果"
