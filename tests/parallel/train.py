"""tools/train.py for several processes on one CPU: python -m paddle.distributed.launch ... tests/parallel/train.py -c ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import ppvilg  # noqa: F401  sets paddle's flags
from ppvilg.errors import UserError
from tests.parallel.gloo import cure, leave
from tools.train import main

if __name__ == "__main__":
    cure()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    leave(code)
