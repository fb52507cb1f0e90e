"""The paper's ablation of end-to-end training (3.1.3): which generator, decoded by which reconstructor."""

import numpy as np
import paddle

from ppvilg.generate.engine import ImageTokens, generate_images
from ppvilg.generate.images import decode_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.batch import pad_prompts
from ppvilg.model.mask import Direction
from ppvilg.pipeline import ViLGPipeline

ROWS = (
    ("two-stage", "two-stage"),
    ("end-to-end", "two-stage"),
    ("end-to-end", "end-to-end"),
    ("gold tokens", "two-stage"),
    ("gold tokens", "end-to-end"),
)
"""(generator, reconstructor). The two-stage reconstructor is the image tokenizer's decoder, the end-to-end one decodes hidden
states; those of gold tokens are the states of the real image's tokens, read with its caption."""

_BATCH = 64


def five_rows(
    two_stage: ViLGPipeline, end_to_end: ViLGPipeline, prompts: list[str], images: np.ndarray, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """For each row images uint8 [N, H, W, 3]: one for each prompt, image i drawn with seed + i, or reconstructed from the real
    images uint8 [N, H, W, 3] of the prompts."""
    end_to_end.check_supported(1.0, "hidden")
    drawn: dict[tuple[str, str], list[np.ndarray]] = {row: [] for row in ROWS}
    for first in range(0, len(prompts), _BATCH):
        part = slice(first, first + _BATCH)
        seeds = [seed + i for i in range(len(prompts))][part]
        drawn[ROWS[0]] += decode_images(two_stage.model, two_stage.vqgan, _generate(two_stage, prompts[part], seeds))
        output = _generate(end_to_end, prompts[part], seeds, return_states=True)
        drawn[ROWS[1]] += decode_images(end_to_end.model, end_to_end.vqgan, output)
        drawn[ROWS[2]] += decode_images(end_to_end.model, end_to_end.vqgan, output, "hidden")
        gold = read_gold(end_to_end, prompts[part], images[part])
        drawn[ROWS[3]] += decode_images(end_to_end.model, end_to_end.vqgan, gold)
        drawn[ROWS[4]] += decode_images(end_to_end.model, end_to_end.vqgan, gold, "hidden")
    return {row: np.stack(own) for row, own in drawn.items()}


def _generate(pipe: ViLGPipeline, prompts: list[str], seeds: list[int], return_states: bool = False) -> ImageTokens:
    texts = pipe.encode_prompts(prompts)
    *_, output = generate_images(pipe.model, texts, pipe.text_tokenizer, seeds, Sampling(), return_states=return_states)
    return output


@paddle.no_grad()
def read_gold(pipe: ViLGPipeline, prompts: list[str], images: np.ndarray) -> ImageTokens:
    """The tokens of real images uint8 [B, H, W, 3] and the hidden states that have read them after their captions."""
    padded = pad_prompts(pipe.encode_prompts(prompts), pipe.text_tokenizer.pad, pipe.config.transformer)
    text, mask = map(paddle.to_tensor, padded)
    tokens = pipe.encode_images(images)
    _, states = pipe.model.hidden_states(text, mask, paddle.to_tensor(tokens), Direction.TEXT_TO_IMAGE)
    return ImageTokens(tokens, paddle.unstack(states, axis=1))
