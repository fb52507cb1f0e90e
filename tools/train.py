"""Train an image tokenizer, a transformer or a dual encoder: python tools/train.py -c configs/vilg_emoji.yml."""

import argparse

from ppvilg.cli import run
from ppvilg.config import TrainingExperiment, load_config


def main() -> int:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", required=True, help="a YAML file, e.g. configs/vilg_emoji.yml")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="section.key=value", help="repeatable")
    parser.add_argument("--resume", action="store_true", help="continue the run in train.output from its last checkpoint")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.override, TrainingExperiment)

    from ppvilg.train import train

    finished = train(config, arguments.resume)
    return 0 if finished else 130


if __name__ == "__main__":
    run(main)
