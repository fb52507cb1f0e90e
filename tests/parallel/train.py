"""tools/train.py for several processes on one CPU: python -m paddle.distributed.launch ... tests/parallel/train.py -c ...

With SAVE_WHAT_WAS_LOADED in the environment a resumed run writes the checkpoint that it has read again, before its first step.
"""

import inspect
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import ppvilg  # noqa: F401  sets paddle's flags
from ppvilg.errors import UserError
from ppvilg.training import loop
from tests.parallel.gloo import cure, leave
from tools.train import main


def save_what_was_loaded() -> None:
    """Let the first step of the loop be preceded by the loop's own saving."""
    run_step = loop.run_step

    def first_step(task, optimizers, batches, step, rate):
        loop.run_step = run_step
        inspect.currentframe().f_back.f_locals["save"](step)
        return run_step(task, optimizers, batches, step, rate)

    loop.run_step = first_step


if __name__ == "__main__":
    cure()
    if "SAVE_WHAT_WAS_LOADED" in os.environ:
        save_what_was_loaded()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    leave(code)
