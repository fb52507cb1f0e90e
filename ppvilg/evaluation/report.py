"""From the parts of an evaluation to its report: every measure of every set of images and captions, baselines beside them."""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from ppvilg.data.splits import load_images
from ppvilg.evaluation.captions import caption_scores
from ppvilg.evaluation.frechet import frechet_distance, has_singular_covariance
from ppvilg.evaluation.inception_score import inception_score
from ppvilg.evaluation.parts import Arrays, Evaluation
from ppvilg.evaluation.precision_recall import precision_recall
from ppvilg.evaluation.retrieval import pooled_recall, style_accuracy
from ppvilg.evaluation.style import colour_histograms, fit_style_classifier, predicted_share, style_pictures
from ppvilg.generate.engine import ImageTokens
from ppvilg.generate.images import decode_images

Report = dict[str, Any]

# What the sets of images are called in tables, in their order; the model's own follow.
BASELINES = {
    "real": "real pictures of these captions",
    "others": "other real pictures of the same styles (noise floor)",
    "reconstruction": "real pictures through the tokenizer (upper bound)",
    "nearest": "training picture with the nearest caption",
}
_PICTURES_PER_SCORE = 500  # of a part of the Inception score, at least
_NEIGHBOURS = 3


def read_report(folder: Path) -> Report:
    """The report of a finished evaluation; raises `ValueError` where there is none."""
    path = folder / "report.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError:
        raise ValueError(f"there is no {path}: give the folder of a finished evaluation") from None
    except ValueError:
        raise ValueError(f"{path} is damaged: evaluate again with the same --output, finished parts are kept") from None


def as_text(report: Report) -> str:
    """The measures as lines to print."""
    lines = [f"warning: {warning}" for warning in report["warnings"]]
    for key in ("pictures", "likelihood", "captions"):
        for row in report[key]:
            listed = ", ".join(f"{name} {value:.4g}" for name, value in row["measures"].items())
            lines.append(f"{row['title']}: {listed}")
    return "\n".join(lines)


def summarise(evaluation: Evaluation, arrays: Arrays) -> Report:
    """All measures. FD compares each set with the real images of the captions; see the modules of the measures."""
    settings, pairs = evaluation.config, evaluation.pairs
    drawn = [f"best of {count}" for count in evaluation.best_of]
    classifier = _style_classifier(evaluation)
    names = [name for name in BASELINES if f"logits/{name}" in arrays]
    rows = [_row(evaluation, arrays, name, BASELINES[name], "baseline", classifier) for name in names]
    titles = {"best of 1": "drawn by the model"} | {name: f"drawn, {name}" for name in drawn if name != "best of 1"}
    rows += [_row(evaluation, arrays, name, titles[name], "model", classifier) for name in drawn]
    rows.append(_shuffled_row(evaluation, arrays, drawn[0], f"{titles[drawn[0]]}, for wrong captions"))
    references = [pair.references for pair in pairs]
    wrong = [pairs[i].caption for i in evaluation.partner]
    samples, dimensions = _sharp(evaluation, arrays, "real").shape
    return {
        "format": 1,
        "model": evaluation.config.model,
        "split": evaluation.split,
        "pairs_checksum": sha256(json.dumps([[pair.key, pair.caption] for pair in pairs]).encode()).hexdigest(),
        "data": {"path": evaluation.config.data.path, "checksum": evaluation.chosen.source.checksum},
        "pairs": len(pairs),
        "overlong_captions_left_out": evaluation.chosen.overlong,
        "extractor": {"distance": evaluation.extractor.distance, "weights": evaluation.extractor.weights},
        "settings": asdict(settings),
        "examples": _examples(evaluation, arrays),
        "warnings": _warnings(evaluation, samples, dimensions),
        "pictures": rows,
        "captions": [
            _caption_row("written by the model", "model", arrays["written"].tolist(), references, settings.unit),
            _caption_row("captions of other pictures", "baseline", wrong, references, settings.unit),
        ],
        "likelihood": [
            _likelihood_row("the pair's own", "model", arrays["likelihood/own"]),
            _likelihood_row("another pair's", "baseline", arrays["likelihood/wrong"]),
        ],
    }


def _examples(evaluation: Evaluation, arrays: Arrays) -> list[Report]:
    """What is known of the pairs whose images are in examples.npz, in their order."""
    last = f"embeddings/best of {evaluation.best_of[-1]}"
    found = []
    for i in evaluation.examples:
        pair = evaluation.pairs[i]
        entry = {"key": pair.key, "caption": pair.caption, "written": str(arrays["written"][i])}
        if evaluation.scorer:
            entry["score"] = float((1 + arrays[last][i] @ arrays["embeddings/captions"][i]) / 2)
        found.append(entry)
    return found


def _style_classifier(evaluation: Evaluation) -> Pipeline | None:
    """Fitted to training pictures of each style, each as it is and as the tokenizer paints it; none that is evaluated."""
    found = style_pictures(evaluation.config, {pair.key for pair in evaluation.pairs})
    if found is None:
        return None
    source, indices = found
    pipeline = evaluation.pipeline
    styles = [source.records[i].metadata["style"] for i in indices]
    images = load_images(source, indices, pipeline.config.image_size)
    tokens = ImageTokens(pipeline.encode_images(images))
    rebuilt = np.stack(decode_images(pipeline.model, pipeline.vqgan, tokens))
    return fit_style_classifier(colour_histograms(np.concatenate([images, rebuilt])), styles * 2)


def _row(evaluation: Evaluation, arrays: Arrays, name: str, title: str, kind: str, classifier: Pipeline | None) -> Report:
    settings, pairs = evaluation.config, evaluation.pairs
    extractor = evaluation.extractor
    real, made = _sharp(evaluation, arrays, "real"), _sharp(evaluation, arrays, name)
    measures: dict[str, float] = {}
    if name != "real":
        for radius in evaluation.radii:
            suffix = f" blur {radius:g}" if radius else ""
            measures[extractor.distance + suffix] = frechet_distance(
                arrays[f"features@{radius:g}/real"], arrays[f"features@{radius:g}/{name}"]
            )
        if min(len(real), len(made)) > _NEIGHBOURS:
            measures["precision"], measures["recall"] = precision_recall(real, made, _NEIGHBOURS)
    logits = arrays[f"logits/{name}"].astype(np.float64)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    splits = max(1, min(10, len(pairs) // _PICTURES_PER_SCORE))
    shuffled = np.random.default_rng(settings.seed).permutation(len(probabilities))
    measures[extractor.score] = inception_score(probabilities[shuffled], splits)[0]
    if name != "others":  # which were not chosen for the captions
        measures |= _fit(evaluation, arrays, name, np.arange(len(pairs)))
    styles = [pair.style for pair in pairs]
    if classifier is not None and None not in styles:
        measures["style"] = predicted_share(classifier, arrays[f"colours/{name}"], styles)
    if name == "reconstruction":
        measures["PSNR"] = float(arrays["psnr"].mean())
    return {"id": name, "title": title, "kind": kind, "measures": measures}


def _shuffled_row(evaluation: Evaluation, arrays: Arrays, name: str, title: str) -> Report:
    """The images of other captions: what the measures that read the caption give by chance."""
    return {
        "id": f"{name}, shuffled",
        "title": title,
        "kind": "baseline",
        "measures": _fit(evaluation, arrays, name, evaluation.partner),
    }


def _fit(evaluation: Evaluation, arrays: Arrays, name: str, order: np.ndarray) -> dict[str, float]:
    """How well images[order] fit the pairs' captions and styles."""
    settings, pairs = evaluation.config, evaluation.pairs
    measures = {}
    if evaluation.scorer:
        images, texts = arrays[f"embeddings/{name}"][order], arrays["embeddings/captions"]
        measures |= pooled_recall(images, texts, [pair.caption for pair in pairs], settings.pool, settings.seed)
        measures["score"] = float(((1 + (images * texts).sum(1)) / 2).mean())
    styles = [pair.style for pair in pairs]
    if evaluation.others and None not in styles and len(set(styles)) > 1:
        source, indices = evaluation.others
        of_others = np.array([str(source.records[i].metadata.get("style")) for i in indices])
        features = _sharp(evaluation, arrays, "others")
        by_style = {style: features[of_others == style] for style in sorted(set(styles)) if (of_others == style).any()}
        if set(styles) <= by_style.keys():
            made = _sharp(evaluation, arrays, name)[order]
            measures["nearest style"] = style_accuracy(made, styles, by_style)
    return measures


def _sharp(evaluation: Evaluation, arrays: Arrays, name: str) -> np.ndarray:
    """The features float32 [N, D] of a set of images with the least blur."""
    return arrays[f"features@{evaluation.radii[0]:g}/{name}"]


def _caption_row(title: str, kind: str, captions: list[str], references: list[list[str]], unit: str) -> Report:
    return {"title": title, "kind": kind, "measures": caption_scores(captions, references, unit)}


def _likelihood_row(title: str, kind: str, sums: np.ndarray) -> Report:
    image_bits, tokens, text_bits, characters = sums.sum(0)
    measures = {"bits per image token": image_bits / tokens, "bits per character": text_bits / characters}
    return {"title": title, "kind": kind, "measures": {name: float(value) for name, value in measures.items()}}


def _warnings(evaluation: Evaluation, samples: int, dimensions: int) -> list[str]:
    found = []
    distance = evaluation.extractor.distance
    if has_singular_covariance(np.empty([samples, dimensions], np.float32)):
        found.append(
            f"{samples} pictures are fewer than the {dimensions + 1} that a covariance of {dimensions} features needs: "
            f"{distance} is far above that of many pictures, even between real and real, and is only comparable in this table"
        )
    if evaluation.scorer and evaluation.best_of[-1] > 1:
        found.append(
            "the dual encoder that chose the best candidates also computes their R@k and score, which therefore rise with N "
            f"by themselves; {distance}, precision, recall and nearest style do not know it"
        )
    if evaluation.config.training_split is None:
        found.append("without training_split there is no noise floor, no nearest caption and no nearest style")
    if evaluation.config.training_split == evaluation.split:
        found.append(
            "on the split that was trained on, other real pictures and nearest captions can be the pictures themselves"
        )
    return found
