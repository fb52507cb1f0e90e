"""Build data/emoji_questions: the emoji with questions and answers, for configs/vqa_emoji.yml."""

import argparse
from pathlib import Path

from ppvilg.cli import run


def main() -> None:
    """Parse, build, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emoji", type=Path, default=Path("data/emoji"), help="the emoji (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("data/emoji_questions"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--style", action="append", help="only this style; repeatable (default: the four of the demo)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N pictures of each split, to try it")
    arguments = parser.parse_args()

    from ppvilg.data.emoji.questions import build_questions

    styles = arguments.style or ["noto", "twemoji", "fluent-3d", "fluent-flat"]
    # Skin tones make many pictures of a few concepts.
    counts = build_questions(arguments.emoji, arguments.output, {"style": styles, "tone": ["null"]}, arguments.limit)
    for split, by_type in counts.items():
        print(f"{split}: {by_type.total()} questions,", ", ".join(f"{kind} {count}" for kind, count in by_type.items()))


if __name__ == "__main__":
    run(main)
