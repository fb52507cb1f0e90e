"""What the command-line tools share: mistakes of the user become one line and exit code 2."""

import argparse
import sys
from collections.abc import Callable


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tools that load a transformer, for an adapter to it."""
    parser.add_argument("--lora", metavar="FOLDER", help="adapter that is added to the model's weights (LoRA)")
    parser.add_argument("--lora-scale", type=float, default=1.0, metavar="S", help="its strength (default: %(default)s)")


def run(main: Callable[[], int | None]) -> None:
    """Call a tool's `main` and exit with its code."""
    try:
        code = main()
    except ValueError as error:
        code = _refuse(" ".join(str(error).split()))
    except OSError as error:
        if error.filename is None:
            raise
        code = _refuse(f"{error.filename}: {error.strerror}")
    sys.exit(code or 0)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
