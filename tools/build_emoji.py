"""Build data/emoji: pictures, captions, splits, vocabulary, licences, from pinned npm packages.

Needs Node.js (for `npm pack`) and `pip install -r requirements-emoji.txt`.
"""

import argparse
from pathlib import Path

from ppvilg.cli import run


def main() -> None:
    """Parse, build, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/emoji"), help="folder to write")
    parser.add_argument("--cache", type=Path, default=Path(".cache/npm"), help="folder for the npm packages")
    arguments = parser.parse_args()

    from ppvilg.data.emoji.build import build

    counts = build(arguments.output, arguments.cache)
    for style, by_split in counts.items():
        print(style, ", ".join(f"{split} {number}" for split, number in sorted(by_split.items())))


if __name__ == "__main__":
    run(main)
