"""ppvilg: one transformer that writes pictures from text and text from pictures (ERNIE-ViLG), on PaddlePaddle."""

from ppvilg import runtime

runtime.prepare()

__version__ = "0.1.0"
