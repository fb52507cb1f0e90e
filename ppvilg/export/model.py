"""The models of `Pipeline` and `MatchingModel`, computed by exported programs."""

from collections.abc import Callable

import numpy as np
import paddle

from ppvilg.config import ViLGExperiment
from ppvilg.export.programs import Programs
from ppvilg.transformer.attention import Part
from ppvilg.transformer.cache import Cache, Source, Step
from ppvilg.transformer.decoder import Decoder
from ppvilg.transformer.pattern import Direction


class ExportedViLG(Decoder):
    """A transformer as a `Decoder`."""

    def __init__(self, config: ViLGExperiment, programs: Programs):
        model = config.transformer
        self.rows, self.columns = config.grid
        self.heads, self.attention = model.heads, model.attention
        self.kinds = model.attention.kinds(model.layers)
        self.reconstructor: Callable[[paddle.Tensor], paddle.Tensor] | None = None
        if model.reconstructor:
            self.reconstructor = lambda hidden: programs("reconstruct", hidden=hidden)[0]
        self._programs = programs

    def read_source(
        self, direction: Direction, ids: paddle.Tensor, slots: paddle.Tensor, parts: dict[str, Part]
    ) -> tuple[paddle.Tensor, list[Source]]:
        """As a `Decoder`."""
        rows, *read = self._programs(f"{direction.value}_source", ids=ids, slots=slots, parts=parts)
        return rows, [Source.of(keys, values) for keys, values in zip(read[::2], read[1::2], strict=True)]

    def read_target(
        self,
        direction: Direction,
        ids: paddle.Tensor,
        slots: np.ndarray,
        steps: dict[str, Step],
        sources: list[Source],
        caches: list[Cache],
    ) -> paddle.Tensor:
        """As a `Decoder`."""
        arguments = {"ids": ids, "slots": slots, "steps": steps, "sources": sources, "caches": caches}
        return self._programs(f"{direction.value}_target", small=True, **arguments)[0]

    def image_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, codebook size]."""
        return self._programs("image_logits", small=True, hidden=hidden)[0]

    def text_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, text vocabulary]."""
        return self._programs("text_logits", small=True, hidden=hidden)[0]


class ExportedVQGAN:
    """An image tokenizer."""

    def __init__(self, programs: Programs):
        self._programs = programs

    def encode(self, pictures: paddle.Tensor) -> paddle.Tensor:
        """Pictures float32 [B, 3, H, W] in [-1, 1] -> ids int64 [B, H/f, W/f]."""
        return self._programs("encode", pictures=pictures)[0]

    def decode(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [B, h, w] -> pictures float32 [B, 3, h·f, w·f], about [-1, 1] but not clipped."""
        return self._programs("decode", ids=ids)[0]


class ExportedMatching:
    """A matching model's two encoders."""

    def __init__(self, programs: Programs):
        self._programs = programs

    def embed_image(self, pictures: paddle.Tensor) -> paddle.Tensor:
        """Float32 [B, 3, H, W] in [-1, 1] -> float32 [B, E] of length 1."""
        return self._programs("matching_image", pictures=pictures)[0]

    def embed_text(self, ids: paddle.Tensor, valid: paddle.Tensor) -> paddle.Tensor:
        """Int64 [B, m] with bool [B, m], True for real tokens, -> float32 [B, E] of length 1."""
        return self._programs("matching_text", ids=ids, valid=valid)[0]
