"""ppvilg: one transformer that draws images from text and writes text from images (ERNIE-ViLG), on PaddlePaddle.

from ppvilg import ViLGPipeline
"""

from typing import TYPE_CHECKING

from ppvilg import runtime

if TYPE_CHECKING:
    from ppvilg.pipeline import ViLGPipeline

runtime.prepare()

__version__ = "0.1.0"
__all__ = ["ViLGPipeline"]


def __getattr__(name: str):
    """`ViLGPipeline` when it is first asked for: paddle takes seconds to import."""
    if name == "ViLGPipeline":
        from ppvilg.pipeline import ViLGPipeline

        return ViLGPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
