"""Parity with ruDALL-E's own code: from a converted checkpoint the same logits for every slot and the same tokens drawn."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors import safe_open

from ppvilg.checkpoint import check_shapes
from ppvilg.config import CodebookConfig, VQGANConfig
from ppvilg.convert import rudalle
from ppvilg.convert.rudalle import convert_rudalle
from ppvilg.folder import ImageTokenizerConfig
from ppvilg.generate.engine import generate_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.batch import pad_prompts
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG
from ppvilg.pipeline import ViLGPipeline
from tests.convert.test_taming import SMALL, write_original

torch = pytest.importorskip("torch")
BPE = Path(__file__).parent / "bpe.model"
TEXT, CODES, SIDE = 16, 24, 16
PROMPTS = {
    "красный дом у моря": [2, 107, 73, 4, 23, 55, 15, 19, 3],
    "Белый кот 😀😀 и ёжик": [2, 76, 106, 4, 1, 4, 17, 4, 28, 31, 17, 11, 3],
    "a blue cat": [2, 64, 4, 48, 45, 36, 26, 4, 47, 25, 37, 3],
}
"""Texts, and their ids by YouTokenToMe 1.0.6 itself."""
SIZES = {"num_layers": 7, "hidden_size": 48, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def original_model():
    """rudalle's `DalleModel`. The package itself needs a huggingface_hub of 2021, this module does not."""
    spec = importlib.util.find_spec("rudalle")
    if spec is None:
        pytest.skip("rudalle is not installed")
    root = Path(spec.origin).parent
    for name, folder in (("rudalle", root), ("rudalle.dalle", root / "dalle")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    yield importlib.import_module("rudalle.dalle.model").DalleModel
    for name in [name for name in sys.modules if name.partition(".")[0] == "rudalle"]:
        del sys.modules[name]


def build(original_model, version: str = "v3", **sizes):
    """One with random weights, as far from their start as trained ones are."""
    torch.manual_seed(0)
    dropouts = dict.fromkeys(("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob"), 0.0)
    model = original_model(
        device="cpu",
        vocab_size=120 + TEXT,
        text_seq_length=TEXT,
        image_tokens_per_dim=SIDE,
        image_vocab_size=CODES,
        cogview_sandwich_layernorm=True,
        cogview_pb_relax=True,
        is_bool_mask=False,
        mlp_activation="gelu",  # the same as its gelu_jit, which is compiled anew for each length
        hf_version=version,
        **dropouts,
        **(SIZES | sizes),
    ).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """A folder with the image tokenizer's checkpoint, a small network taken for ruDALL-E's; small sizes are known."""
    network = VQGANConfig(
        channels=SMALL["ch"],
        channel_multipliers=SMALL["ch_mult"],
        attention_resolutions=SMALL["attn_resolutions"],
        latent_channels=24,
        codebook=CodebookConfig(CODES, 24, learning="gumbel"),
    )
    monkeypatch.setattr(rudalle, "IMAGE_TOKENIZER", ImageTokenizerConfig(network, SIDE * network.downsampling))
    monkeypatch.setattr(rudalle, "HEADS", {(7, 48): 4})
    write_original(tmp_path, True, SMALL | {"resolution": SIDE * network.downsampling}, 24, CODES)
    return tmp_path


def converted(folder: Path, state: dict) -> str:
    torch.save(state, folder / "pytorch_model.bin")
    return convert_rudalle(folder / "pytorch_model.bin", BPE, folder / "last.ckpt", folder / "out")


def drawn(original, texts: np.ndarray) -> np.ndarray:
    """The likeliest tokens, as rudalle.pipelines.generate_images draws them, with its caches."""
    out, cache = torch.tensor(texts), None
    mask = torch.tril(torch.ones(len(texts), 1, TEXT + SIDE**2, TEXT + SIDE**2))
    with torch.no_grad():
        for _ in range(SIDE**2):
            logits, cache = original(out, mask, use_cache=True, cache=cache)
            out = torch.cat([out, logits[:, -1, original.vocab_size :].argmax(-1, keepdim=True)], 1)
    return out[:, TEXT:].numpy()


def test_every_logit_and_every_token(original_model, small, capsys):
    original = build(original_model)
    said = converted(small, original.state_dict())
    assert said == f"{small / 'out'}: 7 layers of width 48, 16x16 image tokens"
    pipe = ViLGPipeline.from_pretrained(small / "out")
    texts = pipe.encode_prompts(list(PROMPTS))
    assert texts == list(PROMPTS.values())

    images = np.random.default_rng(0).integers(0, CODES, [3, SIDE**2])
    padded = np.array([ids + [0] * (TEXT - len(ids)) for ids in texts])
    with torch.no_grad():
        mask = torch.tril(torch.ones(3, 1, TEXT + SIDE**2, TEXT + SIDE**2))
        expected = original(torch.tensor(np.concatenate([padded, images], 1)), mask)[0].numpy()
    prompt, prompt_mask = map(paddle.to_tensor, pad_prompts(texts, pipe.text_tokenizer.pad, pipe.config.transformer))
    with paddle.no_grad():
        states = pipe.model.hidden_states(prompt, prompt_mask, paddle.to_tensor(images), Direction.TEXT_TO_IMAGE)
        states = paddle.concat(list(states), 1)
        found = paddle.concat([pipe.model.text_logits(states), pipe.model.image_logits(states)], -1).numpy()
    split = original.vocab_size
    parts = {"of texts": (slice(TEXT), slice(split)), "of images": (slice(TEXT, None), slice(split, None))}
    lines = []
    for part, (slots, tokens) in parts.items():
        ours, theirs = found[:, slots, tokens], expected[:, slots, tokens]
        lines.append(f"logits {part}: largest {abs(theirs).max():.1f}, largest difference {abs(ours - theirs).max():.1e}")
    print("\n".join(lines))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)

    *_, output = generate_images(pipe.model, texts, pipe.text_tokenizer, [0] * 3, Sampling(0))
    np.testing.assert_array_equal(output.tokens, drawn(original, padded))
    assert all(len(set(tokens)) > 3 for tokens in output.tokens.tolist()), "the weights say something"
    assert pipe(next(iter(PROMPTS))).images[0].size == (64, 64)


def test_half_precision_stays_half_precision(original_model, small):
    original = build(original_model)
    converted(small, original.half().state_dict())
    with safe_open(small / "out" / "model.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118, it is no mapping
    pipe = ViLGPipeline.from_pretrained(small / "out")
    weight = pipe.model.head.image.weight
    assert weight.dtype == paddle.float32
    np.testing.assert_array_equal(
        weight.numpy(), original.to_logits[1].weight[original.vocab_size :].detach().float().numpy().T
    )


def test_a_checkpoint_without_masks_does_not_tell_its_version(original_model, small):
    state = build(original_model).state_dict()
    said = converted(small, {name: tensor for name, tensor in state.items() if not name.endswith("_mask")})
    assert "warning" in said
    assert "does not tell its version" in said
    assert ViLGPipeline.from_pretrained(small / "out").config.transformer.layers == 7


def test_what_is_refused(original_model, small):
    def refused(state: dict, *said: str) -> None:
        with pytest.raises(ValueError, match="pytorch_model") as caught:
            converted(small, state)
        assert all(part in str(caught.value) for part in said), caught.value
        assert not (small / "out").exists()

    refused(build(original_model, "v2").state_dict(), "convolution mask that is not version 3's", "Malevich")
    refused(build(original_model, num_layers=5).state_dict(), "5 layers of width 48", "7 of width 48")
    state = build(original_model).state_dict()
    refused({"encoder.weight": torch.zeros(2)}, "holds no ruDALL-E but encoder.weight")
    refused({name: tensor for name, tensor in state.items() if "dense_h_to_4h" not in name}, "dense_h_to_4h")
    refused(state | {"text_embeddings.weight": torch.zeros(150, 48)}, "has 120 tokens", "reads 134")


@pytest.mark.parametrize("sizes", [(24, 2048), (64, 3840), (12, 768)])
def test_published_sizes(sizes, monkeypatch):
    """Their weights' shapes, without their memory; that they are folded is left out."""
    layers, hidden = sizes

    def zeros(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.float32(0), shape)

    monkeypatch.setattr(rudalle, "_folded", lambda bias, *_: bias)
    state = {
        "text_embeddings.weight": zeros(16384 + 128, hidden),
        "image_embeddings.weight": zeros(8192, hidden),
        "text_pos_embeddings.weight": zeros(129, hidden),
        "image_row_embeddings.weight": zeros(32, hidden),
        "image_col_embeddings.weight": zeros(32, hidden),
        "to_logits.1.weight": zeros(16384 + 128 + 8192, hidden),
        "to_logits.1.bias": zeros(16384 + 128 + 8192),
    }
    norms = "input_layernorm", "before_first_addition_layernorm", "post_attention_layernorm", "before_second_addition_layernorm"
    linears = {"attention.query_key_value": (3, 1), "attention.dense": (1, 1)}
    linears |= {"mlp.dense_h_to_4h": (4, 1), "mlp.dense_4h_to_h": (1, 4)}
    for i in range(layers):
        own = f"transformer.layers.{i}"
        for name in norms:
            state |= {f"{own}.{name}.{part}": zeros(hidden) for part in ("weight", "bias")}
        for name, (outputs, inputs) in linears.items():
            state[f"{own}.{name}.weight"] = zeros(outputs * hidden, inputs * hidden)
            state[f"{own}.{name}.bias"] = zeros(outputs * hidden)
    for name in ("transformer.final_layernorm", "to_logits.0"):
        state |= {f"{name}.{part}": zeros(hidden) for part in ("weight", "bias")}
    config = rudalle._config(state, Path("pytorch_model.bin"))
    assert (config.layers, config.hidden, config.image_length, config.max_text_length) == (layers, hidden, 1024, 128)
    assert [config.kinds[i] for i in (0, 1, 2, -1)] == ["row", "column", "row", "convolution"]
    assert config.kinds.count("column") == layers // 4
    with paddle.LazyGuard():
        expected = {name: parameter.shape for name, parameter in ViLG(config).state_dict().items()}
    check_shapes({name: array.shape for name, array in rudalle._renamed(state, config)}, expected, "")
