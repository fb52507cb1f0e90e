"""Parity with ruDALL-E's own code: from a converted checkpoint the same logits for every slot and the same tokens drawn."""

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
import pytest
from safetensors import safe_open

from ppvilg.checkpoint import check_shapes, checkpoints, load_arrays
from ppvilg.config import CodebookConfig, VQGANConfig, load_config
from ppvilg.convert import rudalle
from ppvilg.convert.rudalle import convert_rudalle
from ppvilg.folder import ImageTokenizerConfig
from ppvilg.generate.engine import generate_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.batch import pad_prompts
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG
from ppvilg.pipeline import ViLGPipeline
from ppvilg.train import train
from tests.convert.test_taming import SMALL, Original, write_original

torch = pytest.importorskip("torch")
BPE = Path(__file__).parent / "bpe.model"
CODES = 24
PROMPTS = {
    "красный дом у моря": [2, 107, 73, 4, 23, 55, 15, 19, 3],
    "Белый кот 😀😀 и ёжик": [2, 76, 106, 4, 1, 4, 17, 4, 28, 31, 17, 11, 3],
    "a blue cat": [2, 64, 4, 48, 45, 36, 26, 4, 47, 25, 37, 3],
}
"""Texts, and their ids by YouTokenToMe 1.0.6 itself."""


class Sizes(NamedTuple):
    """Of a model; `side` is its grid's."""

    layers: int = 7
    hidden: int = 48
    heads: int = 4
    text: int = 16
    side: int = 16

    @property
    def length(self) -> int:
        return self.text + self.side**2


TINY, PUBLISHED_GRID = Sizes(), Sizes(8, 256, 4, text=128, side=32)


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


def build(original_model, sizes: Sizes = TINY, version: str = "v3"):
    """One with random weights, as far from their start as trained ones are."""
    torch.manual_seed(0)
    model = original_model(
        device="cpu",
        num_layers=sizes.layers,
        hidden_size=sizes.hidden,
        num_attention_heads=sizes.heads,
        vocab_size=120 + sizes.text,
        text_seq_length=sizes.text,
        image_tokens_per_dim=sizes.side,
        image_vocab_size=CODES,
        cogview_sandwich_layernorm=True,
        cogview_pb_relax=True,
        is_bool_mask=False,
        mlp_activation="gelu",  # the same as its gelu_jit, which is compiled anew for each length
        hf_version=version,
        **dict.fromkeys(("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob"), 0.0),
    ).eval()
    for name, parameter in model.named_parameters():  # positions say most, so that what is drawn does not repeat itself
        parameter.data.add_((1.0 if "_embeddings" in name else 0.1) * torch.randn_like(parameter))
    return model


class Published(NamedTuple):
    """What else is published with a transformer."""

    folder: Path
    image_tokenizer: Original

    def converted(self, state: dict) -> str:
        torch.save(state, self.folder / "pytorch_model.bin")
        return convert_rudalle(self.folder / "pytorch_model.bin", BPE, self.folder / "last.ckpt", self.out)

    @property
    def out(self) -> Path:
        return self.folder / "out"


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Has sizes known as ruDALL-E's, and a small network as its image tokenizer's."""

    def publish(sizes: Sizes = TINY) -> Published:
        network = VQGANConfig(
            channels=SMALL["ch"],
            channel_multipliers=SMALL["ch_mult"],
            attention_resolutions=SMALL["attn_resolutions"],
            latent_channels=24,
            codebook=CodebookConfig(CODES, 24, learning="gumbel"),
        )
        resolution = sizes.side * network.downsampling
        monkeypatch.setattr(rudalle, "IMAGE_TOKENIZER", ImageTokenizerConfig(network, resolution))
        monkeypatch.setattr(rudalle, "HEADS", {(sizes.layers, sizes.hidden): sizes.heads})
        return Published(tmp_path, write_original(tmp_path, True, SMALL | {"resolution": resolution}, 24, CODES))

    return publish


def read(original, sequences: np.ndarray) -> dict[str, np.ndarray]:
    """What each of its layers makes of sequences [B, text + image], and its logits."""
    found, mask = {}, torch.tril(torch.ones(len(sequences), 1, *[sequences.shape[1]] * 2))
    hooks = [
        layer.register_forward_hook(lambda _, __, made, i=i: found.update({f"layer {i}": made[0].numpy()}))
        for i, layer in enumerate(original.transformer.layers)
    ]
    with torch.no_grad():
        found["logits"] = original(torch.tensor(sequences), mask)[0].numpy()
    for hook in hooks:
        hook.remove()
    return found


def drawn(original, texts: np.ndarray) -> np.ndarray:
    """The likeliest tokens, as rudalle.pipelines.generate_images draws them, with its caches."""
    out, cache, length = torch.tensor(texts), None, original.total_seq_length
    mask = torch.tril(torch.ones(len(texts), 1, length, length))
    with torch.no_grad():
        for _ in range(original.image_seq_length):
            logits, cache = original(out, mask, use_cache=True, cache=cache)
            out = torch.cat([out, logits[:, -1, original.vocab_size :].argmax(-1, keepdim=True)], 1)
    return out[:, texts.shape[1] :].numpy()


def read_by_ours(pipe: ViLGPipeline, texts: list[list[int]], images: np.ndarray) -> dict[str, np.ndarray]:
    """As `read`."""
    model, found = pipe.model, {}
    prompt, mask = map(paddle.to_tensor, pad_prompts(texts, pipe.text_tokenizer.pad, pipe.config.transformer))
    hooks = [
        block.register_forward_post_hook(lambda _, __, made, i=i: found.update({f"layer {i}": made.numpy()}))
        for i, block in enumerate(model.blocks)
    ]
    with paddle.no_grad():
        states = paddle.concat(list(model.hidden_states(prompt, mask, paddle.to_tensor(images), Direction.TEXT_TO_IMAGE)), 1)
        found["logits"] = paddle.concat([model.text_logits(states), model.image_logits(states)], -1).numpy()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("sizes", [TINY, pytest.param(PUBLISHED_GRID, marks=pytest.mark.slow)])
def test_every_logit_and_every_token(original_model, publish, sizes):
    """Prints a table of the differences (pytest -s)."""
    original, published = build(original_model, sizes), publish(sizes)
    said = published.converted(original.state_dict())
    grid = f"{sizes.side}x{sizes.side}"
    assert said == f"{published.out}: {sizes.layers} layers of width {sizes.hidden}, {grid} image tokens"
    pipe = ViLGPipeline.from_pretrained(published.out)
    with pytest.raises(ValueError, match="writes no captions"):
        pipe.check_captions()
    texts = pipe.encode_prompts(list(PROMPTS))
    assert texts == list(PROMPTS.values())

    images = np.random.default_rng(0).integers(0, CODES, [3, sizes.side**2])
    padded = np.array([ids + [0] * (sizes.text - len(ids)) for ids in texts])
    theirs, ours = read(original, np.concatenate([padded, images], 1)), read_by_ours(pipe, texts, images)
    assert ours.keys() == theirs.keys()
    *_, output = generate_images(pipe.model, texts, pipe.text_tokenizer, [0] * 3, Sampling(0))
    expected = drawn(original, padded)
    with torch.no_grad(), paddle.no_grad():
        ids = images.reshape(3, sizes.side, sizes.side)
        theirs["picture"] = published.image_tokenizer.decode(torch.tensor(ids)).numpy()
        ours["picture"] = pipe.vqgan.decode(paddle.to_tensor(ids)).numpy()
    kinds = pipe.config.transformer.kinds
    for name, values in theirs.items():
        title = f"{name}, {kinds[int(name[6:])]}" if name.startswith("layer") else name
        print(f"| {title} | {list(values.shape)} | {abs(values).max():.1f} | {abs(ours[name] - values).max():.1e} |")
        np.testing.assert_allclose(ours[name], values, atol=1e-4, rtol=0, err_msg=name)
    print(f"| tokens drawn with caches | {list(expected.shape)} | | {(output.tokens != expected).sum()} differ |")
    np.testing.assert_array_equal(output.tokens, expected)
    assert all(len(set(tokens)) > CODES // 2 for tokens in expected.tolist()), "the weights say something"


def test_half_precision_stays_half_precision(original_model, publish):
    original, published = build(original_model), publish()
    published.converted(original.half().state_dict())
    with safe_open(published.out / "model.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118, it is no mapping
    pipe = ViLGPipeline.from_pretrained(published.out)
    weight = pipe.model.head.image.weight
    assert weight.dtype == paddle.float32
    np.testing.assert_array_equal(
        weight.numpy(), original.to_logits[1].weight[original.vocab_size :].detach().float().numpy().T
    )


def test_a_checkpoint_without_masks_does_not_tell_its_version(original_model, publish):
    state, published = build(original_model).state_dict(), publish()
    said = published.converted({name: tensor for name, tensor in state.items() if not name.endswith("_mask")})
    assert "warning" in said
    assert "does not tell its version" in said
    assert ViLGPipeline.from_pretrained(published.out).config.transformer.layers == 7


def test_what_is_refused(original_model, publish):
    published = publish()

    def refused(state: dict, *said: str) -> None:
        with pytest.raises(ValueError, match="pytorch_model") as caught:
            published.converted(state)
        assert all(part in str(caught.value) for part in said), caught.value
        assert not published.out.exists()

    refused(build(original_model, version="v2").state_dict(), "convolution mask that is not version 3's", "Malevich")
    refused(build(original_model, Sizes(5)).state_dict(), "5 layers of width 48", "7 of width 48")
    state = build(original_model).state_dict()
    refused({"encoder.weight": torch.zeros(2)}, "holds no ruDALL-E but encoder.weight")
    refused({name: tensor for name, tensor in state.items() if "dense_h_to_4h" not in name}, "dense_h_to_4h")
    refused(state | {"head.weight": torch.zeros(2)}, "has the unknown head.weight")
    refused(state | {"text_embeddings.weight": torch.zeros(150, 48)}, "has 120 tokens", "reads 134")


@pytest.mark.parametrize("sizes", [(24, 2048), (64, 3840), (12, 768)])
def test_published_sizes(sizes, monkeypatch):
    """Their weights' shapes, without their memory; that they are folded is left out."""
    layers, hidden = sizes

    def zeros(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.int8(0), shape)  # the narrowest, since matrices are copied

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
    assert not state


def test_it_learns_chinese_with_its_image_part_frozen(original_model, publish, tiny_data, tmp_path):
    """configs/finetune_rudalle_zh.yml at small sizes: everything but the texts is taken over and stays, then all is trained."""
    published, run = publish(), tmp_path / "run"
    published.converted(build(original_model).state_dict())
    before = load_arrays(published.out / "model.safetensors")
    network = dataclasses.asdict(rudalle.IMAGE_TOKENIZER.vqgan)
    small = {
        "data": {"path": str(tiny_data), "image_size": rudalle.IMAGE_TOKENIZER.image_size, "validation_fraction": 0.25},
        "vqgan": {key: network[key] for key in network if key != "loss"},
        "text": {"vocabulary": str(tiny_data / "vocab.txt"), "vocabulary_size": 40 + TINY.text, "max_length": TINY.text},
        "transformer": {"layers": TINY.layers, "hidden": TINY.hidden, "heads": TINY.heads},
        "train": {"steps": 2, "warmup_steps": 1, "batch_size": 2, "validation_samples": 2, "preview_samples": 2},
    }
    overrides = [f"{section}={json.dumps(values)}" for section, values in small.items()]
    config = load_config(
        "configs/finetune_rudalle_zh.yml", [*overrides, f"train.init_from={published.out}", f"train.output={run}"]
    )
    assert train(config)
    after = load_arrays(checkpoints(run)[-1] / "model.safetensors")
    changed = {name for name in after if before[name].shape != after[name].shape or (before[name] != after[name]).any()}
    texts = {f"embedding.{name}.weight" for name in ("text", "text_position", "segment")}
    assert changed == texts | {"head.text.weight", "head.text.bias"}, "the latter have another number of tokens"
    np.testing.assert_allclose(after["embedding.text.weight"][-16:], before["embedding.text.weight"][-16:], atol=0.01)
    own, then = ViLGPipeline.from_pretrained(run), tmp_path / "then"
    assert own.text_tokenizer.encode("红色方块") != [own.text_tokenizer.unknown] * 6
    assert train(load_config(run / "config.yml", [f"train.init_from={run}", f"train.output={then}", "train.frozen=[]"]))
    last = load_arrays(checkpoints(then)[-1] / "model.safetensors")
    assert (last["blocks.0.mlp.up.weight"] != after["blocks.0.mlp.up.weight"]).any()
