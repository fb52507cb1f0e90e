"""Convert the torch weights of the FID's Inception network into the file that the evaluation reads.

The weights are pytorch-fid's pt_inception-2015-12-05-6726825d.pth. Needs `pip install -r requirements-convert.txt`.
"""

import argparse
import sys
from pathlib import Path

from ppvilg.cli import run


def main() -> None:
    """Parse, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="the .pth file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")
    arguments = parser.parse_args()

    from ppvilg.evaluation.inception import convert_inception

    published = convert_inception(arguments.weights, arguments.output)
    print(arguments.output)
    if not published:
        print("warning: not the published file; distances can't be compared with published ones", file=sys.stderr)


if __name__ == "__main__":
    run(main)
