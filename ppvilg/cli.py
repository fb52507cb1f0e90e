"""What the command-line tools share: mistakes of the user become one line and exit code 2."""

import sys
from collections.abc import Callable

from ppvilg.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Call a tool's `main` and exit with its code."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)
