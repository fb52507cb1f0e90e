"""Measure speed: training steps of a config's task, or generation with a transformer config (random weights).

python tools/bench.py train -c configs/vqgan_emoji.yml
python tools/bench.py generate -c configs/vilg_emoji.yml --batch 1 16
"""

import argparse

from ppvilg.cli import run
from ppvilg.config import load_config


def main() -> None:
    """Parse the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="whole training steps; a transformer needs its tokenizer's run")
    generate = commands.add_parser("generate", help="pictures from text, with the cache, and painted")
    generate.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="pictures at a time (default: 1 16)")
    for command in (train, generate):
        command.add_argument("-c", "--config", required=True)
        command.add_argument("-o", "--override", action="append", default=[], metavar="section.key=value")
        command.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.override)

    from ppvilg import benchmark, training

    if arguments.command == "train":
        print(benchmark.time_training(config, training.build_task(config), arguments.repetitions).row(config.task))
        return
    from ppvilg.transformer.model import ViLG
    from ppvilg.vqgan.model import VQGAN

    model, vqgan = ViLG(config), VQGAN(config.vqgan, config.data.image_size)
    for batch in arguments.batch:
        timing = benchmark.time_generation(config, model, vqgan, batch, arguments.repetitions)
        print(timing.row(f"batch {batch}"))


if __name__ == "__main__":
    run(main)
