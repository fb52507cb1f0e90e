"""PaddleNLP's Artist (pai-painter-*-zh): a GPT over Chinese text and image tokens."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ppvilg.checkpoint import Arrays
from ppvilg.config import AttentionConfig
from ppvilg.convert.model_folder import write_transformer
from ppvilg.convert.paddle_file import read_paddle
from ppvilg.folder import PipelineConfig
from ppvilg.model.config import ViLGConfig
from ppvilg.text import TextTokenizer, WordPieceText
from ppvilg.vqgan.folder import load_vqgan
from ppvilg.vqgan.model import VQGAN

_HEADS = {768: 12, 1024: 16}
_KNOWN = "known are PaddleNLP's pai-painter-base-zh and its kin (12 layers of width 768) and pai-painter-large-zh (24 of 1024)"

# What our model has no counterpart for, by the config's key, with what means the same as not having it.
_FIXED = {
    "hidden_act": ("gelu", "gelu_python"),
    "hidden_activation": ("gelu", "gelu_python"),
    "normalize_before": (True,),
    "scale_qk_coeff": (1.0,),
    "fuse_attention_qkv": (False,),
}


def convert_artist(folder: Path, image_tokenizer: Path, out: Path) -> str:
    """PaddleNLP's Artist, pai-painter-*-zh: its folder, and that of the image tokenizer (taming's VQGAN f16 16384).

    The folder holds model_state.pdparams and vocab.txt, and model_config.json or config.json where the sizes are not those of a
    published model. `out` becomes a folder that `ViLGPipeline.from_pretrained` reads. Raises `ValueError` if a file can't be
    read, or for another model, vocabulary or image tokenizer.
    """
    source = folder / "model_state.pdparams"
    weights = {name.removeprefix("gpt."): array for name, array in read_paddle(source).items()}
    vqgan, text_tokenizer = load_vqgan(image_tokenizer), WordPieceText(str(folder))
    _check_painter(weights, vqgan, image_tokenizer, source)
    config = PipelineConfig(_config(weights, vqgan, text_tokenizer, folder), vqgan.image_size, "wordpiece", writes_texts=False)
    converted = dict(_converted(weights, config.transformer, source))
    write_transformer(out, config, converted, source, text_tokenizer, vqgan)
    sizes = config.transformer
    return f"{out}: {sizes.layers} layers of width {sizes.hidden}, {sizes.max_text_length} + {sizes.image_length} tokens"


def _config(weights: Arrays, vqgan: VQGAN, text_tokenizer: TextTokenizer, folder: Path) -> ViLGConfig:
    """The model's sizes, by the shapes of its weights; what these do not tell is in the folder's config."""
    try:
        vocabulary, hidden = weights["embeddings.word_embeddings.weight"].shape
        positions = len(weights["embeddings.position_embeddings.weight"])
        inner = weights["decoder.layers.0.linear1.weight"].shape[1]
    except (KeyError, ValueError, IndexError):
        found = ", ".join(sorted(weights)[:3])
        raise ValueError(f"{folder / 'model_state.pdparams'} holds {found} ...: {_KNOWN}") from None
    codes, side = vqgan.config.codebook.size, vqgan.image_size // vqgan.config.downsampling
    if text_tokenizer.size != vocabulary - codes:
        raise ValueError(
            f"{folder} has {vocabulary} tokens, but its vocab.txt {text_tokenizer.size} and the image tokenizer {codes}, "
            f"together {text_tokenizer.size + codes}: {_KNOWN}, with 21128 + 16384"
        )
    if positions <= side * side:
        raise ValueError(f"{folder} has {positions} positions, but an image {side}x{side} tokens: {_KNOWN}, with 32 + 16x16")
    return ViLGConfig(
        text_vocab_size=text_tokenizer.size,
        max_text_length=positions - side * side,
        image_vocab_size=codes,
        rows=side,
        columns=side,
        layers=sum(name.endswith(".linear1.weight") for name in weights),
        hidden=hidden,
        heads=_heads(folder, hidden),
        ffn_multiplier=inner // hidden,
        attention=AttentionConfig(plan=["dense"], last=None),
        causal_text=True,
        image_positions="flat",
        text_padding="visible",
    )


def _heads(folder: Path, hidden: int) -> int:
    """The number of attention heads, by the folder's config, else as the published models have it; raises `ValueError` for a
    config of another model."""
    path = next((folder / name for name in ("config.json", "model_config.json") if (folder / name).is_file()), None)
    if path is None:
        if hidden not in _HEADS:
            raise ValueError(f"{folder} has neither config.json nor model_config.json, and its width is {hidden}: {_KNOWN}")
        return _HEADS[hidden]
    try:
        config = _innermost(json.loads(path.read_text("utf-8")))
        heads = config["num_attention_heads"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not the config of an Artist: it has no num_attention_heads; {_KNOWN}") from None
    for key, allowed in _FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {key} is {config[key]!r}; only {' or '.join(map(repr, allowed))} can be converted")
    return heads


def _innermost(config: dict) -> dict:
    """The base model's arguments, which model_config.json keeps inside those of the model around it."""
    arguments = config.get("init_args")
    return _innermost(arguments[0]) if arguments else config


def _check_painter(weights: Arrays, vqgan: VQGAN, image_tokenizer: Path, source: Path) -> None:
    """Take the image decoder, which the published files hold too, out of the weights, and compare it with the tokenizer's."""
    prefix = "vqgan_detokenizer."
    own = {name.replace("quantize.embedding.", "embedding."): tensor for name, tensor in vqgan.state_dict().items()}
    for name in [name for name in weights if name.startswith(prefix)]:
        array, ours = weights.pop(name), own.get(name.removeprefix(prefix))
        if ours is None or tuple(ours.shape) != array.shape or not np.allclose(ours.numpy(), array, atol=1e-4):
            raise ValueError(
                f"{image_tokenizer} is not the image tokenizer that {source} was trained with: {name} differs; give taming's "
                "VQGAN f16 16384 (vqgan_imagenet_f16_16384)"
            )


def _converted(weights: Arrays, config: ViLGConfig, source: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by the names of `ViLG`. Tokens are numbered images first; a key's bias drops out of the softmax, a value's
    moves into the output's; there are no segments."""
    rest = dict(weights)

    def take(name: str, *others: str) -> np.ndarray:
        found = next((n for n in (name, *others) if n in rest), None)
        if found is None:
            raise ValueError(f"{source} does not hold the expected weights: it lacks {name}; {_KNOWN}")
        return rest.pop(found)

    codes, length = config.image_vocab_size, config.max_text_length
    tokens, positions = take("embeddings.word_embeddings.weight"), take("embeddings.position_embeddings.weight")
    head = take("lm_head.weight", "lm_head.decoder_weight").T  # the second in files of before 2023
    yield "embedding.image.weight", tokens[:codes]
    yield "embedding.text.weight", tokens[codes:]
    yield "embedding.text_position.weight", positions[:length]
    yield "embedding.image_position.weight", positions[length:]
    yield "embedding.segment.weight", np.zeros([4, config.hidden], tokens.dtype)
    yield "head.image.weight", head[:, :codes]
    yield "head.text.weight", head[:, codes:]
    for ours, theirs in (("head.norm", "decoder.norm"), *_layers(config.layers)):
        yield f"{ours}.weight", take(f"{theirs}.weight")
        yield f"{ours}.bias", take(f"{theirs}.bias")
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.attention", f"decoder.layers.{i}.self_attn"
        take(f"{theirs}.k_proj.bias")
        out = take(f"{theirs}.out_proj.weight")
        yield f"{ours}.key.weight", take(f"{theirs}.k_proj.weight")
        yield f"{ours}.value.weight", take(f"{theirs}.v_proj.weight")
        yield f"{ours}.out.weight", out
        yield f"{ours}.out.bias", take(f"{theirs}.out_proj.bias") + take(f"{theirs}.v_proj.bias") @ out
    if rest:
        raise ValueError(f"{source} does not hold the expected weights: it has the unknown {min(rest)}; {_KNOWN}")


def _layers(count: int) -> Iterator[tuple[str, str]]:
    """Of each block what has a weight and a bias there and here."""
    names = {"attention.query": "self_attn.q_proj", "mlp.up": "linear1", "mlp.down": "linear2"}
    for i in range(count):
        for ours, theirs in {"norm1": "norm1", "norm2": "norm2", **names}.items():
            yield f"blocks.{i}.{ours}", f"decoder.layers.{i}.{theirs}"
