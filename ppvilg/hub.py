"""PaddleHub's module `ernie_vilg` with a model of one's own: the same call, local weights.

from ppvilg.hub import ErnieVilG
module = ErnieVilG("runs/vilg_emoji")
pictures = module.generate_image(text_prompts=["红苹果"], style="noto", topk=2)
"""

import re
import secrets
from collections import Counter
from pathlib import Path

from PIL import Image

from ppvilg.errors import UserError
from ppvilg.pictures import save_png
from ppvilg.pipeline import Pipeline
from ppvilg.text import styled

NO_STYLE = "探索无限"
"""PaddleHub's name for: no style is put into words."""


class ErnieVilG:
    """A trained run behind the interface of PaddleHub's module."""

    def __init__(self, model: str | Path):
        """`model`: a transformer run's folder; raises `UserError` as `Pipeline.load` does."""
        self.pipeline = Pipeline.load(model)

    def generate_image(
        self,
        text_prompts: str | list[str],
        style: str | None = NO_STYLE,
        resolution: str | None = None,
        topk: int = 6,
        visualization: bool = True,
        output_dir: str | Path = "ernievilg_output",
        seed: int | None = None,
    ) -> list[Image.Image]:
        """`topk` pictures for each prompt, one prompt's after another's; `visualization` saves them as {text}_{idx}.png.

        `style` is one of the model's `text.styles`; `resolution` may name the model's own, e.g. 64*64. Without a seed every
        call draws others. Raises `UserError` for an unknown style, another resolution, and prompts the model cannot read.
        """
        prompts = [text_prompts] if isinstance(text_prompts, str) else text_prompts
        if topk < 1:
            raise UserError(f"topk is {topk}: give at least 1")
        check_resolution(resolution, self.pipeline.config.data.image_size)
        asked = [hub_styled(prompt, style, self.pipeline.config.text.styles) for prompt in prompts]
        first = secrets.randbelow(2**31) if seed is None else seed
        made = self.pipeline.generate(asked, topk, first)
        if visualization:
            folder, saved = Path(output_dir), Counter()
            folder.mkdir(parents=True, exist_ok=True)
            for prompt, pictures in zip(prompts, made, strict=True):
                name = _file_name(prompt)
                for picture in pictures:
                    save_png(picture, folder / f"{name}_{saved[name]}.png")
                    saved[name] += 1
        return [Image.fromarray(picture) for pictures in made for picture in pictures]


def hub_styled(prompt: str, style: str | None, styles: dict[str, dict[str, str]]) -> str:
    """As `text.styled`, but None and `NO_STYLE` leave the prompt as it is."""
    return prompt if style in (None, NO_STYLE) else styled(prompt, style, styles)


def check_resolution(resolution: str | None, size: int) -> None:
    """Raise `UserError` for another resolution than the model's `size` x `size`."""
    if resolution not in (None, f"{size}*{size}"):
        raise UserError(f"resolution is {resolution[:40]!r}: this model writes {size}*{size}")


def _file_name(text: str) -> str:
    """The text without what a file's name cannot have on any system, not hidden and not too long."""
    return re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", text).strip(". ")[:60] or "_"
