"""The preparation as a whole: what comes out, whoever makes it and however often it is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from pydantic import TypeAdapter

from ppvilg.data.prepare import PrepareExperiment, prepare
from ppvilg.data.prepare.finish import _repeats
from ppvilg.data.prepared import verify
from ppvilg.data.readers import AnyReader
from ppvilg.data.sources import open_source
from ppvilg.data.splits import load_images
from ppvilg.pictures import to_model
from ppvilg.vqgan.folder import load_vqgan
from tests.data.broken_corpus import write_corpus
from tests.data.prepare.killers import Killer, Unavailable
from tests.server.conftest import until

READER = TypeAdapter(AnyReader)


def reader(**section) -> AnyReader:
    return READER.validate_json(json.dumps(section))


def contents(folder: Path) -> dict[str, bytes]:
    """All that depends on the data; config.yml also says who has made it."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "config.yml"}


def pictures(folder: Path, captions: list[str], same: dict[int, int] | None = None) -> Path:
    """A JSONL file with a picture of noise for each caption; `same`: those that look like an earlier one."""
    folder.mkdir()
    lines = []
    for i, caption in enumerate(captions):
        noise = np.random.default_rng((same or {}).get(i, i)).integers(0, 256, (8, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(noise, (32, 32), interpolation=cv2.INTER_NEAREST))
        lines.append(json.dumps({"file": f"{i}.png", "caption": caption}, ensure_ascii=False))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "captions.jsonl"


def everything(folder: Path) -> dict[str, list[str]]:
    """Key: all captions."""
    return {
        record.key: [text for texts in record.captions.values() for text in texts]
        for record in open_source(folder, "all").records
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> PrepareExperiment:
    """40 pairs in several units."""
    file = pictures(tmp_path_factory.mktemp("small") / "data", [f"第{i}张图片" for i in range(40)])
    source = reader(format="jsonl", path=str(file), unit_bytes=400)
    return PrepareExperiment(sources={"own": source}, output="", image_size=16, images="png", validation_fraction=0.2)


def run(config: PrepareExperiment, output: Path, **changes) -> Path:
    return prepare(PrepareExperiment(**(vars(config) | {"output": str(output)} | changes)))


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory) -> Path:
    return run(small, tmp_path_factory.mktemp("undisturbed") / "out")


def test_all_pairs_come_out_with_their_images(small, undisturbed):
    assert everything(undisturbed) == {f"{i}.png": [f"第{i}张图片"] for i in range(40)}
    training, validation = (open_source(undisturbed, split) for split in ("train", "validation"))
    assert len(training) + len(validation) == 40
    assert 2 <= len(validation) <= 16
    folder = Path(small.sources["own"].path).parent
    plain = open_source(folder, "train", validation_fraction=0.2)
    assert set(plain.records.names()) == set(training.records.names()), "the split is that of the plain folder"
    for i in (0, 5):
        own = plain.records.names().index(training.records[i].key)
        np.testing.assert_array_equal(load_images(training, [i], 16), load_images(plain, [own], 16))
    assert {record.metadata["source"] for record in training.records} == {"own"}
    assert verify(undisturbed) == 2


def test_two_workers_write_the_same(small, undisturbed, tmp_path):
    assert contents(run(small, tmp_path / "out", workers=2)) == reported(undisturbed, tmp_path / "out")


def reported(folder: Path, as_if: Path) -> dict[str, bytes]:
    """A preparation's files as those of another folder, which the report names."""
    text = (folder / "report.html").read_text("utf-8").replace(str(folder), str(as_if))
    return contents(folder) | {"report.html": text.encode()}


def test_workers_that_pairs_kill(small, undisturbed, tmp_path):
    keys = ("3.png", "17.png", "18.png")
    folder = run(small, tmp_path / "out", filters=[Killer(keys)])
    left = {f"{i}.png": [f"第{i}张图片"] for i in range(40) if f"{i}.png" not in keys}
    assert everything(folder) == left
    faults = [line.split("\t") for line in (folder / "faults.tsv").read_text("utf-8").splitlines()]
    assert [(where.rpartition(" ")[2], why) for where, why in faults] == [(key, "kills its worker") for key in keys]


def test_an_exception_in_a_filter_is_its_pair_s(small, tmp_path):
    folder = run(small, tmp_path / "out", filters=[Killer(("3.png",), raises=True)])
    assert len(everything(folder)) == 39
    assert "3.png\tkills its worker" in (folder / "faults.tsv").read_text("utf-8")


def test_a_caption_that_is_no_unicode_stops_nothing(tmp_path):
    file = pictures(tmp_path / "data", ["红苹果", "绿苹果", "黄苹果"])
    lines = file.read_text("utf-8").replace("绿苹果", "\\ud800苹果")  # half of a surrogate pair, which JSON can write
    file.write_text(lines, "utf-8")
    config = PrepareExperiment(
        sources={"own": reader(format="jsonl", path=str(file))}, output=str(tmp_path / "out"), image_size=16
    )
    assert everything(prepare(config)).keys() >= {"0.png", "2.png"}


def test_a_preparation_that_was_killed_at_its_very_end(undisturbed, small, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "out")
    (folder / "parts").mkdir()
    before = {path.name for path in undisturbed.iterdir()}
    assert run(small, folder) == folder
    assert {path.name for path in folder.iterdir()} == before


def test_what_is_outside_of_the_data_stops_the_job_and_blames_no_pair(small, undisturbed, tmp_path):
    for _ in range(6):
        with pytest.raises(ValueError, match="the service is gone"):
            run(small, tmp_path / "out", filters=[Unavailable()])
    notes = list((tmp_path / "out" / "parts").glob("*.at"))
    assert not notes
    with pytest.raises(ValueError, match="another filters"):
        run(small, tmp_path / "out")


def test_an_output_that_is_none(small, undisturbed, tmp_path):
    with pytest.raises(ValueError, match="is prepared already"):
        run(small, undisturbed)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is no preparation"):
        run(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_corpus(tmp_path):
    corpus = write_corpus(tmp_path / "data", inputs=600)
    sources = {f"s{i}": reader(**section) for i, section in enumerate(corpus.readers)}
    folder = prepare(PrepareExperiment(sources=sources, output=str(tmp_path / "out"), image_size=8, images="png"))
    good = {key: [caption] for key, caption in corpus.good.items() if key not in corpus.undecodable}
    assert everything(folder) == good
    faults = dict(line.split("\t") for line in (folder / "faults.tsv").read_text("utf-8").splitlines())
    assert faults == corpus.broken
    report = json.loads((folder / "report.json").read_text("utf-8"))
    read, decode = report["funnel"][:2]
    assert sum(read["dropped_pairs"].values()) == len(corpus.broken)
    assert sum(decode["dropped_pairs"].values()) == len(corpus.undecodable)
    assert report["splits"]["train"] + report["splits"]["validation"] == len(good)


def test_duplicates(tmp_path):
    captions = ["红苹果", "绿苹果", "红苹果!", "黄苹果", "红 苹果"]
    file = pictures(tmp_path / "data", captions, same={3: 1})
    with file.open("a", encoding="utf-8") as lines:  # a row of the first picture, apart from its other one
        lines.write(json.dumps({"file": "0.png", "caption": "水果"}, ensure_ascii=False) + "\n")
    config = PrepareExperiment(
        sources={"own": reader(format="jsonl", path=str(file))}, output="", image_size=16, validation_fraction=0.0
    )
    merged = {"0.png": ["红苹果", "水果"]}
    rest = {"1.png": ["绿苹果"], "2.png": ["红苹果!"], "4.png": ["红 苹果"]}
    assert everything(run(config, tmp_path / "images")) == merged | rest
    none = {"images": False, "captions": False}
    assert len(everything(run(config, tmp_path / "none", duplicates=type(config.duplicates)(**none)))) == 5
    both = run(config, tmp_path / "both", duplicates=type(config.duplicates)(images=True, captions=True))
    assert everything(both) == merged | {"1.png": ["绿苹果"]}
    step = json.loads((both / "report.json").read_text("utf-8"))["funnel"][-1]
    assert step["dropped_pairs"] == {
        "rows of one image, now one pair": 1,
        "an image that came before": 1,
        "all its captions came before": 2,
    }


def test_repeats_against_a_dictionary():
    values = np.random.default_rng(0).integers(0, 30, 100)
    seen, expected = {}, []
    for i, value in enumerate(values.tolist()):
        if value in seen:
            expected.append((seen[value], i))
        seen.setdefault(value, i)
    assert list(zip(*map(np.ndarray.tolist, _repeats(values)), strict=True)) == expected


def test_tokens_are_the_tokenizer_s(small, tiny_runs, tmp_path):
    folder = run(small, tmp_path / "out", tokenizer=str(tiny_runs / "vqgan"), rows_per_shard=7)
    vqgan = load_vqgan(tiny_runs / "vqgan")
    for split in ("train", "validation"):
        source = open_source(folder, split)
        images = to_model(load_images(source, list(range(len(source))), 16))
        with paddle.no_grad():
            expected = vqgan.encode(paddle.to_tensor(images)).flatten(1).numpy()
        found = source.tokens[range(len(source))]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(source.tokens.unigram, np.bincount(found.ravel(), minlength=len(source.tokens.unigram)))
    assert len(list(folder.glob("train-*.arrow"))) > 2


def command(config: PrepareExperiment, output: Path, *more: str) -> list[str]:
    """The tool's, for the same config."""
    own = config.sources["own"]
    section = {"format": "jsonl", "path": own.path, "unit_bytes": own.unit_bytes}
    tree = {"task": "data", "sources": {"own": section}, "output": str(output), "image_size": 16, "images": "png"}
    file = output.with_name("config.yml")
    file.write_text(yaml.safe_dump(tree | {"validation_fraction": 0.2}), "utf-8")
    return [sys.executable, "tools/prepare_data.py", "-c", str(file), *more]


def children(process: subprocess.Popen) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(small, undisturbed, tmp_path, kills):
    """Driver or worker, whatever is there; the tool goes on by the same command."""
    chance, output, done, left = random.Random(0), tmp_path / "out", 0, []
    for _ in range(100):
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(command(small, output), stdout=log, stderr=log)
            if done < kills:
                try:
                    process.wait(chance.uniform(0.5, 4.0))
                except subprocess.TimeoutExpired:
                    of_worker = children(process)
                    os.kill(chance.choice([process.pid, *of_worker]), signal.SIGKILL)
                    done += 1
                    left += of_worker
            code = process.wait()
        if code == 0:
            if done >= kills:
                break
            shutil.rmtree(output)  # it was done before it could be killed
    assert code == 0, (tmp_path / "log").read_text()
    assert done == kills
    assert contents(output) == reported(undisturbed, output)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))  # nobody waits for a driver that is gone


def test_the_tool_says_what_is_wrong(tmp_path):
    config = tmp_path / "config.yml"
    for tree, said in (
        ({"sources": {"a": {"format": "jsonl", "path": "nowhere"}}, "output": "x"}, "nowhere"),
        ({"sources": {"a": {"format": "jsonnl", "path": "x"}}, "output": "x"}, "jsonnl"),
        ({"sources": {}, "output": "x"}, "sources"),
        ({"sources": {"a": {"format": "jsonl", "path": "x"}}, "output": "x", "filters": [{"filter": "nouns"}]}, "nouns"),
        ({"sources": {"a": {"format": "jsonl", "path": "x"}}, "output": "x", "filtres": []}, "filters"),
        ({"sources": {"a": {"format": "jsonl", "path": "x", "imags": "y"}}, "output": "x"}, "imags"),
        ({"sources": {"a": {"format": "jsonl", "path": "x"}}, "output": "x", "images": None}, "images"),
    ):
        config.write_text(yaml.safe_dump({"task": "data"} | tree), "utf-8")
        done = subprocess.run(
            [sys.executable, "tools/prepare_data.py", "-c", str(config)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert said in done.stderr
        assert str(config) in done.stderr or said == "nowhere"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_writes_the_same(small, undisturbed, tmp_path, workers):
    output = tmp_path / "out"
    done = subprocess.run(
        command(small, output, "-o", "engine=ray", "-o", f"ray.workers={workers}"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(output) == reported(undisturbed, output)
