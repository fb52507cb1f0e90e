"""An exported model's folder: everything that generation needs, and nothing of training.

export/
  manifest.json          the format's version, what the export was made from, size and checksum of every file, and of each
                         program its weights file, inputs and outputs
  onnx/, onnx_int8/      (if asked for) the programs that run for every token, for ONNX Runtime
  README.md              how to run the programs without ppvilg
  config.json            as in a model folder
  programs/              models for Paddle Inference: *.json with *.pdiparams; transformer.pdiparams is that of several
  text/                  the text tokenizer's vocabulary
  dual_encoder/          (if one was given) its config.json and text/
"""

import importlib.util
import json
from pathlib import Path
from typing import Literal

import paddle

from ppvilg import checkpoint
from ppvilg.export.model import ExportedDualEncoder, ExportedViLG, ExportedVQGAN
from ppvilg.export.programs import ONNX, ONNX_INT8, Programs
from ppvilg.folder import PipelineConfig, ScorerConfig, read_config
from ppvilg.text import TextTokenizer, saved_text_tokenizer

FORMAT = 3
Engine = Literal["auto", "paddle", "onnxruntime"]
"""What runs the programs of an export; auto: what its manifest says, on a GPU paddle."""
MANIFEST, README, PROGRAMS, DUAL_ENCODER = "manifest.json", "README.md", "programs", "dual_encoder"


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
    """The manifest of a folder whose files are all as it says; raises `ValueError` for what is missing, damaged or of another
    format."""
    again = "export the model again"
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        version, files = manifest["format"], manifest["files"]
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {MANIFEST}: it is no exported model") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST} is damaged: {again}") from None
    if version != FORMAT:
        raise ValueError(f"{folder} is an export of format {version}, but this version reads format {FORMAT}: {again}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} lacks {name}: {again}")
        if path.stat().st_size != expected["bytes"] or checkpoint.checksum(path) != expected["sha256"]:
            raise ValueError(f"{path} is damaged, its checksum differs from the manifest's: {again}")
    return manifest


def load_export(
    folder: Path, engine: Engine = "auto", precision: str = "auto"
) -> tuple[ExportedViLG, ExportedVQGAN, TextTokenizer, PipelineConfig]:
    """What a `ViLGPipeline` is made of; raises `ValueError` as `read_manifest` does, and for an engine or a precision that the
    export has not or the device does not run."""
    manifest = read_manifest(folder)
    config = read_config(folder, PipelineConfig)
    programs = Programs(folder / PROGRAMS, converted=_converted(folder, manifest, engine, precision))
    text_tokenizer = saved_text_tokenizer(folder, config.text_tokenizer, config.transformer.text_vocab_size)
    return ExportedViLG(config.transformer, programs), ExportedVQGAN(programs), text_tokenizer, config


def _converted(folder: Path, manifest: dict, engine: Engine, precision: str) -> Path | None:
    """The folder of programs for ONNX Runtime; None for Paddle Inference."""
    own, on_cpu = manifest["precision"], paddle.get_device() == "cpu"
    if precision not in ("auto", own, "int8"):
        raise ValueError(f"precision is {precision!r}, but {folder} is an export of {own}: use that, or export it with another")
    if on_cpu and own in ("fp16", "bf16"):
        raise ValueError(f"{folder} is an export of {own}, but on a CPU Paddle computes with float32 only: use a GPU")
    if engine == "auto":
        engine = "onnxruntime" if precision == "int8" else manifest["engine"] if on_cpu else "paddle"
    if engine == "paddle":
        if precision == "int8":
            raise ValueError("precision is int8, which Paddle Inference does not run: use the engine onnxruntime")
        return None
    converted = folder / (ONNX_INT8 if precision == "int8" else ONNX)
    if not converted.is_dir():
        raise ValueError(f"{folder} was exported for Paddle Inference only: export it with --onnx, or use the engine paddle")
    if not on_cpu:
        raise ValueError(f"ONNX Runtime is for the CPU here, not for {paddle.get_device()}: use the engine paddle")
    if importlib.util.find_spec("onnxruntime") is None:
        how = "pip install -r requirements-onnx.txt, or choose the engine paddle"
        raise ValueError(f"{folder} runs on ONNX Runtime, which is not installed: {how}")
    return converted


def load_dual_encoder_export(folder: Path) -> tuple[ExportedDualEncoder, TextTokenizer, ScorerConfig]:
    """What a `DualEncoderScorer` is made of; raises `ValueError` as `read_manifest` does, and where the export has none."""
    read_manifest(folder)
    own = folder / DUAL_ENCODER
    if not own.is_dir():
        raise ValueError(
            f"{folder} was exported without a dual encoder: export it with --dual-encoder, or give the dual encoder's folder"
        )
    config = read_config(own, ScorerConfig)
    text_tokenizer = saved_text_tokenizer(own, config.text_tokenizer, config.dual_encoder.text_vocab_size)
    return ExportedDualEncoder(Programs(folder / PROGRAMS)), text_tokenizer, config
