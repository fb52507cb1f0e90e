"""ERNIE models as PaddleNLP keeps them, by their name (downloaded) or in a local folder."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ppvilg.config import ErnieSizes, TextEncoderConfig, ViLGExperiment, load_config
from ppvilg.text import ErnieText

_KEY = "text.encoder.model"


def with_encoder_sizes(config: ViLGExperiment, run: Path | None = None) -> ViLGExperiment:
    """The experiment with the sizes of the text encoder that it names, so that nothing needs PaddleNLP's folder afterwards; the
    experiment itself where it names none, or has them already. `run`: one that goes on, whose own sizes serve.

    Raises `ValueError` where the encoder cannot be had or does not fit the rest.
    """
    encoder = config.text.encoder
    if encoder is None or encoder.sizes is not None:
        return config
    own = None if run is None else load_config(run / "config.yml", kind=ViLGExperiment).text.encoder
    sizes = own.sizes if own is not None and own.model == encoder.model else ernie_sizes(encoder.model)
    config = replace(config, text=replace(config.text, encoder=replace(encoder, sizes=sizes)))
    for key, value, expected in config.conflicts():
        raise ValueError(f"{_KEY}: {encoder.model}: {key}: {value!r} does not fit: {expected}")
    return config


def ernie_sizes(name: str) -> ErnieSizes:
    """What an ERNIE model is made of."""
    from paddlenlp.transformers import ErnieConfig

    try:
        kind = ErnieConfig.get_config_dict(name)[0].get("model_type", "ernie")
        found = ErnieConfig.from_pretrained(name)
    except Exception as error:  # the hub clients raise whatever their transport does
        raise _not_loaded(name, error) from None
    if kind != "ernie":
        raise ValueError(f"{_KEY}: {name} is a model of type {kind!r}: give an ERNIE model")
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(ErnieSizes)}
    try:
        return TypeAdapter(ErnieSizes).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{_KEY}: {name}: {first['loc'][0]}: {first['input']!r} is not supported: {first['msg']}") from None


def ernie_weights(name: str) -> dict[str, np.ndarray]:
    """The weights of an ERNIE model, without its pooler, under PaddleNLP's names."""
    from paddlenlp.transformers import ErnieModel

    try:
        model = ErnieModel.from_pretrained(name)
    except Exception as error:
        raise _not_loaded(name, error) from None
    return {key: tensor.numpy() for key, tensor in model.state_dict().items() if not key.startswith("pooler.")}


def check_vocabulary(encoder: TextEncoderConfig, tokenizer: ErnieText) -> None:
    """Raise `ValueError` unless a text encoder knows the text tokenizer's tokens by the same ids."""
    if encoder.model is None:
        if encoder.sizes.vocab_size < tokenizer.size:
            raise ValueError(
                f"text.encoder.sizes.vocab_size is {encoder.sizes.vocab_size}, but text.vocabulary has {tokenizer.size}: "
                f"give at least that many"
            )
        return
    try:
        own = ErnieText(encoder.model).tokens
    except ValueError:
        raise ValueError(
            f"{_KEY}: there is no vocab.txt in {encoder.model}, to compare with text.vocabulary: put it beside its weights"
        ) from None
    if own != tokenizer.tokens:
        raise ValueError(
            f"{_KEY}: the vocabulary of {encoder.model} is not text.vocabulary, so its ids mean other tokens: set "
            f"text.vocabulary={encoder.model}"
        )


def _not_loaded(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{_KEY}: no ERNIE model could be loaded from {name!r} ({type(error).__name__}): give a local folder with its config, "
        f"weights and vocab.txt, or a name that can be downloaded"
    )
