"""tools/train.py for several processes on one CPU: python -m paddle.distributed.launch ... tests/parallel/train.py -c ...

With SAVE_WHAT_WAS_LOADED in the environment a resumed run writes the checkpoint that it has read again, before its first step.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import ppvilg  # noqa: F401  sets paddle's flags
from tests.parallel.gloo import cure, leave

cure()

from ppvilg.cli import run  # noqa: E402  the cure comes before Fleet
from ppvilg.train import fleet  # noqa: E402
from ppvilg.train.trainer import Trainer  # noqa: E402
from tools.train import main  # noqa: E402


def save_what_was_loaded() -> None:
    """Let resuming be followed by saving."""
    resume = Trainer.resume

    def resume_and_save(self: Trainer) -> None:
        resume(self)
        self.save()

    Trainer.resume = resume_and_save


if __name__ == "__main__":
    fleet.SEGMENT_SIZE = 100  # stage 3 shares out the small matrices of tests, too
    if "SAVE_WHAT_WAS_LOADED" in os.environ:
        save_what_was_loaded()
    try:
        run(main)
    except SystemExit as end:
        leave(end.code)
