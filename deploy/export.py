"""Write a trained model as one folder for Paddle Inference, which tools/infer.py --model and Pipeline.load read like a run.

python deploy/export.py -c configs/vilg_emoji.yml --out export/vilg_emoji
python deploy/export.py --checkpoint runs/vilg_emoji --dual-encoder runs/dual_encoder_emoji --out export/vilg_emoji
"""

import argparse

from ppvilg.cli import run
from ppvilg.config import ViLGExperiment, load_config
from ppvilg.errors import UserError


def main() -> None:
    """Parse the arguments and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", help="a config whose run (train.output) is exported")
    parser.add_argument("--checkpoint", help="the run's folder, where it is another than the config's")
    parser.add_argument("--dual-encoder", help="a dual encoder's run, for the best of several pictures")
    parser.add_argument("--out", required=True, help="a new folder")
    arguments = parser.parse_args()
    if arguments.config is None and arguments.checkpoint is None:
        raise UserError("there is no model: give a config (-c) or a run's folder (--checkpoint)")
    folder = arguments.checkpoint or load_config(arguments.config, kind=ViLGExperiment).train.output

    from ppvilg.export.write import export

    export(folder, arguments.out, arguments.dual_encoder)
    print(arguments.out)


if __name__ == "__main__":
    run(main)
