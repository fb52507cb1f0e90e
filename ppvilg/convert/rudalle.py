"""ruDALL-E: Malevich, models fine-tuned from it, and Kandinsky, all of version 3 (PyPI `rudalle` 1.1.3)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ppvilg.checkpoint import Arrays
from ppvilg.config import AttentionConfig, CodebookConfig, VQGANConfig
from ppvilg.convert.model_folder import write_transformer
from ppvilg.convert.taming import load_taming
from ppvilg.convert.torch_file import read_torch
from ppvilg.folder import ImageTokenizerConfig, PipelineConfig
from ppvilg.model.config import ViLGConfig
from ppvilg.model.mask import Direction
from ppvilg.yttm import YttmText

HEADS = {(24, 2048): 16, (64, 3840): 60, (12, 768): 12}
"""Of the known models, by layers and width: Malevich and what was fine-tuned from it, Kandinsky, and rudalle's `dummy`."""
IMAGE_TOKENIZER = ImageTokenizerConfig(
    VQGANConfig(
        channel_multipliers=[1, 1, 2, 4],
        attention_resolutions=[32],
        codebook=CodebookConfig(8192, 256, learning="gumbel", kl_weight=1e-8),
    ),
    image_size=256,
)
"""The Gumbel VQGAN of rudalle's vqgan.gumbelf8-sber.config.yml."""
_KNOWN = "known are Malevich (pytorch_model_v3.bin), models fine-tuned from it, and Kandinsky, of version 3"
_MASKS = {"row": "row", "col": "column", "conv": "convolution"}


def convert_rudalle(checkpoint: Path, bpe_model: Path, vqgan: Path, out: Path) -> str:
    """ruDALL-E of version 3 (Malevich, Kandinsky): pytorch_model_v3.bin, bpe.model and vqgan.gumbelf8-sber.model.ckpt.

    `out` becomes a folder that `ViLGPipeline.from_pretrained` reads; the transformer's weights stay in the precision of the
    checkpoint. Version 2 (Emojich, and Malevich before it) reads another sequence and wraps its windows around the picture.
    A checkpoint with its attention masks tells which it is; what is returned says so where it has none. Raises `ValueError` for
    version 2, unknown sizes, and files that can't be read.
    """
    state = read_torch(checkpoint, keep_precision=True)
    config = _config(state, checkpoint)
    has_masks = _check_masks(state, config, checkpoint)
    text_tokenizer = YttmText(str(bpe_model))
    free = config.text_vocab_size - config.max_text_length
    if text_tokenizer.size != free:
        raise ValueError(f"{bpe_model} has {text_tokenizer.size} tokens, but {checkpoint} reads {free}: give its own bpe.model")
    image_tokenizer = load_taming(vqgan, IMAGE_TOKENIZER)
    try:
        arrays = dict(_renamed(state, config))
    except KeyError as error:
        raise ValueError(f"{checkpoint} does not hold the expected weights: it lacks {error.args[0]}") from None
    if state:
        raise ValueError(f"{checkpoint} does not hold the expected weights: it has the unknown {min(state)}")
    model = PipelineConfig(config, IMAGE_TOKENIZER.image_size, "yttm", writes_texts=False)
    write_transformer(out, model, arrays, checkpoint, text_tokenizer, image_tokenizer)
    said = f"{out}: {config.layers} layers of width {config.hidden}, {config.rows}x{config.columns} image tokens"
    if has_masks:
        return said
    return f"{said}\nwarning: {checkpoint} does not tell its version; read as version 3, it draws garbage if it is of 2"


def _config(state: Arrays, checkpoint: Path) -> ViLGConfig:
    """The model, whose sizes are those of the weights, but for the number of heads."""
    try:
        text_vocab_size, hidden = state["text_embeddings.weight"].shape
        layers = sum(name.endswith(".input_layernorm.weight") for name in state)
        rows, columns = (len(state[f"image_{axis}_embeddings.weight"]) for axis in ("row", "col"))
        image_vocab_size = len(state["image_embeddings.weight"])
        max_text_length = len(state["text_pos_embeddings.weight"]) - 1  # its last row is of version 2, which prepends a token
    except (KeyError, ValueError):
        found = ", ".join(sorted(state)[:3])
        raise ValueError(f"{checkpoint} holds no ruDALL-E but {found} ...: {_KNOWN}") from None
    if (layers, hidden) not in HEADS:
        sizes = ", ".join(f"{depth} of width {width}" for depth, width in HEADS)
        raise ValueError(f"{checkpoint} holds {layers} layers of width {hidden}, and no ruDALL-E does ({sizes}): {_KNOWN}")
    return ViLGConfig(
        text_vocab_size=text_vocab_size,
        max_text_length=max_text_length,
        image_vocab_size=image_vocab_size,
        rows=rows,
        columns=columns,
        layers=layers,
        hidden=hidden,
        heads=HEADS[layers, hidden],
        attention=AttentionConfig(),  # the paper's plan is this model's
        causal_text=True,
        sandwich_norm=True,
        head_norm=True,
        head_bias=True,
        text_padding="positional",
    )


def _check_masks(state: Arrays, config: ViLGConfig, checkpoint: Path) -> bool:
    """Whether the checkpoint holds its attention masks, which are taken out; raises `ValueError` for other masks."""
    found = {name: mask for name in _MASKS if (mask := state.pop(f"transformer.{name}_mask", None)) is not None}
    for name, mask in found.items():
        expected = config.mask(_MASKS[name], Direction.TEXT_TO_IMAGE, config.max_text_length).mask()
        if mask.shape != expected.shape or (mask.astype(bool) != expected).any():
            kind = _MASKS[name]
            raise ValueError(f"{checkpoint} has a {kind} mask that is not version 3's; Emojich is of version 2: {_KNOWN}")
    return len(found) == len(_MASKS)


def _renamed(state: Arrays, config: ViLGConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by the names of `ViLG`; they are taken out of `state`, and missing ones are a `KeyError`.

    A key's bias drops out of the softmax, a value's is part of the output's.
    """

    def linear(to: str, weight: np.ndarray, bias: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{to}.weight", np.ascontiguousarray(weight.T)  # a copy, so that the original is freed
        if bias is not None:
            yield f"{to}.bias", bias

    def both(name: str) -> tuple[np.ndarray, np.ndarray]:
        return state.pop(f"{name}.weight"), state.pop(f"{name}.bias")

    def norm(to: str, name: str) -> Iterator[tuple[str, np.ndarray]]:
        yield from zip((f"{to}.weight", f"{to}.bias"), both(name), strict=True)

    text = state.pop("text_embeddings.weight")
    yield "embedding.text.weight", text
    yield "embedding.image.weight", state.pop("image_embeddings.weight")
    yield "embedding.text_position.weight", state.pop("text_pos_embeddings.weight")[: config.max_text_length]
    yield "embedding.row_position.weight", state.pop("image_row_embeddings.weight")
    yield "embedding.column_position.weight", state.pop("image_col_embeddings.weight")
    yield "embedding.segment.weight", np.zeros((4, config.hidden), text.dtype)
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"transformer.layers.{i}"
        yield from norm(f"{ours}.norm1", f"{theirs}.input_layernorm")
        yield from norm(f"{ours}.attention_norm", f"{theirs}.before_first_addition_layernorm")
        yield from norm(f"{ours}.norm2", f"{theirs}.post_attention_layernorm")
        yield from norm(f"{ours}.mlp_norm", f"{theirs}.before_second_addition_layernorm")
        (query, key, value), (query_bias, _, value_bias) = (np.split(x, 3) for x in both(f"{theirs}.attention.query_key_value"))
        out, out_bias = both(f"{theirs}.attention.dense")
        yield from linear(f"{ours}.attention.query", query, query_bias)
        yield from linear(f"{ours}.attention.key", key, None)
        yield from linear(f"{ours}.attention.value", value, None)
        yield from linear(f"{ours}.attention.out", out, _folded(out_bias, out, value_bias))
        yield from linear(f"{ours}.mlp.up", *both(f"{theirs}.mlp.dense_h_to_4h"))
        yield from linear(f"{ours}.mlp.down", *both(f"{theirs}.mlp.dense_4h_to_h"))
    yield from norm("head.norm", "transformer.final_layernorm")
    yield from norm("head.logits_norm", "to_logits.0")
    logits, logits_bias = both("to_logits.1")
    for to, part in ("head.text", slice(config.text_vocab_size)), ("head.image", slice(config.text_vocab_size, None)):
        yield from linear(to, logits[part], logits_bias[part])


def _folded(bias: np.ndarray, out: np.ndarray, value_bias: np.ndarray) -> np.ndarray:
    """The output's bias with the value's: attention weights sum to 1, so each query's context holds the value's bias once."""
    folded = bias.astype(np.float32) + out.astype(np.float32) @ value_bias.astype(np.float32)
    return folded.astype(bias.dtype)
