"""Evaluate a trained model on a split of its data, beside baselines; compare evaluations; score what others made.

python tools/eval.py -c configs/eval_emoji.yml --split unseen_style
python tools/eval.py compare runs/a/eval/unseen_style runs/b/eval/unseen_style --output comparison.html
python tools/eval.py captions predictions.jsonl references.jsonl
python tools/eval.py answers predictions.jsonl references.jsonl
python tools/eval.py i2t -c configs/caption_emoji.yml --split validation runs/vilg_emoji runs/caption_emoji
python tools/eval.py vqa --model runs/vqa_emoji --split unseen_style
python tools/eval.py distance real_pictures/ my_pictures/

A killed evaluation goes on where it was with the same command; several processes share the work with
python -m paddle.distributed.launch --nproc_per_node 2 tools/eval.py ... Needs requirements-eval.txt.
"""

import argparse
import os
import sys
from pathlib import Path

from ppvilg.cli import run
from ppvilg.config import EvalExperiment, ViLGExperiment, load_config
from ppvilg.files import check_file, check_folder


def main() -> None:
    """Parse the arguments and call the command."""
    commands = {"compare": compare, "captions": score_captions, "answers": score_answers, "distance": distance}
    commands |= {"i2t": describe, "vqa": ask}
    if sys.argv[1:2] and sys.argv[1] in commands:
        commands[sys.argv[1]](sys.argv[2:])
    else:
        evaluate_split(sys.argv[1:])


def evaluate_split(words: list[str]) -> None:
    """A model on a split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, help="a YAML file of task eval, e.g. configs/eval_emoji.yml")
    parser.add_argument("--split", required=True, help="of the data, e.g. validation")
    parser.add_argument("--output", type=Path, help="folder of the report (default: eval/SPLIT in the model's)")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="key=value", help="repeatable")
    arguments = parser.parse_args(words)
    config = load_config(arguments.config, arguments.override, EvalExperiment)

    from ppvilg.evaluation.evaluate import evaluate
    from ppvilg.evaluation.report import as_text, read_report

    output = arguments.output or Path(config.model) / "eval" / arguments.split
    check_folder("--output", output)
    rank, processes = (int(os.environ.get(f"PADDLE_{name}", first)) for name, first in (("TRAINER_ID", 0), ("TRAINERS_NUM", 1)))
    if evaluate(config, arguments.split, output, rank, processes):
        print(as_text(read_report(output)))
        print(output / "report.html")


def compare(words: list[str]) -> None:
    """Finished evaluations side by side."""
    parser = argparse.ArgumentParser(prog="eval.py compare", description=compare.__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished evaluations")
    parser.add_argument("--output", type=Path, default=Path("comparison.html"))
    arguments = parser.parse_args(words)
    if len(arguments.folders) < 2:
        raise ValueError("there is one evaluation: give two or more to compare")
    check_file("--output", arguments.output)

    from ppvilg.evaluation.page import differences, write_page
    from ppvilg.evaluation.report import read_report

    write_page(arguments.output, arguments.folders)
    for difference in differences([read_report(folder) for folder in arguments.folders]):
        print(f"warning: {difference}", file=sys.stderr)
    print(arguments.output)


def score_captions(words: list[str]) -> None:
    """Captions in a file against references: {"id", "text"} on each line, or what tools/infer.py --json writes, and {"id",
    "texts": [...]}. In place of an id may stand an image, of whose path the file's name counts."""
    parser = argparse.ArgumentParser(prog="eval.py captions", description=score_captions.__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("--unit", choices=["characters", "words"], default="characters")
    arguments = parser.parse_args(words)

    from ppvilg.evaluation.captions import caption_scores
    from ppvilg.evaluation.files import read_predictions

    _, predictions, references = read_predictions(arguments.predictions, arguments.references)
    print_measures(caption_scores(predictions, references, arguments.unit))


def score_answers(words: list[str]) -> None:
    """Answers to questions about pictures, in files as for captions; references are what people answered."""
    parser = argparse.ArgumentParser(prog="eval.py answers", description=score_answers.__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("references", type=Path)
    arguments = parser.parse_args(words)

    from ppvilg.evaluation.answers import answer_accuracy
    from ppvilg.evaluation.files import read_predictions

    _, predictions, references = read_predictions(arguments.predictions, arguments.references)
    print_measures(answer_accuracy(predictions, references))


def describe(words: list[str]) -> None:
    """What one model or several, e.g. one before and after fine-tuning, write about the images of a split, against the images'
    own captions."""
    parser = argparse.ArgumentParser(prog="eval.py i2t", description=describe.__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="folders of models or training runs")
    parser.add_argument("-c", "--config", required=True, help="whose data is described, e.g. configs/caption_emoji.yml")
    parser.add_argument("--split", required=True, help="of the data, e.g. validation")
    parser.add_argument("--output", type=Path, help="folder for the captions (default: i2t/SPLIT in the last model's)")
    parser.add_argument("--images", type=int, metavar="N", help="only N of the images, drawn at random")
    parser.add_argument("--beams", type=int, default=1, help="search with so many beams; 1: the likeliest token each time")
    parser.add_argument("--unit", choices=["characters", "words"], default="characters")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="key=value", help="of the config")
    arguments = parser.parse_args(words)
    config = load_config(arguments.config, arguments.override, ViLGExperiment)

    from ppvilg.evaluation.describe import describe_split

    output = arguments.output or arguments.models[-1] / "i2t" / arguments.split
    how = arguments.images, arguments.beams, arguments.unit
    scores = describe_split(arguments.models, config, arguments.split, output, *how)
    names = list(next(iter(scores.values())))
    print(" " * 12, *(f"{name:>16}" for name in names))
    for measure, values in scores.items():
        print(f"{measure:12}", *(f"{values[name]:16.4f}" for name in names))
    print(output)


def ask(words: list[str]) -> None:
    """A model that was trained on questions, by those of a split of its data, beside always giving the most frequent answer to
    questions of a type: accuracies by type, all answers, and some of them with their pictures for people to rate."""
    parser = argparse.ArgumentParser(prog="eval.py vqa", description=ask.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--split", required=True, help="of the data, e.g. validation")
    parser.add_argument("--output", type=Path, help="folder for answers and scores (default: vqa/SPLIT in the model's)")
    parser.add_argument("--questions", type=int, metavar="N", help="only N of the questions, drawn at random")
    parser.add_argument("--rated", type=int, default=100, metavar="N", help="answers for people to rate (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=1, help="search with so many beams; 1: the likeliest token each time")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="key=value", help="of the run's config")
    arguments = parser.parse_args(words)
    config = load_config(arguments.model / "config.yml", arguments.override, ViLGExperiment)

    from ppvilg import ViLGPipeline
    from ppvilg.data.splits import open_split
    from ppvilg.evaluation import questions

    pipeline, seed = ViLGPipeline.from_pretrained(arguments.model), config.train.seed
    pipeline.check_answers()
    source, training = (
        open_split(config.data, name, seed, questions=True) for name in (arguments.split, config.data.train_split)
    )
    answered = questions.answer_questions(pipeline, source, training.records, arguments.questions, arguments.beams, seed)
    output = arguments.output or arguments.model / "vqa" / arguments.split
    questions.write_answers(output, source, answered, arguments.rated, config.data.image_size, seed)
    print(questions.as_table(questions.accuracies(answered)))
    print(output)


def distance(words: list[str]) -> None:
    """Fréchet distance, precision and recall between two folders of pictures, or two files of features (.npz, .npy)."""
    parser = argparse.ArgumentParser(prog="eval.py distance", description=distance.__doc__)
    parser.add_argument("real", type=Path)
    parser.add_argument("made", type=Path)
    parser.add_argument("--extractor", default="efficientnet-lite0", help="or the file of tools/convert.py inception")
    parser.add_argument("--size", type=int, default=256, help="pixels of pictures' sides at first (default: %(default)s)")
    arguments = parser.parse_args(words)

    from ppvilg.evaluation.extractor import load_extractor
    from ppvilg.evaluation.files import read_features
    from ppvilg.evaluation.frechet import frechet_distance, has_singular_covariance
    from ppvilg.evaluation.precision_recall import precision_recall

    extractor = load_extractor(arguments.extractor)
    real, made = (read_features(path, extractor, arguments.size) for path in (arguments.real, arguments.made))
    measures = {extractor.distance: frechet_distance(real, made)}
    measures["precision"], measures["recall"] = precision_recall(real, made)
    print(f"{len(real)} real and {len(made)} made pictures, {real.shape[1]} features")
    print_measures(measures)
    if has_singular_covariance(real) or has_singular_covariance(made):
        print(
            f"warning: with no more pictures than features the covariances are singular: {extractor.distance} is far too high "
            f"and only comparable at equal numbers of pictures",
            file=sys.stderr,
        )


def print_measures(measures: dict[str, float]) -> None:
    """A line for each."""
    for name, value in measures.items():
        print(f"{name:16} {value:.4f}")


if __name__ == "__main__":
    run(main)
