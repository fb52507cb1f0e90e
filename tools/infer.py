"""Write pictures from texts, captions from pictures, or the lower part of a picture.

python tools/infer.py --mode t2i --text "Noto风格的红苹果" --samples 4
python tools/infer.py --mode i2t --image apple.png
python tools/infer.py --mode complete --image apple.png --keep-rows 4 --text "Noto风格的红苹果"
"""

import argparse
import json
import sys
from pathlib import Path

from ppvilg.cli import run
from ppvilg.errors import UserError


def main() -> None:
    """Parse the arguments and call the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = "text to image, image to text, or completion of a picture's upper rows"
    parser.add_argument("--mode", required=True, choices=list(MODES), help=modes)
    parser.add_argument(
        "--model", default="runs/vilg_emoji", help="run folder of a transformer, or an exported one (default: %(default)s)"
    )
    parser.add_argument("--text", action="append", default=[], help="a prompt (t2i, complete); repeatable")
    parser.add_argument("--text-file", help="a file with a prompt on each line, or - for standard input (t2i)")
    parser.add_argument("--image", action="append", default=[], help="a picture file (i2t, complete); repeatable")
    parser.add_argument("--keep-rows", type=int, help="rows of tokens of the picture that stay (complete)")
    parser.add_argument("--output", default="output", help="folder for pictures and grid (default: %(default)s)")
    parser.add_argument("--json", help="also write prompts or captions to this JSON file")
    parser.add_argument("--samples", type=int, default=1, help="pictures or captions for each input")
    parser.add_argument("--best-of", type=int, metavar="N", help="draw N pictures for each text and keep the best (t2i)")
    parser.add_argument(
        "--dual-encoder",
        default="runs/dual_encoder_emoji",
        help="what says which are best: a dual encoder's run, or ernie_vil-2.0-base-zh",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, help="default: 1 for pictures, 0 (greedy) for captions")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens; 0: from all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens that add up to p")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance scale; 1: none")
    parser.add_argument(
        "--decoder",
        choices=["codebook", "hidden"],
        default="codebook",
        help="what paints the tokens: the image tokenizer, or an end-to-end model's reconstructor (default: %(default)s)",
    )
    parser.add_argument("--beams", type=int, default=1, help="captions by beam search with so many beams (i2t)")
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="beam search divides log p by length to this power (default: 1)"
    )
    arguments = parser.parse_args()
    if arguments.samples < 1:
        raise UserError(f"--samples is {arguments.samples}: give at least 1")
    MODES[arguments.mode](arguments)


def text_to_image(arguments: argparse.Namespace) -> None:
    """Numbered PNGs and one labelled grid."""
    prompts = [*arguments.text, *read_lines(arguments.text_file)]
    if not prompts:
        raise UserError("there is no text: give --text or --text-file")

    from ppvilg.pipeline import Pipeline

    model = Pipeline.load(arguments.model)
    options = (arguments.samples, arguments.seed, sampling(arguments, 1.0), arguments.decoder)
    if arguments.best_of is None:
        made = model.generate(prompts, *options)
    else:
        from ppvilg.matching import load_scorer

        made = model.generate_best(prompts, load_scorer(arguments.dual_encoder), arguments.best_of, *options)
    save_pictures(arguments, list(zip(made, prompts, strict=True)))


def complete(arguments: argparse.Namespace) -> None:
    """As text to image, each picture starting with the upper rows of a given one."""
    if not arguments.image or len(arguments.image) != len(arguments.text):
        raise UserError(f"got {len(arguments.image)} --image and {len(arguments.text)} --text: give each picture its text")
    if arguments.keep_rows is None:
        raise UserError("there is no --keep-rows: say how many rows of tokens stay")
    contents = [read_picture(path) for path in arguments.image]

    from ppvilg.pipeline import Pipeline

    model = Pipeline.load(arguments.model)
    options = (arguments.samples, arguments.seed, sampling(arguments, 1.0), arguments.decoder)
    cells = []
    for path, content, prompt in zip(arguments.image, contents, arguments.text, strict=True):
        check_picture(path, content, model.config.data.image_size)
        cells.append((model.complete(content, arguments.keep_rows, prompt, *options), prompt))
    save_pictures(arguments, cells)


def save_pictures(arguments: argparse.Namespace, cells: list[tuple[list, str]]) -> None:
    """Write each cell's pictures, a grid of all, and the list."""
    from ppvilg.pictures import labelled_grid, save_png

    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for pictures, prompt in cells:
        for picture in pictures:
            path = folder / f"{len(entries):04d}.png"
            save_png(picture, path)
            entries.append({"text": prompt, "picture": str(path)})
            print(f"{path}  {prompt}")
    columns = max(1, 8 // arguments.samples)
    save_png(labelled_grid(cells, min(columns, len(cells))), folder / "grid.png")
    print(folder / "grid.png")
    write_json(arguments.json, entries)


def image_to_text(arguments: argparse.Namespace) -> None:
    """Captions, a line each."""
    if not arguments.image:
        raise UserError("there is no picture: give --image")
    contents = [read_picture(path) for path in arguments.image]

    from ppvilg.pipeline import Pipeline

    model = Pipeline.load(arguments.model)
    for path, content in zip(arguments.image, contents, strict=True):
        check_picture(path, content, model.config.data.image_size)
    search = (arguments.beams, arguments.length_penalty)
    captions = model.caption(contents, arguments.samples, arguments.seed, sampling(arguments, 0.0), *search)
    entries = [{"picture": path, "captions": texts} for path, texts in zip(arguments.image, captions, strict=True)]
    for entry in entries:
        for text in entry["captions"]:
            print(f"{entry['picture']}  {text}")
    write_json(arguments.json, entries)


def sampling(arguments: argparse.Namespace, temperature: float):
    """The sampling options, with the mode's own default temperature."""
    from ppvilg.generate.sampling import Sampling

    chosen = temperature if arguments.temperature is None else arguments.temperature
    return Sampling(chosen, arguments.top_k, arguments.top_p, arguments.guidance)


def read_lines(path: str | None) -> list[str]:
    """Non-empty lines of a file, or of standard input for -."""
    if path is None:
        return []
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read texts from {path}: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_picture(path: str) -> bytes:
    """A picture file's bytes."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error.strerror}") from None


def check_picture(path: str, content: bytes, size: int) -> None:
    """Name the file that is not a picture."""
    from ppvilg.data.images import decode_image

    try:
        decode_image(content, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_json(path: str | None, entries: list[dict]) -> None:
    """Write the entries, if a path was given."""
    if path is not None:
        Path(path).write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", "utf-8")


MODES = {"t2i": text_to_image, "i2t": image_to_text, "complete": complete}

if __name__ == "__main__":
    run(main)
