"""Raw pairs of images and captions, read, filtered, translated and tokenized, as data for training.

python tools/prepare_data.py -c configs/data_own_pictures.yml
python tools/prepare_data.py -c configs/data_own_pictures.yml -o engine=ray -o ray.workers=4
python tools/prepare_data.py --verify data/own_pictures
"""

import argparse
from pathlib import Path

from ppvilg.cli import run


def main() -> None:
    """Parse the arguments and prepare, or go on where it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", help="a config of the task data")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of it")
    parser.add_argument("--verify", metavar="FOLDER", help="compare prepared data with their checksums, and do nothing else")
    arguments = parser.parse_args()
    if (arguments.config is None) == (arguments.verify is None):
        raise ValueError("give either --config, to prepare, or --verify with a folder")
    if arguments.verify is not None:
        from ppvilg.data.prepared import verify

        print(f"{arguments.verify}: {verify(Path(arguments.verify))} files are as they were written")
        return

    from ppvilg.config import load_config
    from ppvilg.data.prepare import PrepareExperiment, prepare

    folder = prepare(load_config(arguments.config, arguments.override, PrepareExperiment))
    print(f"{folder} is prepared: train with -o data.path={folder}; what was dropped is in {folder / 'report.html'}")


if __name__ == "__main__":
    run(main)
