"""What the command-line tools share: mistakes of the user become one line and exit code 2."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ppvilg.runtime import set_device, set_threads

# As shells have them.
_INTERRUPTED, _CLOSED_PIPE, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGPIPE, 128 + signal.SIGTERM


class _Terminated(BaseException):
    """SIGTERM as an exception, so that what is half written is removed."""


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tools that load a transformer, for an adapter to it."""
    parser.add_argument("--lora", metavar="FOLDER", help="adapter that is added to the model's weights (LoRA)")
    parser.add_argument("--lora-scale", type=float, default=1.0, metavar="S", help="its strength (default: %(default)s)")


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tools that load a transformer, for what it is computed with."""
    parser.add_argument("--device", metavar="cpu|gpu[:N]", help="what to compute on (default: a GPU if paddle has one)")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16", "int8"],
        default="auto",
        help="of the transformer; int8: of an export with --onnx (default: %(default)s, the model's, on a CPU fp32)",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "paddle", "onnxruntime"],
        default="auto",
        help="what runs an export (default: %(default)s, the fastest when it was exported)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU (default: one for each core, or OMP_NUM_THREADS)")


def compute_options(arguments: Any) -> dict[str, str]:
    """Choose the threads and the device that the arguments, or a config, name; returns precision and engine as
    `ViLGPipeline.from_pretrained` takes them. To be called before anything imports paddle. Raises `ValueError` for what cannot
    be had."""
    if arguments.threads is not None:
        set_threads(arguments.threads)
    if arguments.device is not None:
        set_device(arguments.device)
    return {"precision": arguments.precision, "engine": arguments.engine}


def run(main: Callable[[], int | None]) -> None:
    """Call a tool's `main` and exit with its code."""
    before = signal.getsignal(signal.SIGTERM)
    # Launched processes wait for one another in C++, where Python sees no signal: those it ends at once, as ever.
    if os.environ.get("PADDLE_TRAINERS_NUM", "1") == "1":
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main()
        sys.stdout.flush()
    except ValueError as error:
        code = _refuse(" ".join(str(error).split()))
    except BrokenPipeError:  # of a reader that has what it wants, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still has to write
        code = _CLOSED_PIPE
    except OSError as error:
        if error.filename is None:
            raise
        code = _refuse(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        code = _TERMINATED  # the first process of a container lives on
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code or 0)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated
