"""Train both emoji models (or continue), then draw images from words and write captions of images."""

import argparse
import json
import time
from pathlib import Path

from ppvilg.cli import run
from ppvilg.config import ViLGExperiment, VQGANExperiment, load_config
from ppvilg.files import check_folder


def main() -> int:
    """Parse the arguments, train, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs go (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="where the results go (default: %(default)s)")
    parser.add_argument("--prompts", type=Path, default=Path("configs/demo_prompts.txt"), help="a prompt on each line")
    parser.add_argument("--tokenizer-config", default="configs/vqgan_emoji.yml")
    parser.add_argument("--config", default="configs/vilg_emoji.yml")
    arguments = parser.parse_args()
    for name in ("runs", "output"):
        check_folder(f"--{name}", getattr(arguments, name))
    if not arguments.prompts.is_file():
        raise ValueError(f"--prompts is {arguments.prompts}: give a file with a prompt on each line")
    tokenizer_run, run_folder = arguments.runs / "vqgan_emoji", arguments.runs / "vilg_emoji"
    tokenizer = load_config(arguments.tokenizer_config, [f"train.output={tokenizer_run}"], VQGANExperiment)
    overrides = [f"train.output={run_folder}", f"train.tokenizer={tokenizer_run}"]
    transformer = load_config(arguments.config, overrides, ViLGExperiment)

    from ppvilg import ViLGPipeline
    from ppvilg.train import finish

    seconds = {}
    for name, config in (("tokenizer", tokenizer), ("transformer", transformer)):
        print(f"training the {name}: {config.train.steps} steps into {config.train.output}", flush=True)
        began = time.perf_counter()
        if not finish(config):
            print("interrupted and saved; the same command continues")
            return 130
        seconds[name] = time.perf_counter() - began

    arguments.output.mkdir(parents=True, exist_ok=True)
    pipe = ViLGPipeline.from_pretrained(run_folder)
    draw(pipe, arguments.prompts, arguments.output)
    describe(pipe, transformer, arguments.output)
    (arguments.output / "reconstructions.png").write_bytes((tokenizer_run / "preview" / "reconstructions.png").read_bytes())
    print(f"\ntraining took {seconds['tokenizer'] / 60:.1f} + {seconds['transformer'] / 60:.1f} minutes")
    print(last_validation(tokenizer_run, ["psnr", "ssim", "codes_used"]))
    for direction in ("txt2img", "img2txt"):
        measures = [direction, f"{direction}_unigram", f"{direction}_accuracy", f"{direction}_unigram_accuracy"]
        print(last_validation(run_folder, measures))
    for name in ("grid.png", "captions.png", "captions.txt", "reconstructions.png"):
        print(arguments.output / name)
    return 0


def draw(pipe, prompts: Path, output: Path) -> None:
    """grid.png: for each prompt four images."""
    from ppvilg.pictures import labelled_grid, save_png

    texts = [line.strip() for line in prompts.read_text("utf-8").splitlines() if line.strip()]
    images = pipe(texts, num_images_per_prompt=4, temperature=0.7, top_k=64, output_type="np").images
    cells = [(images[4 * i : 4 * i + 4], text) for i, text in enumerate(texts)]
    save_png(labelled_grid(cells, columns=4), output / "grid.png")


def describe(pipe, config: ViLGExperiment, output: Path) -> None:
    """captions.png and captions.txt: 24 images that were not trained on, with the caption the model writes."""
    from ppvilg.data.loader import canonical_caption
    from ppvilg.data.splits import evenly_spaced, load_images, open_splits
    from ppvilg.pictures import labelled_grid, save_png

    _, validation = open_splits(config.data, config.train.seed)
    chosen = evenly_spaced(len(validation), 24)
    images = load_images(validation, chosen, config.data.image_size)
    captions = [texts[0] for texts in pipe.caption(images)]
    true = [canonical_caption(validation.records[i].captions, config.data.languages) for i in chosen]
    cells = [([image], caption) for image, caption in zip(images, captions, strict=True)]
    save_png(labelled_grid(cells, columns=6), output / "captions.png")
    lines = [f"{caption}    (its own caption: {own})" for caption, own in zip(captions, true, strict=True)]
    (output / "captions.txt").write_text("\n".join(lines) + "\n", "utf-8")


def last_validation(run_folder: Path, names: list[str]) -> str:
    """The newest validation measures of a run, on one line."""
    lines = (run_folder / "metrics.jsonl").read_text("utf-8").splitlines()
    newest = [line for line in map(json.loads, lines) if line["group"] == "validation"][-1]
    return "validation: " + ", ".join(f"{name} {newest[name]:.3f}" for name in names if name in newest)


if __name__ == "__main__":
    run(main)
