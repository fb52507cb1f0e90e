"""The models of `ViLGPipeline` and `DualEncoderScorer`, computed by exported programs."""

from collections.abc import Callable

import paddle

from ppvilg.export.programs import Programs
from ppvilg.model.config import ViLGConfig
from ppvilg.model.kv_cache import DecodeInputs, Prefix
from ppvilg.model.mask import Direction


class ExportedViLG:
    """A transformer, as generation needs it (`GenerativeModel`)."""

    def __init__(self, config: ViLGConfig, programs: Programs):
        self.config = config
        self.reconstructor: Callable[[paddle.Tensor], paddle.Tensor] | None = None
        if config.reconstructor is not None:
            self.reconstructor = lambda states: programs("reconstruct", states=states)[0]
        self._programs = programs

    def prefill(self, direction: Direction, ids: paddle.Tensor, mask: paddle.Tensor) -> tuple[paddle.Tensor, list[Prefix]]:
        """As `ViLG.prefill`."""
        states, *kept = self._programs(f"{direction.value}_prefill", ids=ids, mask=mask)
        return states, [Prefix(keys, values) for keys, values in zip(kept[::2], kept[1::2], strict=True)]

    def decode_step(self, direction: Direction, inputs: DecodeInputs) -> paddle.Tensor:
        """As `ViLG.decode_step`."""
        return self._programs(f"{direction.value}_decode_step", small=True, **vars(inputs))[0]

    def image_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, image vocabulary]."""
        return self._programs("image_logits", small=True, states=states)[0]

    def text_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, text vocabulary]."""
        return self._programs("text_logits", small=True, states=states)[0]


class ExportedVQGAN:
    """An image tokenizer."""

    def __init__(self, programs: Programs):
        self._programs = programs

    def encode(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """Pixels float32 [B, 3, H, W] in [-1, 1] -> ids int64 [B, H/f, W/f]."""
        return self._programs("encode", pixels=pixels)[0]

    def decode(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [B, h, w] -> pixels float32 [B, 3, h·f, w·f], about [-1, 1] but not clipped."""
        return self._programs("decode", ids=ids)[0]


class ExportedDualEncoder:
    """The two encoders of a dual encoder."""

    def __init__(self, programs: Programs):
        self._programs = programs

    def embed_image(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """Float32 [B, 3, H, W] in [-1, 1] -> float32 [B, E] of length 1."""
        return self._programs("embed_image", pixels=pixels)[0]

    def embed_text(self, ids: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        """Int64 [B, m], mask bool [B, m] True for real tokens -> float32 [B, E] of length 1."""
        return self._programs("embed_text", ids=ids, mask=mask)[0]
