"""Serve a model over HTTP: an API, a page, and the forms of Paddle Serving and PaddleHub.

python deploy/serve.py --model runs/vilg_emoji --dual-encoder runs/dual_encoder_emoji
python deploy/serve.py --model export/vilg_emoji --host 0.0.0.0 --grpc-port 9998 --api-keys keys.txt
"""

import argparse
from dataclasses import fields

from ppvilg.cli import add_compute_arguments, add_lora_arguments, compute_options, run
from ppvilg.server.settings import Settings, read_api_keys

_HELP = {
    "host": "address to listen on",
    "port": "port of HTTP",
    "grpc_port": "port for Paddle Serving's gRPC clients (default: none)",
    "capacity": "sequences that are decoded together; a picture takes one, with guidance two",
    "queue": "sequences that may wait; what would go beyond is refused with 503",
    "deadline": "seconds after which a request is given up with 504",
    "rate": "requests per second for each key or address; 0: no limit",
    "burst": "requests that a quiet client may send at once",
    "max_body": "bytes of a request",
    "max_characters": "characters of a prompt",
    "max_pixels": "pixels of a picture that is sent",
    "max_n": "pictures or captions of one request",
    "max_candidates": "pictures that are drawn for the best of them",
}


def main() -> None:
    """Parse the arguments, load the models and serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="runs/vilg_emoji", help="folder of a model, a training run or an export (default: %(default)s)"
    )
    parser.add_argument(
        "--dual-encoder",
        help="what chooses among candidates and scores: folder of a dual encoder, or ernie_vil-2.0-base-zh (default: none)",
    )
    parser.add_argument(
        "--api-keys", metavar="FILE", help="file with an API key on each line; PPVILG_API_KEYS may hold more (default: no keys)"
    )
    for field in fields(Settings):
        if field.name in _HELP:
            default = "" if field.default is None else " (default: %(default)s)"
            kind = int if field.default is None else type(field.default)
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, default=field.default, help=_HELP[field.name] + default)
    add_lora_arguments(parser)
    add_compute_arguments(parser)
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in _HELP}
    settings = Settings(**chosen, api_keys=read_api_keys(arguments.api_keys))
    options = compute_options(arguments)

    from ppvilg import ViLGPipeline
    from ppvilg.server.app import create_app
    from ppvilg.server.run import serve

    pipeline = ViLGPipeline.from_pretrained(
        arguments.model, arguments.dual_encoder, lora=arguments.lora, lora_scale=arguments.lora_scale, **options
    )
    serve(create_app(pipeline, settings), settings)


if __name__ == "__main__":
    run(main)
