"""An exported model's folder: everything that writing pictures and captions needs, and nothing of training.

export/
  manifest.json          the format's version, what the export was made from, size and checksum of every file
  config.yml             the transformer's resolved config
  weights.safetensors    every weight that a program reads, once
  programs/              *.json, for Paddle Inference
  text/                  the text tokenizer's vocabulary
  matching/              (if a matching model was given) its config.yml and text/
"""

import json
from pathlib import Path

import paddle

from ppvilg import checkpoint
from ppvilg.config import DualEncoderExperiment, ViLGExperiment
from ppvilg.errors import UserError
from ppvilg.export.model import ExportedMatching, ExportedViLG, ExportedVQGAN
from ppvilg.export.programs import Programs
from ppvilg.text import TextTokenizer, saved_text_tokenizer

FORMAT = 1
MANIFEST = "manifest.json"


def is_export(folder: Path) -> bool:
    """Whether a folder says that it is an export."""
    return (folder / MANIFEST).is_file()


def files_of(folder: Path) -> dict[str, dict[str, str | int]]:
    """Size and checksum of every file below a folder but the manifest, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": checkpoint.checksum(path)}
        for path in paths
    }


def read_manifest(folder: Path) -> dict:
    """The manifest of a folder whose files are all as it says; raises `UserError` for what is missing, damaged or of another
    format."""
    again = "export the model again"
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        version, files = manifest["format"], manifest["files"]
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {MANIFEST}: it is no exported model") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / MANIFEST} is damaged: {again}") from None
    if version != FORMAT:
        raise UserError(f"{folder} is an export of format {version}, but this version reads format {FORMAT}: {again}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} lacks {name}: {again}")
        if path.stat().st_size != expected["bytes"] or checkpoint.checksum(path) != expected["sha256"]:
            raise UserError(f"{path} is damaged, its checksum differs from the manifest's: {again}")
    return manifest


def load_parts(folder: Path) -> tuple[ViLGExperiment, ExportedViLG, ExportedVQGAN, TextTokenizer]:
    """What a `Pipeline` is made of; raises `UserError` as `read_manifest` does."""
    read_manifest(folder)
    config = checkpoint.model_config(folder, "vilg")
    programs = _programs(folder)
    return config, ExportedViLG(config, programs), ExportedVQGAN(programs), saved_text_tokenizer(folder, config.text)


def load_matching(folder: Path) -> tuple[DualEncoderExperiment, ExportedMatching, TextTokenizer]:
    """What a `MatchingModel` is made of; raises `UserError` as `read_manifest` does, and where the export has none."""
    read_manifest(folder)
    if not (folder / "matching").is_dir():
        raise UserError(f"{folder} was exported without a matching model: export it with --dual-encoder, or give its run")
    config = checkpoint.model_config(folder / "matching", "dual_encoder")
    return config, ExportedMatching(_programs(folder)), saved_text_tokenizer(folder / "matching", config.text)


def _programs(folder: Path) -> Programs:
    arrays = checkpoint.load_arrays(folder / "weights.safetensors")
    return Programs(folder / "programs", {name: paddle.to_tensor(array) for name, array in arrays.items()})
