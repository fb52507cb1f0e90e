"""PaddleHub's module `ernie_vilg` with a model of one's own: the same call, local weights.

from ppvilg.hub import ErnieVilG
module = ErnieVilG("runs/vilg_emoji")
images = module.generate_image(text_prompts=["红苹果"], style="noto", topk=2)
"""

import re
import secrets
from collections import Counter
from pathlib import Path

from PIL import Image

from ppvilg.files import check_folder
from ppvilg.options import check_count, check_texts
from ppvilg.pipeline import ViLGPipeline
from ppvilg.text import styled

NO_STYLE = "探索无限"
"""PaddleHub's name for: no style is put into words."""


class ErnieVilG:
    """A trained model behind the interface of PaddleHub's module."""

    def __init__(self, model: str | Path):
        """`model`: the folder of a model, a run or an export; raises as `ViLGPipeline.from_pretrained` does."""
        self.pipeline = ViLGPipeline.from_pretrained(model)

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
        """`topk` images for each prompt, one prompt's after another's; `visualization` saves them as {text}_{idx}.png.

        `style` is one of the model's `text.styles`; `resolution` may name the model's own, e.g. 64*64. Without a seed every
        call draws others. Raises `ValueError` for an unknown style, another resolution, and prompts the model cannot read.
        """
        prompts = check_texts("text_prompts", text_prompts)
        check_count("topk", topk, 1)
        folder = Path(output_dir)
        if visualization:
            check_folder("output_dir", folder)
        config = self.pipeline.config
        check_resolution(resolution, config.image_size)
        self.pipeline.check_known(prompts)
        texts = [hub_styled(prompt, style, config.styles) for prompt in prompts]
        images = self.pipeline(texts, topk, seed=secrets.randbelow(2**31) if seed is None else seed).images
        if visualization:
            saved = Counter()
            folder.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images):
                name = _file_name(prompts[i // topk])
                image.save(folder / f"{name}_{saved[name]}.png")
                saved[name] += 1
        return images


def hub_styled(prompt: str, style: str | None, styles: dict[str, dict[str, str]]) -> str:
    """As `text.styled`, but None and `NO_STYLE` leave the prompt as it is."""
    return prompt if style in (None, NO_STYLE) else styled(prompt, style, styles)


def check_resolution(resolution: str | None, size: int) -> None:
    """Raise `ValueError` for another resolution than the model's `size` x `size`."""
    if resolution not in (None, f"{size}*{size}"):
        raise ValueError(f"resolution is {str(resolution)[:40]!r}: this model writes {size}*{size}")


def _file_name(text: str) -> str:
    """The text without what a file's name cannot have on any system, not hidden and not too long."""
    return re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", text).strip(". ")[:60] or "_"
