"""Build a vocabulary from a data set's captions, for `text.vocabulary` where no ERNIE vocabulary can be had."""

import argparse
from pathlib import Path

from ppvilg.cli import run
from ppvilg.files import check_file, write_whole


def main() -> None:
    """Parse, read the captions, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder as data.path takes it")
    parser.add_argument("--captions", help="the captions file in it, where there are several")
    parser.add_argument("--limit", type=int, default=6000, help="lines at most, as far as the characters allow")
    parser.add_argument("--output", type=Path, required=True, help="the vocab.txt to write")
    arguments = parser.parse_args()
    check_file("--output", arguments.output)
    if arguments.limit < 1:
        raise ValueError(f"--limit is {arguments.limit}: give at least 1")

    from ppvilg.data.sources import open_source
    from ppvilg.data.vocabulary import build_vocabulary

    source = open_source(arguments.data, "all", captions=arguments.captions)
    captions = [text for record in source.records for texts in record.captions.values() for text in texts]
    tokens = build_vocabulary(captions, arguments.limit)
    write_whole(arguments.output, ("\n".join(tokens) + "\n").encode())
    print(f"{arguments.output}: {len(tokens)} tokens from {len(captions)} captions")


if __name__ == "__main__":
    run(main)
