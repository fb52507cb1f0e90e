"""What a model of a config's sizes takes to draw an image, from its folder on, with random weights."""

import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
import paddle

from ppvilg.benchmark.export import start_line
from ppvilg.config import ViLGExperiment
from ppvilg.convert.model_folder import write_transformer
from ppvilg.folder import PipelineConfig
from ppvilg.model.config import vilg_config
from ppvilg.model.vilg import ViLG
from ppvilg.text import WordPieceText
from ppvilg.vqgan.model import VQGAN

_TOKENS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "红", "苹", "果"]


def drawing_line(config: ViLGExperiment) -> str:
    """`start_line` of a folder that is written for it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "random"
        # In a process of its own, whose memory is free again when the model is loaded.
        writer = multiprocessing.get_context("spawn").Process(target=write_random_model, args=(config, folder))
        writer.start()
        writer.join()
        line = start_line(str(folder), "红苹果")
    return line.removeprefix(f"{folder}: ")


def write_random_model(config: ViLGExperiment, out: Path) -> None:
    """A new folder that `from_pretrained` reads; whatever the config's vocabulary is, the text tokenizer knows three
    characters."""
    (out.parent / "vocab.txt").write_text("\n".join(_TOKENS) + "\n", "utf-8")
    model = PipelineConfig(vilg_config(config), config.data.image_size, "wordpiece")
    with paddle.LazyGuard():
        shapes = {name: tensor.shape for name, tensor in ViLG(model.transformer).state_dict().items()}
    rng = np.random.default_rng(0)
    weights = {name: 0.02 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    vqgan = VQGAN(config.vqgan, config.data.image_size)
    write_transformer(out, model, weights, out, WordPieceText(str(out.parent)), vqgan)
