"""From logits to a token: temperature, top-k, top-p, and noise that belongs to a sample, not to its batch."""

from dataclasses import dataclass

import numpy as np
import paddle

from ppvilg.ops import from_numpy
from ppvilg.options import check_count, check_number, check_temperature


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    A temperature of 0 takes the likeliest token; 0 for `top_k` and 1 for `top_p` mean no limit; a `guidance` of 1 means none,
    0 ignores the text (images only).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self):
        check_temperature(self.temperature)
        check_count("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ValueError("top_p is 0: expected a probability above 0 and at most 1")
        check_number("guidance", self.guidance, 0, 1000)


class Noise:
    """Gumbel noise for each sample of a batch from its own seed, so that a sample does not depend on the batch around it."""

    def __init__(self, seeds: list[int]):
        self._generators = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    @classmethod
    def joined(cls, noises: list["Noise"]) -> "Noise":
        """The samples of several batches one after another; drawing from it goes on with theirs."""
        joined = cls([])
        joined._generators = [generator for noise in noises for generator in noise._generators]
        return joined

    def draw(self, width: int) -> np.ndarray:
        """The next float32 [B, width]."""
        # If E is exponential, -log E is Gumbel; numpy draws exponentials several times faster.
        exponentials = [generator.standard_exponential(width, dtype=np.float32) for generator in self._generators]
        return -np.log(np.maximum(np.stack(exponentials), np.finfo(np.float32).tiny))


def guided(logits: paddle.Tensor, without_text: paddle.Tensor, scale: float) -> paddle.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, with the scale as 1 + w): l_empty + scale · (l - l_empty), [B, V]."""
    return without_text + scale * (logits - without_text)


def keep_top_k(logits: paddle.Tensor, k: int) -> paddle.Tensor:
    """[B, V] with all but the k largest of each row at -inf (ties with the k-th are kept)."""
    if not 0 < k < logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k)[0][:, -1:]
    return paddle.where(logits < smallest_kept, paddle.full([], -np.inf), logits)


def keep_top_p(logits: paddle.Tensor, p: float) -> paddle.Tensor:
    """[B, V] with -inf outside each row's smallest set of tokens whose probabilities add up to at least p."""
    if p >= 1:
        return logits
    ordered = paddle.sort(logits, axis=-1, descending=True)
    smallest_kept = paddle.where(likelier(ordered) < p, ordered, paddle.full([], np.inf)).min(-1, keepdim=True)
    return paddle.where(logits < smallest_kept, paddle.full([], -np.inf), logits)


def likelier(ordered: paddle.Tensor) -> paddle.Tensor:
    """For each of the logits [B, V], the largest first, the probability of those before it."""
    # Not the sum up to it minus its own, which oneDNN, that exported programs may run on, computes wrongly.
    sums = paddle.nn.functional.softmax(ordered).cumsum(-1)
    return paddle.concat([paddle.zeros_like(sums[:, :1]), sums[:, :-1]], axis=-1)


def sample(logits: paddle.Tensor, sampling: Sampling, noise: Noise) -> paddle.Tensor:
    """One token for each row of logits float [B, V]: int64 [B].

    Adding Gumbel noise and taking the largest draws from the softmax (Gumbel-max trick).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = keep_top_p(keep_top_k(logits / sampling.temperature, sampling.top_k), sampling.top_p)
    return (logits + from_numpy(noise.draw(logits.shape[-1]))).argmax(-1)
