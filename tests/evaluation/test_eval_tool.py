"""tools/eval.py: its report against the measures computed apart, resuming, sharing the work, comparing, bad input."""

import json
import re

import cv2
import numpy as np
import pytest
import yaml
from scipy import linalg

from ppvilg.config import EvalExperiment, load_config
from ppvilg.evaluation import captions, parts
from ppvilg.evaluation.captions import caption_scores
from ppvilg.evaluation.efficientnet import load_efficientnet
from ppvilg.evaluation.evaluate import evaluate as evaluate_model
from ppvilg.evaluation.extractor import load_extractor
from ppvilg.evaluation.files import read_features, read_predictions
from ppvilg.evaluation.parts import joined_parts
from tests.helpers import run_tool


@pytest.fixture(scope="module")
def config(tiny_configs, tiny_runs, tmp_path_factory):
    """Best of 1 and 3 by a dual encoder of three steps, the tiny model's own pictures evaluated."""
    folder = tmp_path_factory.mktemp("eval")
    bases = [str(tiny_configs / "base.yml"), str(tiny_configs / "text.yml")]
    encoder = {"base": bases, "task": "dual_encoder", "train": {"output": str(folder / "dual_encoder")}}
    encoder["dual_encoder"] = {"hidden": 16, "heads": 2, "image_layers": 1, "text_layers": 1, "patch_size": 4, "embedding": 8}
    (folder / "dual_encoder.yml").write_text(yaml.safe_dump(encoder))
    done = run_tool("train", "-c", folder / "dual_encoder.yml")
    assert done.returncode == 0, done.stderr
    tree = {"task": "eval", "model": str(tiny_runs / "vilg"), "dual_encoder": str(folder / "dual_encoder"), "best_of": [1, 3]}
    tree |= {"blur": [0.0, 1.0], "pool": 4}
    (folder / "eval.yml").write_text(yaml.safe_dump(tree))
    return folder / "eval.yml"


@pytest.fixture(scope="module")
def evaluate_here(config):
    """Evaluate in this process, with one extractor for all and without METEOR, whose Java takes seconds to start."""
    extractor = load_extractor("efficientnet-lite0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "load_extractor", lambda name: extractor)
        patch.setattr(captions, "_meteor", lambda references, predictions: None)

        def evaluate(output, *overrides, rank=0, processes=1) -> bool:
            resolved = load_config(config, ["captions=any", *overrides], EvalExperiment)
            return evaluate_model(resolved, "all", output, rank, processes)

        yield evaluate


@pytest.fixture(scope="module")
def output(evaluate_here, config):
    """The folder of a finished evaluation of all 24 pairs."""
    folder = config.parent / "out"
    assert evaluate_here(folder)
    return folder


def rows(output, key: str = "pictures") -> dict[str, dict]:
    report = json.loads((output / "report.json").read_text("utf-8"))
    return {row.get("id", row["title"]): row["measures"] for row in report[key]}


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """By the nuclear norm of the sets' products, which is the trace of the root for any rank."""
    x, y = a - a.mean(0), b - b.mean(0)
    cross = linalg.svdvals(x @ y.T).sum() / np.sqrt((len(a) - 1) * (len(b) - 1))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * cross)


def test_measures_are_those_of_the_parts(output):
    arrays = joined_parts(sorted((output / "parts").glob("*.npz")))
    found = rows(output)
    assert list(found) == ["real", "others", "reconstruction", "nearest", "best of 1", "best of 3", "best of 1, shuffled"]
    for name in ("others", "reconstruction", "best of 3"):
        expected = frechet(*(arrays[f"features@0/{which}"].astype("float64") for which in ("real", name)))
        assert found[name]["FD-EffLite0"] == pytest.approx(expected, rel=1e-3)
        blurred = frechet(*(arrays[f"features@1/{which}"].astype("float64") for which in ("real", name)))
        assert found[name]["FD-EffLite0 blur 1"] == pytest.approx(blurred, rel=1e-3)
    assert "FID" not in json.dumps(found), "only Inception's is called so"
    texts = arrays["embeddings/captions"]
    for name in ("real", "best of 1", "best of 3"):
        score = (1 + (arrays[f"embeddings/{name}"] * texts).sum(1)) / 2
        assert found[name]["score"] == pytest.approx(score.mean(), rel=1e-5)
    assert found["best of 3"]["score"] > found["best of 1"]["score"]
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert any("fewer than the 1281" in warning for warning in report["warnings"])


def test_examples_are_pictures_of_the_model_and_of_the_data(output, tiny_data):
    """Features of the kept pictures are those in the parts; the real ones are the files."""
    report = json.loads((output / "report.json").read_text("utf-8"))
    arrays = joined_parts(sorted((output / "parts").glob("*.npz")))
    with np.load(output / "examples.npz") as examples:
        first = report["examples"][0]
        at = arrays["captions"].tolist().index(first["caption"])
        for name in ("real", "best of 3"):
            features, _ = load_efficientnet()(examples[f"pictures/{name}"][:1])
            np.testing.assert_allclose(features[0], arrays[f"features@0/{name}"][at], atol=1e-4)
        real = cv2.imread(str(tiny_data / first["key"]))[..., ::-1]
        np.testing.assert_array_equal(examples["pictures/real"][0], real)


def test_captions_and_likelihood(output):
    arrays = joined_parts(sorted((output / "parts").glob("*.npz")))
    references = [[caption] for caption in arrays["captions"].tolist()]
    expected = caption_scores(arrays["written"].tolist(), references, "characters")
    assert rows(output, "captions")["written by the model"] == pytest.approx(expected)
    own = rows(output, "likelihood")["the pair's own"]
    bits, tokens, text_bits, characters = arrays["likelihood/own"].sum(0)
    assert own["bits per image token"] == pytest.approx(bits / tokens)
    assert own["bits per character"] == pytest.approx(text_bits / characters)
    assert tokens == 24 * 16
    assert 0 < own["bits per image token"] < 8


def test_page_is_whole_by_itself(output):
    page = (output / "report.html").read_text("utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert page.count("data:image/png;base64,") == 24 * 5
    assert "红色方块一" in page
    assert "<svg" in page


@pytest.fixture
def no_java(monkeypatch):
    """Without it METEOR, which takes seconds to start, is left out."""
    monkeypatch.setenv("PATH", "")


@pytest.mark.usefixtures("no_java")
def test_the_tool_prints_and_refuses(output, config, tmp_path):
    words = ("-c", config, "--split", "validation", "-o", "best_of=[1]", "-o", "blur=[0.0]")
    done = run_tool("eval", *words, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "report.html") in done.stdout
    assert "drawn by the model: FD-EffLite0 " in done.stdout
    refused = run_tool("eval", *words, "--output", output)
    assert refused.returncode == 2
    assert "holds another evaluation" in refused.stderr


def test_interrupted_evaluations_go_on(output, evaluate_here):
    """Only what is missing is computed again, and the report is the same."""
    before = (output / "report.json").read_bytes()
    part = output / "parts" / "00000.npz"
    for missing in (part, output / "report.json"):
        missing.unlink()
        assert evaluate_here(output)
        assert (output / "report.json").read_bytes() == before
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"00000.npz is damaged: remove it"):
        evaluate_here(output)
    part.write_bytes(whole)


def test_processes_share_the_parts(output, evaluate_here, monkeypatch, tmp_path):
    """Parts of four pairs, every second one by each process; the last one writes the report, the same as one process alone."""
    monkeypatch.setattr(parts, "PAIRS_PER_PART", 4)
    assert not evaluate_here(tmp_path, rank=0, processes=2)
    assert len(list((tmp_path / "parts").iterdir())) == 3
    assert not (tmp_path / "report.json").exists()
    assert evaluate_here(tmp_path, rank=1, processes=2)
    alone = rows(output)
    for name, measures in rows(tmp_path).items():
        assert measures == pytest.approx(alone[name], rel=1e-2, abs=1e-4), name


def test_comparison(output, evaluate_here, tmp_path):
    other = tmp_path / "other"
    assert evaluate_here(other, "temperature=0.1", "pool=3")
    done = run_tool("eval", "compare", output, other, "--output", tmp_path / "both.html")
    assert done.returncode == 0, done.stderr
    assert "pools of captions differ" in done.stderr
    page = (tmp_path / "both.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 24 * 7
    assert page.count("other real pictures of the same styles") == 1, "what both have in common stands once"
    missing = run_tool("eval", "compare", output, tmp_path / "no")
    assert missing.returncode == 2
    assert "give the folder of a finished evaluation" in missing.stderr
    assert run_tool("eval", "compare", output).returncode == 2


def lines(path, *entries):
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), "utf-8")
    return path


@pytest.mark.usefixtures("no_java")
def test_files_of_captions_and_answers(tmp_path):
    predictions = lines(tmp_path / "p.jsonl", {"id": 1, "text": "红苹果"}, {"id": "b", "text": "两只猫"})
    references = lines(tmp_path / "r.jsonl", {"id": "b", "texts": ["两只猫", "猫"]}, {"id": "1", "texts": ["青苹果"]})
    done = run_tool("eval", "captions", predictions, references)
    assert done.returncode == 0, done.stderr
    assert "exact match      0.5000" in done.stdout
    done = run_tool("eval", "answers", predictions, references)
    assert "exact            0.5000" in done.stdout
    predictions.write_text("", "utf-8")
    done = run_tool("eval", "captions", predictions, references)
    assert done.returncode == 2
    assert "is empty" in done.stderr


def test_captions_that_infer_wrote(tiny_model, tiny_data, tmp_path):
    """As they are, beside references by the images' names."""
    images = [tiny_data / f"{i:02d}.png" for i in range(3)]
    words = [word for image in images for word in ("--image", image)]
    done = run_tool("infer", "--mode", "i2t", "--model", tiny_model, *words, "--json", tmp_path / "made.json")
    assert done.returncode == 0, done.stderr
    captions = [line.split("  ", 1)[1] for line in done.stdout.splitlines()]
    expected = [["红色方块一", "红色方块"], ["绿色方块一"], ["蓝色方块一"]]
    wanted = [{"image": image.name, "texts": texts} for image, texts in zip(images, expected, strict=True)]
    references = lines(tmp_path / "references.jsonl", *wanted)
    names, predictions, given = read_predictions(tmp_path / "made.json", references)
    assert (names, predictions, given) == ([image.name for image in images], captions, expected)
    done = run_tool("eval", "captions", tmp_path / "made.json", references)
    assert done.returncode == 0, done.stderr
    scores = caption_scores(captions, expected, "characters")
    assert f"BLEU-1           {scores['BLEU-1']:.4f}" in done.stdout


def test_models_describe_a_split_beside_one_another(tiny_configs, tiny_runs, tiny_model, tmp_path):
    done = run_tool(
        *("eval", "i2t", "-c", tiny_configs / "vilg.yml", "--split", "validation", tiny_model, tiny_runs / "vilg_e2e"),
        *("--output", tmp_path, "--images", 4),
    )
    assert done.returncode == 0, done.stderr
    header, *rows, folder = done.stdout.splitlines()
    assert (header.split(), folder) == (["vilg", "vilg_e2e"], str(tmp_path))
    shown = {" ".join(row.split()[:-2]): row.split()[-2:] for row in rows}
    for i, name in enumerate(("vilg", "vilg_e2e")):
        keys, predictions, references = read_predictions(tmp_path / f"{name}.jsonl", tmp_path / "references.jsonl")
        assert len(keys) == 4
        assert shown["ROUGE-L"][i] == f"{caption_scores(predictions, references, 'characters')['ROUGE-L']:.4f}"
    done = run_tool("eval", "i2t", "-c", tiny_configs / "vilg.yml", "--split", "validation", tiny_model, tiny_runs / "vilg")
    assert done.returncode == 2
    assert "two models' folders are called vilg" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "is empty"),
        ('{"id": "1"}\n', "p.jsonl:1: expected"),
        ("not JSON\n", "p.jsonl:1: expected"),
        ('{"id": "1", "text": ["a"]}\n', "is not a text"),
        ('{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}\n', "stands twice"),
        ('{"id": "1", "text": "a"}\n{"id": "c", "text": "b"}\n', "c has no references"),
        ('{"id": "1", "text": "a"}\n', "b has no prediction"),
    ],
)
def test_damaged_predictions_are_refused(text, message, tmp_path):
    references = lines(tmp_path / "r.jsonl", {"id": "b", "texts": ["猫"]}, {"id": "1", "texts": ["青苹果"]})
    (tmp_path / "p.jsonl").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "p.jsonl", references)
    with pytest.raises(ValueError, match="cannot read"):
        read_predictions(tmp_path / "no.jsonl", references)


def test_distance_of_folders_and_features(tiny_data, tmp_path):
    pictures = np.stack([cv2.imread(str(path))[..., ::-1] for path in sorted(tiny_data.glob("*.png"))])
    features, _ = load_efficientnet()(pictures[:12])
    np.savez(tmp_path / "a.npz", features)
    done = run_tool("eval", "distance", tiny_data, tmp_path / "a.npz", "--size", 16)
    assert done.returncode == 0, done.stderr
    assert "24 real and 12 made pictures, 1280 features" in done.stdout
    assert "covariances are singular" in done.stderr
    shown = float(re.search(r"FD-EffLite0 +([\d.]+)", done.stdout).group(1))
    assert shown == pytest.approx(frechet(load_efficientnet()(pictures)[0].astype("f8"), features.astype("f8")), rel=1e-3)
    np.savez(tmp_path / "b.npz", features[:, :7])
    done = run_tool("eval", "distance", tmp_path / "a.npz", tmp_path / "b.npz")
    assert done.returncode == 2
    assert "different lengths, 1280 and 7" in done.stderr
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.npz").write_bytes(b"nothing")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"nothing")
    extractor = load_extractor("efficientnet-lite0")
    for other, message in (
        ("empty", "no images"),
        ("c.npz", "c.npz is damaged: give a folder"),
        ("bad", "x.png: not an image"),
    ):
        with pytest.raises(ValueError, match=message):
            read_features(tmp_path / other, extractor, 16)
