"""ERNIE models as PaddleNLP keeps them, by their name (downloaded) or in a local folder."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ppvilg.config import ErnieSizes, ViLGExperiment
from ppvilg.folder import PipelineConfig, read_config
from ppvilg.text import ErnieText, TextTokenizer

_ENCODER = "text.encoder.model"


def with_encoder_sizes(config: ViLGExperiment, known: str | None = None) -> ViLGExperiment:
    """The experiment with the sizes of the text encoder that it names, so that nothing needs PaddleNLP's folder afterwards; the
    experiment itself where it names none, or has them already. `known`: a run or model whose own sizes serve where it has the
    same encoder.

    Raises `ValueError` where the encoder cannot be had or does not fit the rest.
    """
    encoder = config.text.encoder
    if encoder is None or encoder.sizes is not None:
        return config
    own = None if known is None else read_config(known, PipelineConfig).transformer.text_encoder
    sizes = own.sizes if own is not None and own.model == encoder.model else ernie_sizes(encoder.model)
    config = replace(config, text=replace(config.text, encoder=replace(encoder, sizes=sizes)))
    for key, value, expected in config.conflicts():
        raise ValueError(f"{_ENCODER}: {encoder.model}: {key}: {value!r} does not fit: {expected}")
    return config


def ernie_sizes(name: str) -> ErnieSizes:
    """What the ERNIE model of a text encoder is made of."""
    from paddlenlp.transformers import ErnieConfig

    try:
        kind = ErnieConfig.get_config_dict(name)[0].get("model_type", "ernie")
        found = ErnieConfig.from_pretrained(name)
    except Exception as error:  # the hub clients raise whatever their transport does
        raise _not_loaded(_ENCODER, name, error) from None
    if kind != "ernie":
        raise ValueError(f"{_ENCODER}: {name} is a model of type {kind!r}: give an ERNIE model")
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(ErnieSizes)}
    try:
        return TypeAdapter(ErnieSizes).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{first['loc'][0]}: {first['input']!r} is not supported: {first['msg']}"
        raise ValueError(f"{_ENCODER}: {name}: {what}") from None


def encoder_weights(config: ViLGExperiment, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    """What an experiment's text encoder starts from, under PaddleNLP's names; empty where it is drawn or `train.init_from` has
    one.

    Raises `ValueError` where the weights cannot be had, or the encoder does not know the tokenizer's tokens by the same ids.
    """
    encoder, source = config.text.encoder, config.train.init_from
    if encoder is None:
        return {}
    if encoder.sizes.vocab_size < tokenizer.size:
        raise ValueError(
            f"text.encoder.sizes.vocab_size is {encoder.sizes.vocab_size}, but text.vocabulary has {tokenizer.size}: give at "
            f"least that many"
        )
    if encoder.model is None or (source and read_config(source, PipelineConfig).transformer.text_encoder is not None):
        return {}
    return ernie_weights(encoder.model, tokenizer)


def ernie_weights(name: str, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    """The weights of an ERNIE model without its pooler; raises `ValueError` as `encoder_weights` does."""
    _check_vocabulary(_ENCODER, name, tokenizer)
    state = _load(_ENCODER, name).state_dict()
    return {key: tensor.numpy() for key, tensor in state.items() if not key.startswith("pooler.")}


def ernie_embeddings(name: str, tokenizer: TextTokenizer) -> np.ndarray:
    """The token embeddings float32 [V, width] of an ERNIE model, V at least the tokenizer's size.

    Raises `ValueError` where they cannot be had, or their vocabulary is not the tokenizer's.
    """
    _check_vocabulary("text.embeddings", name, tokenizer)
    return _load("text.embeddings", name).get_input_embeddings().weight.numpy()


def _check_vocabulary(key: str, name: str, tokenizer: TextTokenizer) -> None:
    """Raise `ValueError` unless the vocabulary of an ERNIE model, which a config's key names, is the tokenizer's."""
    try:
        own = ErnieText(name).tokens
    except ValueError:
        raise ValueError(
            f"{key}: there is no vocab.txt in {name}, and no ERNIE model of that name could be downloaded: {_how(key)}"
        ) from None
    if own != tokenizer.tokens:
        different = next((i for i, (a, b) in enumerate(zip(own, tokenizer.tokens, strict=False)) if a != b), None)
        if different is None:
            how = f"which has {len(own)} tokens, text.vocabulary {tokenizer.size}"
        else:
            how = f"whose token {different} is {own[different]!r}, that of text.vocabulary {tokenizer.tokens[different]!r}"
        raise ValueError(f"{key}: {name} belongs to another vocabulary, {how}: set text.vocabulary={name}")


def _load(key: str, name: str):
    """PaddleNLP's model."""
    from paddlenlp.transformers import ErnieModel

    try:
        return ErnieModel.from_pretrained(name)
    except Exception as error:  # the hub clients raise whatever their transport does
        raise _not_loaded(key, name, error) from None


def _not_loaded(key: str, name: str, error: Exception) -> ValueError:
    found = f"{key}: no ERNIE model could be loaded from {name!r} ({type(error).__name__})"
    return ValueError(f"{found}: {_how(key)}")


def _how(key: str) -> str:
    without = key.removesuffix(".model")
    return f"give a local folder with its config, weights and vocab.txt, or go without, -o {without}=null"
