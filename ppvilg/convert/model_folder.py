"""A transformer's folder from arrays, without the model in memory."""

from pathlib import Path

import paddle

from ppvilg.checkpoint import Arrays, check_weights, save_arrays
from ppvilg.folder import WEIGHTS, PipelineConfig, new_folder, write_config
from ppvilg.model.vilg import ViLG
from ppvilg.text import TextTokenizer
from ppvilg.vqgan.folder import save_vqgan
from ppvilg.vqgan.model import VQGAN


def write_transformer(
    out: Path, config: PipelineConfig, weights: Arrays, source: Path, text_tokenizer: TextTokenizer, vqgan: VQGAN
) -> None:
    """Write a new folder that `from_pretrained` reads; the weights are by the names of `ViLG` and keep their precision.

    Raises `ValueError`, naming their `source`, for weights that are not those of the config's model.
    """
    with paddle.LazyGuard():
        shapes = {name: tensor.shape for name, tensor in ViLG(config.transformer).state_dict().items()}
    check_weights(weights, shapes, str(source))
    with new_folder(out) as folder:
        save_arrays(weights, folder / WEIGHTS)
        save_vqgan(vqgan, folder / "tokenizer")
        (folder / "text").mkdir()
        text_tokenizer.save(folder / "text")
        write_config(config, folder)
