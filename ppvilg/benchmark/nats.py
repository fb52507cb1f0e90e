"""What an engine's rounding costs: nats per image token of validation pairs, read step by step as generation does."""

from pathlib import Path

import numpy as np
import paddle
from paddle.nn import functional as F

from ppvilg.config import ViLGExperiment
from ppvilg.data.loader import canonical_caption
from ppvilg.data.splits import open_split
from ppvilg.generate.engine import GenerativeModel
from ppvilg.model.batch import pad_prompts
from ppvilg.model.kv_cache import DecodeState
from ppvilg.model.mask import Direction
from ppvilg.pipeline import ViLGPipeline

_BATCH = 64
_DIRECTION = Direction.TEXT_TO_IMAGE


def nats_lines(config: ViLGExperiment, export: Path, samples: int) -> list[str]:
    """A line for each engine of an export for ONNX Runtime, on the first `samples` validation pairs of a config's data whose
    caption the model can read."""
    engines = {"paddle": ("paddle", "auto"), "onnxruntime": ("onnxruntime", "auto"), "int8": ("onnxruntime", "int8")}
    texts, tokens, lines, exact = [], [], [], None
    for name, (engine, precision) in engines.items():
        pipe = ViLGPipeline.from_pretrained(export, engine=engine, precision=precision)
        if not texts:
            texts, tokens = _pairs(config, pipe, samples)
        nats = image_token_nats(pipe.model, texts, tokens, pipe.text_tokenizer.pad)
        exact = nats if exact is None else exact
        lines.append(f"{name}: {nats:.5f} nats per image token ({nats - exact:+.5f}) on {tokens.size} tokens")
    return lines


def _pairs(config: ViLGExperiment, pipe: ViLGPipeline, samples: int) -> tuple[list[list[int]], np.ndarray]:
    """Token ids of captions, and image tokens int64 [N, n]."""
    source = open_split(config.data, config.data.validation_split, config.train.seed)
    texts, images = [], []
    for i in range(len(source)):
        sample = source[i]
        text = pipe.text_tokenizer.encode(canonical_caption(sample.captions, config.data.languages))
        if len(text) <= pipe.config.transformer.max_text_length and len(texts) < samples:
            texts.append(text)
            images.append(sample.image)
    if not texts:
        raise ValueError(f"{config.data.path} has no validation pair whose caption the model can read")
    return texts, pipe.encode_images(images)


@paddle.no_grad()
def image_token_nats(model: GenerativeModel, texts: list[list[int]], images: np.ndarray, pad: int) -> float:
    """Mean -log p of the tokens of images int64 [N, n], each after its text (token ids) and the tokens before it."""
    total = 0.0
    for first in range(0, len(texts), _BATCH):
        tokens = images[first : first + _BATCH]
        ids, mask = pad_prompts(texts[first : first + _BATCH], pad, model.config)
        states, prefixes = model.prefill(_DIRECTION, paddle.to_tensor(ids), paddle.to_tensor(mask))
        rows = np.arange(len(tokens))
        last = paddle.gather_nd(states, paddle.to_tensor(np.stack([rows, mask.sum(1) - 1], axis=1)))
        state = DecodeState.empty(model.config, _DIRECTION, ids.shape[1], prefixes, mask)
        for i in range(tokens.shape[1]):
            log_p = F.log_softmax(model.image_logits(last)).numpy()
            total -= log_p[rows, tokens[:, i]].astype(np.float64).sum()
            last = model.decode_step(_DIRECTION, state.inputs(tokens[:, i], np.full(len(tokens), i)))
    return total / images.size
