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

from ppvilg.cli import add_lora_arguments, run


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
    parser.add_argument("--output", type=Path, default="output", help="folder for images and grid (default: %(default)s)")
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
    arguments = parser.parse_args()
    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}: give at least 1")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"--output is {arguments.output}, which is a file: give a folder")
    if arguments.json is not None and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        raise ValueError(f"--json is {arguments.json}: give a file in a folder that exists")
    MODES[arguments.mode](arguments)


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
    for prompt in prompts:
        check_text(prompt)

    from ppvilg import ViLGPipeline

    pipe = ViLGPipeline.from_pretrained(arguments.model, dual_encoder, lora=arguments.lora, lora_scale=arguments.lora_scale)
    save_images(arguments, prompts, pipe(prompts, **options).images)


def complete(arguments: argparse.Namespace) -> None:
    """As text to image, each image starting with the upper rows of a given one."""
    if not arguments.image or len(arguments.image) != len(arguments.text):
        raise ValueError(f"got {len(arguments.image)} --image and {len(arguments.text)} --text: give each image its text")
    if arguments.keep_rows is None:
        raise ValueError("there is no --keep-rows: say how many rows of tokens stay")
    options = image_options(arguments)
    for image, prompt in zip(arguments.image, arguments.text, strict=True):
        check_text(prompt)
        check_image(image)

    from ppvilg import ViLGPipeline

    pipe = ViLGPipeline.from_pretrained(arguments.model, lora=arguments.lora, lora_scale=arguments.lora_scale)
    images = []
    for image, prompt in zip(arguments.image, arguments.text, strict=True):
        images += pipe.complete(image, arguments.keep_rows, prompt, **options).images
    save_images(arguments, arguments.text, images)


def image_to_text(arguments: argparse.Namespace) -> None:
    """Captions, a line each."""
    options = text_options(arguments)

    from ppvilg import ViLGPipeline

    pipe = ViLGPipeline.from_pretrained(arguments.model, lora=arguments.lora, lora_scale=arguments.lora_scale)
    captions = pipe.caption(arguments.image, arguments.samples, **options)
    for image, texts in zip(arguments.image, captions, strict=True):
        for text in texts:
            print(f"{image}  {text}")
    entries = [{"image": image, "captions": texts} for image, texts in zip(arguments.image, captions, strict=True)]
    write_json(arguments.json, entries)


def answer_questions(arguments: argparse.Namespace) -> None:
    """Answers, a line each."""
    images, questions, options = arguments.image, arguments.question, text_options(arguments)
    if not questions:
        raise ValueError("there is no question: give --question")
    for question in questions:
        check_text(question)

    from ppvilg import ViLGPipeline

    pipe = ViLGPipeline.from_pretrained(arguments.model, lora=arguments.lora, lora_scale=arguments.lora_scale)
    answers = pipe.answer(images, questions, arguments.samples, **options)
    count, entries = len(answers), []
    for i, (texts, image) in enumerate(zip(answers, images * (count // len(images)), strict=True)):
        question = questions[i % len(questions)]
        entries.append({"image": image, "question": question, "answers": texts})
        for text in texts:
            print(f"{image}  {question}  {text}")
    write_json(arguments.json, entries)


def text_options(arguments: argparse.Namespace) -> dict:
    """The options of captions and answers, checked, and the images too."""
    from ppvilg.options import CaptionOptions

    if not arguments.image:
        raise ValueError("there is no image: give --image")
    if arguments.guidance != 1:
        raise ValueError(f"--guidance is {arguments.guidance}, but only images have guidance: leave it out")
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
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_text(text: str) -> None:
    """Refuse an empty text before the model is loaded."""
    if not text.strip():
        raise ValueError("the text is empty: give a few words, e.g. 一个红苹果")


def check_image(path: str) -> None:
    """Refuse a file that is not an image before the model is loaded."""
    from ppvilg.data.images import load_image

    load_image(path, 1)


def save_images(arguments: argparse.Namespace, prompts: list[str], images: list) -> None:
    """Write the images of each prompt, a grid of all, and the list."""
    from ppvilg.pictures import labelled_grid, save_png

    arguments.output.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, image in enumerate(images):
        path, prompt = arguments.output / f"{i:04d}.png", prompts[i // arguments.samples]
        save_png(image, path)
        entries.append({"text": prompt, "image": str(path)})
        print(f"{path}  {prompt}")
    cells = [(images[i * arguments.samples : (i + 1) * arguments.samples], prompt) for i, prompt in enumerate(prompts)]
    columns = max(1, 8 // arguments.samples)
    save_png(labelled_grid(cells, min(columns, len(cells))), arguments.output / "grid.png")
    print(arguments.output / "grid.png")
    write_json(arguments.json, entries)


def write_json(path: Path | None, entries: list[dict]) -> None:
    """Write the entries, if a path was given."""
    if path is not None:
        path.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", "utf-8")


MODES = {"t2i": text_to_image, "i2t": image_to_text, "vqa": answer_questions, "complete": complete}

if __name__ == "__main__":
    run(main)
