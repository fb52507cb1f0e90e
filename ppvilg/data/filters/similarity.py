"""The paper's filter on meaning: image and text have a similarity above 0.5, of 0 to 1 (ERNIE-ViLG, on its data)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from ppvilg.config.models import STRICT, Probability
from ppvilg.data.filters.pairs import Check, Pair, ReadyFilter, Verdict

if TYPE_CHECKING:
    from ppvilg.dual_encoder import Scorer

_PRETRAINED_SIDE = 224
"""What PaddleNLP's ErnieViL scales all images to."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Drops captions that don't fit their image, by the score of a dual encoder, (1 + cosine) / 2.

    What 0.5 means depends on the model: the paper's is not published. Look at the scores of one's own before choosing.
    """

    __pydantic_config__ = STRICT
    filter: Literal["similarity"] = "similarity"
    model: str
    """Folder of a dual encoder, a training run of one, or a name as `ernie_vil-2.0-base-zh` of PaddleNLP."""
    above: Probability = 0.5
    languages: list[str] = field(default_factory=lambda: ["zh"])
    """Of the captions that are looked at; the others stay."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`; raises `ValueError` where there is no such model."""
        from ppvilg.dual_encoder import DualEncoderScorer, load_scorer

        scorer = load_scorer(self.model)
        own = isinstance(scorer, DualEncoderScorer)
        side = scorer.config.dual_encoder.image_size if own else _PRETRAINED_SIDE
        return ReadyFilter(self.filter, self._check(scorer, side), needs_image=True, side=side)

    def _check(self, scorer: "Scorer", side: int) -> Check:
        def check(pairs: Sequence[Pair]) -> list[Verdict]:
            texts = [[text for language, text in pair.captions() if language in self.languages] for pair in pairs]
            looked_at = [i for i, some in enumerate(texts) if some]
            if not looked_at:
                return [Verdict()] * len(pairs)
            # Each image once, however many captions it has.
            images = scorer.embed_images(np.stack([pairs[i].squares[side] for i in looked_at]))
            embeddings = scorer.embed_texts([text for some in texts for text in some])
            rows = np.repeat(np.arange(len(looked_at)), [len(texts[i]) for i in looked_at])
            fits = iter((1 + (images[rows] * embeddings).sum(1)) / 2 > self.above)
            reason = f"similarity {self.above:g} or less"
            return [
                Verdict(
                    captions=tuple(
                        None if language not in self.languages or next(fits) else reason for language, _ in pair.captions()
                    )
                )
                for pair in pairs
            ]

        return check
