"""The command `ppvilg-server`, which is also deploy/serve.py: options from a file, from arguments, or both."""

import argparse
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal

from ppvilg.cli import compute_options, run
from ppvilg.config.load import check_mapping, read_mapping
from ppvilg.config.models import STRICT
from ppvilg.server.settings import Settings, read_api_keys

_DESCRIPTION = """Serve a model over HTTP: an API, a page, and the forms of Paddle Serving and PaddleHub.

ppvilg-server --model runs/vilg_emoji --dual-encoder runs/dual_encoder_emoji
ppvilg-server --config server.yml --port 8001
"""


@dataclass(frozen=True)
class ServerConfig(Settings):
    """All that the command can be told; a YAML file has these keys."""

    __pydantic_config__ = STRICT
    model: str = "runs/vilg_emoji"
    dual_encoder: str | None = None
    api_keys_file: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    adapters: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    engine: Literal["auto", "paddle", "onnxruntime"] = "auto"
    threads: int | None = None


_HELP = {
    "model": "folder of a model, a training run or an export",
    "dual_encoder": "what chooses among candidates and scores: folder of a dual encoder, or ernie_vil-2.0-base-zh",
    "lora": "folder of an adapter that is added to the model's weights for all requests",
    "lora_scale": "its strength, and that of the adapters",
    "adapters": "an adapter that requests may name as lora; may be given several times",
    "api_keys_file": "file with an API key on each line; PPVILG_API_KEYS may hold more",
    "host": "address to listen on",
    "port": "port of HTTP",
    "grpc_port": "port for Paddle Serving's gRPC clients",
    "capacity": "sequences that are decoded together; a picture takes one, with guidance two",
    "queue": "sequences that may wait; what would go beyond is refused with 503",
    "deadline": "seconds after which a request is given up with 504",
    "rate": "requests of each key or address, as 5/second or 5/second;1000/day",
    "max_connections": "connections at a time; the next ones are answered with 503",
    "max_body": "bytes of a request",
    "max_characters": "characters of a prompt",
    "max_pixels": "pixels of a picture that is sent",
    "max_n": "pictures or captions of one request",
    "max_candidates": "pictures that are drawn for the best of them",
    "device": "what to compute on, cpu, gpu or gpu:N",
    "precision": "of the transformer: auto, fp32, bf16, fp16, or int8 for an export with --onnx",
    "engine": "what runs an export: auto, paddle or onnxruntime",
    "threads": "of a CPU",
}


def main() -> None:
    """Read the options, load the models and serve until a signal comes."""
    config = _config(_parser().parse_args())
    settings = replace(config, api_keys=config.api_keys | read_api_keys(config.api_keys_file))
    options = compute_options(config)

    from ppvilg import ViLGPipeline
    from ppvilg.server.app import create_app
    from ppvilg.server.run import serve

    pipeline = ViLGPipeline.from_pretrained(
        config.model, config.dual_encoder, lora=config.lora, lora_scale=config.lora_scale if config.lora else 1.0, **options
    )
    adapters = {name: pipeline.with_adapter(folder, config.lora_scale) for name, folder in config.adapters.items()}
    serve(create_app(pipeline, settings, adapters), settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--config", metavar="FILE", help="YAML with any of the options below, with _ for -")
    known = {field.name: field for field in fields(ServerConfig)}
    for name, text in _HELP.items():
        if name == "adapters":
            parser.add_argument("--adapter", dest=name, action="append", metavar="NAME=FOLDER", help=text)
            continue
        default = known[name].default
        shown = "" if default in (None, "", MISSING) else f" (default: {default})"
        kind = type(default) if default is not None else int if known[name].type == int | None else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text + shown)
    return parser


def _config(arguments: argparse.Namespace) -> ServerConfig:
    given: dict[str, Any] = dict(vars(arguments))
    path = given.pop("config", None)
    tree = read_mapping(path) if path else {}
    origins = dict.fromkeys(tree, path) | {name: f"--{name.replace('_', '-')}" for name in given}
    if "adapters" in given:
        given["adapters"] = dict(_named(text) for text in given["adapters"])
    return check_mapping(tree | given, ServerConfig, origins)


def _named(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ValueError(f"--adapter {text}: expected NAME=FOLDER, e.g. --adapter ink=runs/ink")
    return name, folder


def console() -> None:
    """The entry point of the installed command."""
    run(main)
