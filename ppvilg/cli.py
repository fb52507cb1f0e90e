"""What the command-line tools share: mistakes of the user become one line and exit code 2."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_INTERRUPTED, _CLOSED_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # as shells have them


class _Terminated(BaseException):
    """SIGTERM as an exception, so that what is half written is removed."""


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tools that load a transformer, for an adapter to it."""
    parser.add_argument("--lora", metavar="FOLDER", help="adapter that is added to the model's weights (LoRA)")
    parser.add_argument("--lora-scale", type=float, default=1.0, metavar="S", help="its strength (default: %(default)s)")


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
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code or 0)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated
