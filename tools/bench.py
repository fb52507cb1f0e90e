"""Measure speed and memory; what is compared runs in processes of its own, in turns (random weights and data).

python tools/bench.py attention
python tools/bench.py train -c configs/vilg_emoji.yml --vs torch
python tools/bench.py generate -c configs/vilg_small.yml --batch 16 --vs dense
python tools/bench.py export -c configs/vilg_emoji.yml --start runs/vilg_emoji export/vilg_emoji
python tools/bench.py nats -c configs/vilg_emoji.yml --model export/vilg_emoji_onnx
python tools/bench.py profile -c configs/vilg_emoji.yml
python tools/bench.py draw -c configs/finetune_artist.yml
python tools/bench.py serve --model runs/vilg_emoji
python tools/bench.py soak --model export/vilg_emoji --minutes 30
python tools/bench.py data
python tools/bench.py data-scale --rows 1000000 10000000
"""

import argparse
from pathlib import Path

from ppvilg.cli import run
from ppvilg.config import ViLGExperiment, VQGANExperiment, load_config
from ppvilg.options import check_count


def main() -> None:
    """Parse the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    attention = commands.add_parser("attention", help="one layer of each kind, forward and backward")
    attention.add_argument("--hidden", type=int, default=512)
    attention.add_argument("--heads", type=int, default=8)
    attention.add_argument("--text-length", type=int, default=64)
    attention.add_argument("--side", type=int, default=32, help="rows and columns of the grid of image tokens")
    attention.add_argument("--batch", type=int, default=1, help="sequences of each direction")
    train = commands.add_parser("train", help="whole training steps; an image tokenizer's on its own data")
    train.add_argument(
        "--vs",
        nargs="+",
        choices=["dense", "no-kernels", "torch"],
        default=[],
        help="what to compare with; no-kernels: the step without the C++ kernels",
    )
    generate = commands.add_parser("generate", help="image tokens for one prompt")
    generate.add_argument("--vs", nargs="+", choices=["dense", "artist"], default=[], help="what to compare with")
    generate.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="candidates at a time (default: 1 16)")
    export = commands.add_parser("export", help="a transformer in memory against its export")
    export.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="candidates at a time (default: 1 4 16)")
    export.add_argument(
        "--vs", nargs="+", choices=["onednn", "openvino", "onnx", "onnx-int8"], default=[], help="other engines"
    )
    export.add_argument("--start", nargs="+", default=[], metavar="FOLDER", help="runs and exports to start anew, too")
    export.add_argument("--prompt", default="红苹果", help="what --start draws (default: %(default)s)")
    nats = commands.add_parser("nats", help="what 8-bit weights of an export cost, in nats per token of validation pairs")
    nats.add_argument("--model", required=True, help="folder of an export with --onnx")
    nats.add_argument("--samples", type=int, default=512, help="pairs at most (default: %(default)s)")
    profile = commands.add_parser("profile", help="operators of a transformer's training step, by time")
    draw = commands.add_parser("draw", help="a process's start, its first images and its memory, by the config's sizes")
    for command in (train, generate, export, nats, profile, draw):
        command.add_argument("-c", "--config", required=True)
        command.add_argument("-o", "--override", action="append", default=[], metavar="section.key=value")
    serve = commands.add_parser("serve", help="load on a server over loopback")
    serve.add_argument("--model", default="runs/vilg_emoji", help="folder of a run or an export (default: %(default)s)")
    serve.add_argument("--text", default="Noto风格的红苹果", help="the prompt (default: %(default)s)")
    serve.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64], help="at a time (default: 1 4 16 64)")
    serve.add_argument("--requests", type=int, default=64, help="of each load (default: %(default)s)")
    soak = commands.add_parser("soak", help="a server under full load, with clients that vanish, send garbage and stall")
    soak.add_argument("--model", default="runs/vilg_emoji", help="folder of a run or an export (default: %(default)s)")
    soak.add_argument("--text", default="Noto风格的红苹果", help="the prompt (default: %(default)s)")
    soak.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)s)")
    data = commands.add_parser("data", help="the steps of tools/prepare_data.py; of one core with OMP_NUM_THREADS=1")
    data.add_argument("--path", default="data/emoji", help="a folder of data (default: %(default)s)")
    data.add_argument("--split", default="validation", help="(default: %(default)s)")
    data.add_argument("--image-size", type=int, default=64, help="of the squares (default: %(default)s)")
    data.add_argument("--tokenizer", default="runs/vqgan_emoji", help="folder of an image tokenizer (default: %(default)s)")
    data.add_argument("--dual-encoder", help="folder of a dual encoder, for similarities")
    data.add_argument("--samples", type=int, default=400, help="images (default: %(default)s)")
    engines = commands.add_parser("data-engines", help="a preparation by the loop and by Ray, whose outputs are compared")
    engines.add_argument("-c", "--config", required=True, help="a config of tools/prepare_data.py")
    engines.add_argument("-o", "--override", action="append", default=[], metavar="section.key=value")
    scale = commands.add_parser("data-scale", help="opening and reading prepared data of many rows, made for it")
    scale.add_argument("--rows", type=int, nargs="+", default=[10**6], help="(default: %(default)s)")
    scale.add_argument("--folder", default="/tmp", help="where they are made, 250 bytes a row (default: %(default)s)")
    formats = commands.add_parser("data-format", help="Arrow IPC beside other formats")
    formats.add_argument("--rows", type=int, default=10**6, help="(default: %(default)s)")
    for command in (attention, train, generate, export, profile):
        command.add_argument("--repetitions", type=int, default=10)
    arguments = parser.parse_args()
    for name in (
        "hidden",
        "heads",
        "text_length",
        "side",
        "batch",
        "clients",
        "requests",
        "samples",
        "rows",
        "image_size",
        "repetitions",
    ):
        counts = getattr(arguments, name, [])
        for count in counts if isinstance(counts, list) else [counts]:
            check_count(f"--{name.replace('_', '-')}", count, 1)
    tables = {
        "serve": serve_table,
        "soak": soak_lines,
        "data": data_table,
        "data-engines": data_engines_table,
        "data-scale": data_scale_table,
        "data-format": data_format_table,
        "draw": draw_table,
        "attention": attention_table,
        "train": train_table,
        "generate": generate_table,
        "export": export_table,
        "nats": nats_table,
        "profile": profile_table,
    }
    tables[arguments.command](arguments)


def attention_table(arguments: argparse.Namespace) -> None:
    """Both directions together."""
    if arguments.hidden % arguments.heads:
        raise ValueError(f"--heads is {arguments.heads}: expected a divisor of --hidden, {arguments.hidden}")

    from ppvilg.benchmark.attention import LayerSizes, compare_attention
    from ppvilg.benchmark.runner import table

    sizes = LayerSizes(arguments.hidden, arguments.heads, arguments.text_length, arguments.side, arguments.batch)
    for title, projections in (("without norm and projections", False), ("the whole layer", True)):
        print(title, table(compare_attention(sizes, arguments.repetitions, projections)), sep="\n", flush=True)


def train_table(arguments: argparse.Namespace) -> None:
    """Steps of the config's task, and what a forward pass of a transformer keeps."""
    config = load_config(arguments.config, arguments.override, VQGANExperiment | ViLGExperiment)
    from ppvilg.benchmark.runner import run_alone, table
    from ppvilg.benchmark.training import compare_training, dense, forward_bytes

    print(table(compare_training(config, arguments.vs, arguments.repetitions)), flush=True)
    if isinstance(config, VQGANExperiment):
        return
    plans = {"ours": config} | ({"dense": dense(config)} if "dense" in arguments.vs else {})
    for name, plan in plans.items():
        print(f"{name}: a forward pass keeps {run_alone(forward_bytes, plan) / 2**20:.1f} MB for its backward pass")


def generate_table(arguments: argparse.Namespace) -> None:
    """Tokens, time per step, caches."""
    config = load_config(arguments.config, arguments.override, ViLGExperiment)
    from ppvilg.benchmark.generation import compare_generation
    from ppvilg.benchmark.runner import table

    for batch in arguments.batch:
        timings, lines = compare_generation(config, batch, arguments.vs, arguments.repetitions)
        print(f"batch {batch}", table(timings), *lines, sep="\n", flush=True)


def serve_table(arguments: argparse.Namespace) -> None:
    """Throughput and latency, then a full queue and clients that vanish."""
    from ppvilg.benchmark.serving import measure_serving

    for line in measure_serving(arguments.model, arguments.text, arguments.clients, arguments.requests):
        print(line, flush=True)


def soak_lines(arguments: argparse.Namespace) -> None:
    """A line for each minute under full load, then a summary."""
    from ppvilg.benchmark.soak import soak

    for line in soak(arguments.model, arguments.text, arguments.minutes):
        print(line, flush=True)


def data_table(arguments: argparse.Namespace) -> None:
    """Pairs a second of each step."""
    from ppvilg.benchmark.data import data_lines

    choice = arguments.path, arguments.split, arguments.image_size, arguments.tokenizer, arguments.dual_encoder
    print(*data_lines(*choice, arguments.samples), sep="\n")


def data_engines_table(arguments: argparse.Namespace) -> None:
    """Seconds of a whole preparation."""
    from ppvilg.benchmark.data import engine_lines

    for line in engine_lines(arguments.config, arguments.override):
        print(line, flush=True)


def data_scale_table(arguments: argparse.Namespace) -> None:
    """A row for each number of rows."""
    from ppvilg.benchmark.data_scale import SCALE_HEADER, scale_line

    print(SCALE_HEADER, flush=True)
    for rows in arguments.rows:
        print(scale_line(rows, arguments.folder), flush=True)


def data_format_table(arguments: argparse.Namespace) -> None:
    """Size, opening and random reads."""
    from ppvilg.benchmark.data_scale import format_lines

    print(*format_lines(arguments.rows), sep="\n")


def export_table(arguments: argparse.Namespace) -> None:
    """Images and tokens, time per step, time and memory from a process's start to its first image."""
    config = load_config(arguments.config, arguments.override, ViLGExperiment)
    from ppvilg.benchmark.export import compare_export, start_line
    from ppvilg.benchmark.runner import table

    for batch in arguments.batch:
        timings, lines = compare_export(config, batch, arguments.vs, arguments.repetitions)
        print(f"batch {batch}, {config.image_tokens} tokens each", table(timings), *lines, sep="\n", flush=True)
    for folder in arguments.start:
        print(start_line(folder, arguments.prompt))


def nats_table(arguments: argparse.Namespace) -> None:
    """Each engine of one export."""
    config = load_config(arguments.config, arguments.override, ViLGExperiment)
    from ppvilg.benchmark.nats import nats_lines

    print(*nats_lines(config, Path(arguments.model), arguments.samples), sep="\n")


def draw_table(arguments: argparse.Namespace) -> None:
    """A process that loads a model with random weights from its folder and draws."""
    config = load_config(arguments.config, arguments.override, ViLGExperiment)
    from ppvilg.benchmark.random_model import drawing_line

    print(drawing_line(config))


def profile_table(arguments: argparse.Namespace) -> None:
    """Operators, by time."""
    config = load_config(arguments.config, arguments.override, ViLGExperiment)
    from ppvilg.benchmark.profile import print_profile

    print_profile(config, arguments.repetitions)


if __name__ == "__main__":
    run(main)
