"""Make weights that others have published into a folder, or a file, that ppvilg reads (docs/weights.md).

python tools/convert.py taming last.ckpt model.yaml --out models/vqgan_f16

Torch's files need `pip install -r requirements-convert.txt`.
"""

import argparse
import inspect
from pathlib import Path

from ppvilg.cli import run
from ppvilg.files import check_new_folder


def main() -> None:
    """Parse, convert, print what was written."""
    from ppvilg.convert import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, convert in KINDS.items():
        about = inspect.getdoc(convert).partition("\n")[0]
        kind = kinds.add_parser(name, help=about, description=about)
        *sources, _ = inspect.signature(convert).parameters
        for source in sources:
            kind.add_argument(source, type=Path, metavar=source.upper())
        kind.add_argument("--out", type=Path, required=True, help="what to write, which must not exist yet")
    arguments = vars(parser.parse_args())
    check_new_folder("--out", arguments["out"])
    print(KINDS[arguments.pop("kind")](**arguments))


if __name__ == "__main__":
    run(main)
