"""Draw images from texts, write captions of images, answer questions about them, or draw the lower part of an image.

python tools/infer.py --mode t2i --text "Noto风格的红苹果" --samples 4
python tools/infer.py --mode i2t --image apple.png
python tools/infer.py --mode vqa --model runs/vqa_emoji --image apple.png --question "这是什么？"
python tools/infer.py --mode complete --image apple.png --keep-rows 4 --text "Noto风格的红苹果"
"""

import argparse
import json
import sys
from pathlib import Path

from ppvilg.cli import add_compute_arguments, add_lora_arguments, compute_options, run
from ppvilg.files import check_file, check_folder, write_whole
from ppvilg.options import check_texts


def main() -> None:
    """Parse the arguments and call the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = "text to image, image to text, questions about images, or completion of an image's upper rows"
    parser.add_argument("--mode", required=True, choices=list(MODES), help=modes)
    parser.add_argument(
        "--model", default="runs/vilg_emoji", help="folder of a model, a training run or an export (default: %(default)s)"
    )
    parser.add_argument("--text", action="append", default=[], help="a prompt (t2i, complete); repeatable")
    parser.add_argument("--text-file", help="a file with a prompt on each line, or - for standard input (t2i)")
    parser.add_argument("--image", action="append", default=[], help="an image file (i2t, vqa, complete); repeatable")
    questions = "a question: one for each image, or several for one, or one for all (vqa); repeatable"
    parser.add_argument("--question", action="append", default=[], help=questions)
    parser.add_argument("--keep-rows", type=int, help="rows of tokens of the image that stay (complete)")
    output = "folder for images and grid; what an earlier call drew there is removed (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("output"), help=output)
    parser.add_argument("--json", type=Path, help="also write prompts, captions or answers to this JSON file")
    parser.add_argument("--samples", type=int, default=1, help="images, captions or answers for each input")
    parser.add_argument("--best-of", type=int, metavar="N", help="draw N images for each text and keep the best (t2i)")
    parser.add_argument(
        "--dual-encoder",
        default="runs/dual_encoder_emoji",
        help="what says which are best: folder of a dual encoder, or ernie_vil-2.0-base-zh (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, help="default: 1 for images, 0 (greedy) for texts")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens; 0: from all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens that add up to p")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance scale; 1: none")
    parser.add_argument(
        "--decoder",
        choices=["codebook", "hidden"],
        default="codebook",
        help="what decodes the tokens: the image tokenizer, or an end-to-end model's reconstructor (default: %(default)s)",
    )
    parser.add_argument("--beams", type=int, default=1, help="texts by beam search with so many beams (i2t, vqa)")
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="beam search divides log p by length to this power (default: 1)"
    )
    add_lora_arguments(parser)
    add_compute_arguments(parser)
    arguments = parser.parse_args()
    check_fit(arguments, parser)
    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}: give at least 1")
    check_folder("--output", arguments.output)
    if arguments.json is not None:
        check_file("--json", arguments.json)
    MODES[arguments.mode](arguments)


ONLY = {
    "text": ("t2i", "complete"),
    "text_file": ("t2i",),
    "image": ("i2t", "vqa", "complete"),
    "question": ("vqa",),
    "keep_rows": ("complete",),
    "output": ("t2i", "complete"),
    "best_of": ("t2i",),
    "dual_encoder": ("t2i",),
    "guidance": ("t2i", "complete"),
    "decoder": ("t2i", "complete"),
    "beams": ("i2t", "vqa"),
    "length_penalty": ("i2t", "vqa"),
}
"""What is not for every mode."""


def check_fit(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what was given but would change nothing."""
    given = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    for name in given:
        if arguments.mode not in ONLY.get(name, MODES):
            modes = " and ".join(f"--mode {mode}" for mode in ONLY[name])
            raise ValueError(f"{option(name)} is for {modes}: leave it out with --mode {arguments.mode}")
    greedy = arguments.temperature == 0 or (arguments.temperature is None and arguments.mode in ("i2t", "vqa"))
    for name, without, needs in (
        ("dual_encoder", arguments.best_of is None, "--best-of"),
        ("lora_scale", arguments.lora is None, "--lora"),
        ("length_penalty", arguments.beams == 1, "--beams"),
        ("top_k", greedy, "a --temperature above 0"),
        ("top_p", greedy, "a --temperature above 0"),
    ):
        if name in given and without:
            raise ValueError(f"{option(name)} does nothing without {needs}: give that too, or leave it out")


def option(name: str) -> str:
    """As it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def load_pipeline(arguments: argparse.Namespace, dual_encoder: str | None = None):
    """The model with what it is computed with."""
    options = compute_options(arguments)

    from ppvilg import ViLGPipeline

    adapter = {"lora": arguments.lora, "lora_scale": arguments.lora_scale}
    return ViLGPipeline.from_pretrained(arguments.model, dual_encoder, **adapter, **options)


def text_to_image(arguments: argparse.Namespace) -> None:
    """Numbered PNGs and one labelled grid."""
    prompts = [*arguments.text, *read_lines(arguments.text_file)]
    if not prompts:
        raise ValueError("there is no text: give --text or --text-file")
    options, dual_encoder = image_options(arguments), None
    if arguments.best_of is not None:
        if arguments.best_of < arguments.samples:
            raise ValueError(f"--best-of is {arguments.best_of}: give at least as many as --samples, {arguments.samples}")
        options["num_candidates"], dual_encoder = arguments.best_of, arguments.dual_encoder
    check_texts("text", prompts)

    pipe = load_pipeline(arguments, dual_encoder)
    warn(pipe.check_known(prompts))
    save_images(arguments, prompts, pipe(prompts, **options).images)


def complete(arguments: argparse.Namespace) -> None:
    """As text to image, each image starting with the upper rows of a given one."""
    if not arguments.image or len(arguments.image) != len(arguments.text):
        raise ValueError(f"got {len(arguments.image)} --image and {len(arguments.text)} --text: give each image its text")
    if arguments.keep_rows is None:
        raise ValueError("there is no --keep-rows: say how many rows of tokens stay")
    options = image_options(arguments)
    check_texts("text", arguments.text)
    for image in arguments.image:
        check_image(image)

    pipe = load_pipeline(arguments)
    warn(pipe.check_known(arguments.text))
    images = []
    for image, prompt in zip(arguments.image, arguments.text, strict=True):
        images += pipe.complete(image, arguments.keep_rows, prompt, **options).images
    save_images(arguments, arguments.text, images)


def image_to_text(arguments: argparse.Namespace) -> None:
    """Captions, a line each."""
    options = text_options(arguments)

    pipe = load_pipeline(arguments)
    captions = pipe.caption(arguments.image, arguments.samples, **options)
    entries = [{"image": image, "captions": texts} for image, texts in zip(arguments.image, captions, strict=True)]
    write_json(arguments.json, entries)
    for entry in entries:
        for text in entry["captions"]:
            print(f"{entry['image']}  {text}")


def answer_questions(arguments: argparse.Namespace) -> None:
    """Answers, a line each."""
    images, questions, options = arguments.image, arguments.question, text_options(arguments)
    if not questions:
        raise ValueError("there is no question: give --question")
    check_texts("question", questions)

    pipe = load_pipeline(arguments)
    warn(pipe.check_known(questions))
    answers = pipe.answer(images, questions, arguments.samples, **options)
    count, entries = len(answers), []
    for i, (texts, image) in enumerate(zip(answers, images * (count // len(images)), strict=True)):
        entries.append({"image": image, "question": questions[i % len(questions)], "answers": texts})
    write_json(arguments.json, entries)
    for entry in entries:
        for text in entry["answers"]:
            print(f"{entry['image']}  {entry['question']}  {text}")


def text_options(arguments: argparse.Namespace) -> dict:
    """The options of captions and answers, checked, and the images too."""
    from ppvilg.options import CaptionOptions

    if not arguments.image:
        raise ValueError("there is no image: give --image")
    options = {"num_beams": arguments.beams, "length_penalty": arguments.length_penalty, **sampling_options(arguments, 0.0)}
    CaptionOptions(num_captions=arguments.samples, **options)
    for image in arguments.image:
        check_image(image)
    return options


def image_options(arguments: argparse.Namespace) -> dict:
    """The options of image generation, checked."""
    from ppvilg.options import ImageOptions

    options = {"num_images_per_prompt": arguments.samples, "guidance_scale": arguments.guidance, "output_type": "np"}
    options |= {"decoder": arguments.decoder, **sampling_options(arguments, 1.0)}
    ImageOptions(**options)
    return options


def sampling_options(arguments: argparse.Namespace, temperature: float) -> dict:
    """How tokens are drawn, with the mode's own default temperature."""
    chosen = temperature if arguments.temperature is None else arguments.temperature
    return {"temperature": chosen, "top_k": arguments.top_k, "top_p": arguments.top_p, "seed": arguments.seed}


def read_lines(path: str | None) -> list[str]:
    """Non-empty lines of a file, or of standard input for -."""
    if path is None:
        return []
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read texts from {path}: {error}") from None
    return [line.strip() for line in text.split("\n") if line.strip()]


def check_image(path: str) -> None:
    """Refuse a file that is not an image before the model is loaded."""
    from ppvilg.data.images import load_image

    load_image(path, 1)


def warn(warnings: list[str]) -> None:
    """On standard error."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def save_images(arguments: argparse.Namespace, prompts: list[str], images: list) -> None:
    """Write the images of each prompt, a grid of them, and the list; images that an earlier call left there go."""
    from ppvilg.pictures import forget_images, labelled_grid, save_png

    output, samples = arguments.output, arguments.samples
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{i:04d}.png" for i in range(len(images))]
    forget_images(output, keep=paths)
    for i, (image, path) in enumerate(zip(images, paths, strict=True)):
        save_png(image, path, description=prompts[i // samples])
    shown = min(samples, 16)
    in_grid = prompts[: GRID // shown]
    cells = [(images[i * samples : i * samples + shown], prompt) for i, prompt in enumerate(in_grid)]
    save_png(labelled_grid(cells, min(max(1, 8 // shown), len(cells))), output / "grid.png")
    if (shown, len(in_grid)) != (samples, len(prompts)):
        warn([f"the grid shows {shown} images each of the first {len(in_grid)} texts; all {len(images)} are beside it"])
    entries = [{"text": prompts[i // samples], "image": str(path)} for i, path in enumerate(paths)]
    write_json(arguments.json, entries)
    for entry in entries:
        print(f"{entry['image']}  {entry['text']}")
    print(output / "grid.png")


GRID = 256
"""Images in a grid, at most."""


def write_json(path: Path | None, entries: list[dict]) -> None:
    """Write the entries, if a path was given."""
    if path is not None:
        write_whole(path, json.dumps(entries, ensure_ascii=False, indent=2) + "\n")


MODES = {"t2i": text_to_image, "i2t": image_to_text, "vqa": answer_questions, "complete": complete}

if __name__ == "__main__":
    run(main)
