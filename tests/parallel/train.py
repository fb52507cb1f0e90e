"""tools/train.py for several processes on one CPU: python -m paddle.distributed.launch ... tests/parallel/train.py -c ...

With SAVE_WHAT_WAS_LOADED in the environment a resumed run writes the checkpoint that it has read again, before its first step.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import ppvilg  # noqa: F401  sets paddle's flags
from tests.parallel.gloo import cure, leave
from tools.train import main


def save_what_was_loaded() -> None:
    """Let a trainer save at once what it has read."""
    from ppvilg.train.trainer import Trainer

    resume = Trainer.resume

    def resume_and_save(trainer: Trainer) -> None:
        resume(trainer)
        trainer.save()

    Trainer.resume = resume_and_save


if __name__ == "__main__":
    cure()
    if "SAVE_WHAT_WAS_LOADED" in os.environ:
        save_what_was_loaded()
    try:
        code = main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    leave(code)
