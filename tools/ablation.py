"""Repeat the paper's ablation of end-to-end training: train what is missing of both generators, then compare five ways to draw.

python tools/ablation.py --two-stage configs/vilg_emoji.yml --end-to-end configs/vilg_emoji_e2e.yml

Needs the image tokenizer's run and requirements-eval.txt.
"""

import argparse
import json
from pathlib import Path

from ppvilg.cli import run
from ppvilg.config import ViLGExperiment, load_config
from ppvilg.files import check_folder
from ppvilg.options import check_count


def main() -> int:
    """Parse the arguments, train, draw, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--two-stage", default="configs/vilg_emoji.yml", help="config (default: %(default)s)")
    parser.add_argument("--end-to-end", default="configs/vilg_emoji_e2e.yml", help="config (default: %(default)s)")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="section.key=value", help="for both")
    parser.add_argument("--output", type=Path, default=Path("ablation"), help="folder for table and grid")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check_folder("--output", arguments.output)
    check_count("--seed", arguments.seed, 0)
    configs = [load_config(path, arguments.override, ViLGExperiment) for path in (arguments.two_stage, arguments.end_to_end)]

    from ppvilg.evaluation.efficientnet import load_efficientnet

    network = load_efficientnet()  # before the training, since it may be missing
    from ppvilg.train import finish

    for config in configs:
        if not finish(config):
            print("interrupted and saved; the same command continues")
            return 130
    measure(configs, network, arguments.seed, arguments.output)
    return 0


def measure(configs: list, network, seed: int, output: Path) -> None:
    """Draw for all pairs of both splits; print and write the table, write a grid of twelve pairs."""
    import numpy as np

    from ppvilg import ViLGPipeline
    from ppvilg.data.loader import canonical_caption
    from ppvilg.data.splits import evenly_spaced, load_images, open_splits
    from ppvilg.evaluation.ablation import ROWS, five_rows
    from ppvilg.evaluation.frechet import frechet_distance
    from ppvilg.pictures import labelled_grid, save_png

    two_stage, end_to_end = (ViLGPipeline.from_pretrained(config.train.output) for config in configs)
    settings = configs[0].data
    splits = open_splits(settings, configs[0].train.seed)
    pictures = np.concatenate([load_images(split, list(range(len(split))), settings.image_size) for split in splits])
    prompts = [
        canonical_caption(record.captions, settings.languages, i) for split in splits for i, record in enumerate(split.records)
    ]
    made = five_rows(two_stage, end_to_end, prompts, pictures, seed)
    features, _ = network(pictures)
    rows = []
    for generator, reconstructor in ROWS:
        drawn = made[generator, reconstructor]
        distance = frechet_distance(features, network(drawn)[0])
        row = {"generator": generator, "reconstructor": reconstructor, "FD-EffLite0": distance}
        if generator == "gold tokens":
            error = np.mean((drawn.astype(np.float64) - pictures) ** 2, axis=(1, 2, 3))
            row["PSNR"] = float(np.mean(10 * np.log10(255**2 / error)))
        rows.append(row)
    print(f"{len(pictures)} pictures; FD is biased upwards at so few, and compares only at equal numbers")
    print(f"{'generator':12} {'reconstructor':14} {'FD-EffLite0':>12} {'PSNR':>8}")
    for row in rows:
        psnr = f"{row['PSNR']:.2f} dB" if "PSNR" in row else ""
        print(f"{row['generator']:12} {row['reconstructor']:14} {row['FD-EffLite0']:12.1f} {psnr:>8}")
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.json").write_text(json.dumps({"pictures": len(pictures), "rows": rows}, indent=2) + "\n", "utf-8")
    chosen = evenly_spaced(len(pictures), 12)
    cells = [([pictures[i], *(made[row][i] for row in ROWS)], prompts[i]) for i in chosen]
    save_png(labelled_grid(cells, columns=2), output / "grid.png")
    print(output / "grid.png")


if __name__ == "__main__":
    run(main)
