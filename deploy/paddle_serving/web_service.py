"""The model as a Paddle Serving pipeline service. How to install and call it: README.md.

python deploy/paddle_serving/web_service.py --model runs/vilg_emoji
"""

import argparse
import asyncio
import os
import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Parse the arguments and serve until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="runs/vilg_emoji", help="folder of a model, a training run or an export (default: %(default)s)"
    )
    parser.add_argument("--dual-encoder", help="folder of a dual encoder, to choose among candidates and score")
    parser.add_argument(
        "--config", default=str(HERE / "config.yml"), help="Paddle Serving's configuration (default: %(default)s)"
    )
    arguments = parser.parse_args()
    # Paddle Serving's messages were generated for an older protobuf, which today's only reads in pure Python.
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    sys.path.insert(0, str(HERE / "shim"))
    serve(arguments.model, arguments.dual_encoder, arguments.config)


def serve(model: str, dual_encoder: str | None, config: str) -> None:
    """Load the model and run the service."""
    from paddle_serving_server.web_service import Op, WebService

    from ppvilg import ViLGPipeline
    from ppvilg.server.engine import Engine
    from ppvilg.server.metrics import Metrics
    from ppvilg.server.paddle_serving import NAME, Service
    from ppvilg.server.requests import JobFactory
    from ppvilg.server.settings import Settings

    settings, pipeline = Settings(), ViLGPipeline.from_pretrained(model, dual_encoder)
    # The op's threads only wait; the engine writes all their pictures in one batch.
    service = Service(Engine(pipeline, {}, Metrics(), settings), JobFactory(pipeline, {}, settings))
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    class VilgOp(Op):
        """Pictures of a prompt, or captions of a picture; an op without a Paddle Serving model works in `preprocess`."""

        def preprocess(self, input_dicts: dict, data_id: int, log_id: int) -> tuple:
            """The answer's values by key, or the number and text of an error."""
            (values,) = input_dicts.values()
            answer = asyncio.run_coroutine_threadsafe(service.answer_values(values, log_id), loop)
            number, message, answered = answer.result()
            return (answered, False, None, "") if number == 0 else ({}, True, number, message)

        def postprocess(self, input_dicts: dict, fetch_dict: dict, data_id: int, log_id: int) -> tuple:
            """Nothing is left to do."""
            return fetch_dict, None, ""

    class VilgService(WebService):
        def get_pipeline_response(self, read_op):
            """One op."""
            return VilgOp(name="vilg", input_ops=[read_op])

    web_service = VilgService(name=NAME)
    web_service.prepare_pipeline_config(config)
    web_service.run_service()


if __name__ == "__main__":
    from ppvilg.cli import run

    run(main)
