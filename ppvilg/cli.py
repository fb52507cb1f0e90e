"""What the command-line tools share: mistakes of the user become one line and exit code 2."""

import sys
from collections.abc import Callable


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
