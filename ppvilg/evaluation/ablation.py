"""The paper's ablation of end-to-end training (3.1.3): which generator, painted by which reconstructor."""

import numpy as np
import paddle

from ppvilg.generate.decoding import Written
from ppvilg.generate.painting import paint
from ppvilg.generate.sampling import Sampling
from ppvilg.pipeline import Pipeline
from ppvilg.text import pad_batch
from ppvilg.transformer.pattern import Direction

ROWS = (
    ("two-stage", "two-stage"),
    ("end-to-end", "two-stage"),
    ("end-to-end", "end-to-end"),
    ("gold tokens", "two-stage"),
    ("gold tokens", "end-to-end"),
)
"""(generator, reconstructor). The two-stage reconstructor is the image tokenizer's decoder, the end-to-end one paints hidden
states; those of gold tokens are the states of the real image's tokens, read with its caption."""

_BATCH = 64


def five_rows(
    two_stage: Pipeline, end_to_end: Pipeline, prompts: list[str], images: np.ndarray, seed: int, sampling: Sampling
) -> dict[tuple[str, str], np.ndarray]:
    """For each row images uint8 [N, H, W, 3]: one for each prompt, sample i drawn with seed + i, or redrawn from the real
    images uint8 [N, H, W, 3] of the prompts."""
    made: dict[tuple[str, str], list[np.ndarray]] = {row: [] for row in ROWS}
    for first in range(0, len(prompts), _BATCH):
        part = slice(first, first + _BATCH)
        seeds = [seed + i for i in range(len(prompts))][part]
        written = two_stage.write(prompts[part], seeds, sampling)
        made[ROWS[0]] += paint(two_stage.model, two_stage.vqgan, written)
        written = end_to_end.write(prompts[part], seeds, sampling, read_last=True)
        made[ROWS[1]] += paint(end_to_end.model, end_to_end.vqgan, written)
        made[ROWS[2]] += paint(end_to_end.model, end_to_end.vqgan, written, "hidden")
        gold = read_gold(end_to_end, prompts[part], images[part])
        made[ROWS[3]] += paint(end_to_end.model, end_to_end.vqgan, gold)
        made[ROWS[4]] += paint(end_to_end.model, end_to_end.vqgan, gold, "hidden")
    return {row: np.stack(drawn) for row, drawn in made.items()}


@paddle.no_grad()
def read_gold(pipeline: Pipeline, prompts: list[str], images: np.ndarray) -> Written:
    """The tokens of real images uint8 [B, H, W, 3] and the hidden states that have read them after their captions."""
    direction = Direction.TEXT_TO_IMAGE
    text, valid = map(paddle.to_tensor, pad_batch(pipeline.encode_prompts(prompts), pipeline.text.pad))
    tokens = pipeline.tokens(list(images))
    _, states = pipeline.model.hidden({direction: (text, valid)}, paddle.to_tensor(tokens))
    return Written(tokens, paddle.unstack(states, axis=1))
