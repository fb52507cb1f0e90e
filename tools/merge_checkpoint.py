"""One model folder of a run that several processes trained: python tools/merge_checkpoint.py runs/vilg_10b -o vilg_10b."""

import argparse
from pathlib import Path

from ppvilg.cli import run
from ppvilg.files import check_new_folder


def main() -> None:
    """Parse the arguments and merge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="the folder of a training run; its newest checkpoint is taken")
    parser.add_argument("-o", "--output", required=True, help="a new folder, for tools/infer.py --model")
    arguments = parser.parse_args()

    check_new_folder("--output", Path(arguments.output))

    from ppvilg.folder import merge

    print(f"{merge(arguments.run, arguments.output)} is now one file: {arguments.output}/model.safetensors")


if __name__ == "__main__":
    run(main)
