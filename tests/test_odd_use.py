"""What people do by mistake: each is one sentence on standard error and exit code 2, before any work, and leaves every byte."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppvilg import ViLGPipeline, cli
from ppvilg.dual_encoder import rerank
from ppvilg.generate.sampling import Sampling
from ppvilg.hub import ErnieVilG
from ppvilg.pictures import labelled_grid, plain_grid, save_png
from tests.helpers import contents
from tests.models import random_scorer


@pytest.fixture(scope="module")
def tools():
    """A function that runs a tool's `main` in this process."""

    def load(name: str):
        path = Path("deploy" if name in ("export", "serve") else "tools") / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def place(tiny_configs, tiny_data, tiny_model, tmp_path_factory) -> Path:
    """A folder with a model, pictures and a file; the commands of this module may not change it."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_data, folder / "pictures")
    (folder / "file").write_text("red\n")
    (folder / "empty.txt").write_text("\n \n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    Image.new("RGB", (16, 16), "red").save(folder / "image.png")
    (folder / "half.png").write_bytes((folder / "image.png").read_bytes()[:-20])
    return folder


DRAW = ["infer", "--mode", "t2i", "--model", "{}/model", "--output", "{}/new"]
CAPTION = ["infer", "--mode", "i2t", "--model", "{}/model", "--image", "{}/image.png"]
ANSWER = ["infer", "--mode", "vqa", *CAPTION[3:]]
COMPLETE = ["infer", "--mode", "complete", "--model", "{}/model", "--image", "{}/image.png", "--output", "{}/new"]
COMPLETE += ["--text", "红"]
TRAIN = ["train", "-c", "CONFIGS/vqgan.yml", "-o", "data.path={}/pictures", "-o", "train.output={}/new"]
ODD = [
    # Numbers that are none, or out of range.
    ([*DRAW, "--text", "红", "--seed", "-1"], "seed is -1"),
    ([*DRAW, "--text", "红", "--temperature", "nan"], "temperature is nan"),
    ([*DRAW, "--text", "红", "--temperature", "1e-40"], "temperature is 1e-40"),
    ([*DRAW, "--text", "红", "--temperature", "inf"], "temperature is inf"),
    ([*DRAW, "--text", "红", "--guidance", "nan"], "guidance_scale is nan"),
    ([*DRAW, "--text", "红", "--guidance", "1e300"], "guidance_scale is 1e+300"),
    ([*DRAW, "--text", "红", "--top-p", "nan"], "top_p is nan"),
    ([*DRAW, "--text", "红", "--top-k", "-5"], "top_k is -5"),
    ([*DRAW, "--text", "红", "--samples", "0"], "--samples is 0"),
    ([*DRAW, "--text", "红", "--best-of", "0"], "--best-of is 0"),
    ([*CAPTION, "--beams", "100000"], "num_beams is 100000: expected an integer from 1 to 256"),
    ([*CAPTION, "--beams", "2", "--length-penalty", "nan"], "length_penalty is nan"),
    ([*CAPTION, "--beams", "2", "--length-penalty", "1e10"], "length_penalty is 10000000000.0"),
    ([*COMPLETE, "--keep-rows", "0"], "keep_rows is 0"),
    ([*COMPLETE, "--keep-rows", "1000000"], "keep_rows is 1000000"),
    ([*TRAIN, "-o", "train.seed=-1"], "train.seed: -1"),
    ([*TRAIN, "-o", "train.seed=1000000000000000000000"], "train.seed"),
    ([*TRAIN, "-o", "train.learning_rate=.nan"], "train.learning_rate"),
    ([*TRAIN, "-o", "train.learning_rate=.inf"], "train.learning_rate"),
    ([*TRAIN, "-o", "train.batch_size=0"], "train.batch_size"),
    ([*TRAIN, "-o", "data.image_size=0"], "data.image_size"),
    (["bench", "attention", "--repetitions", "0"], "--repetitions is 0"),
    (["bench", "attention", "--side", "0"], "--side is 0"),
    (["build_vocabulary", "--data", "{}/pictures", "--limit", "-1", "--output", "{}/new.txt"], "--limit is -1"),
    ([*DRAW, "--text", "红", "--top-p", "2"], "top_p is 2.0"),
    ([*DRAW, "--text", "红", "--guidance", "-1"], "guidance_scale is -1.0"),
    ([*DRAW, "--text", "红", "--best-of", "1", "--samples", "2"], "--best-of is 1"),
    ([*CAPTION, "--beams", "0"], "num_beams is 0"),
    ([*CAPTION, "--beams", "2", "--samples", "2"], "num_beams is 2"),
    ([*COMPLETE, "--keep-rows", "4"], "keep 1 to 3"),
    # Outputs that cannot be written.
    ([*DRAW, "--text", "红", "--output", "{}/file"], "--output is {}/file, but {}/file is a file"),
    ([*DRAW, "--text", "红", "--output", "{}/file/new"], "but {}/file is a file"),
    ([*DRAW, "--text", "红", "--json", "{}/no/x.json"], "--json is {}/no/x.json"),
    ([*DRAW, "--text", "红", "--json", "{}"], "--json is {}"),
    ([*CAPTION, "--json", "{}/no/x.json"], "--json is {}/no/x.json"),
    ([*TRAIN, "-o", "train.output={}/file"], "train.output is {}/file"),
    ([*TRAIN, "-o", "train.output={}/file/run"], "train.output is {}/file/run"),
    ([*TRAIN, "-o", "train.output={}/model"], "train.output is {}/model, which holds a model"),
    ([*TRAIN, "-o", "train.output={}/file", "--resume"], "train.output is {}/file"),
    (["build_vocabulary", "--data", "{}/pictures", "--output", "{}/no/vocab.txt"], "--output is {}/no/vocab.txt"),
    (["demo", "--output", "{}/file"], "--output is {}/file"),
    (["demo", "--prompts", "{}/no.txt"], "--prompts is {}/no.txt"),
    (["ablation", "--output", "{}/file"], "--output is {}/file"),
    (["export", "--checkpoint", "{}/model", "--out", "{}/file/new"], "--out is {}/file/new"),
    (["merge_checkpoint", "{}/model", "-o", "{}/file/new"], "--output is {}/file/new"),
    (["convert", "taming", "{}/file", "{}/file", "--out", "{}/file/new"], "--out is {}/file/new"),
    (["eval", "compare", "{}/a", "{}/b", "--output", "{}/no/page.html"], "--output is {}/no/page.html"),
    # Options that would do nothing.
    ([*CAPTION, "--guidance", "2"], "--guidance is for --mode t2i and --mode complete"),
    ([*CAPTION, "--text", "红"], "--text is for --mode t2i"),
    ([*CAPTION, "--output", "{}/new"], "--output is for --mode t2i"),
    ([*CAPTION, "--decoder", "hidden"], "--decoder is for --mode t2i"),
    ([*CAPTION, "--keep-rows", "2"], "--keep-rows is for --mode complete"),
    ([*CAPTION, "--length-penalty", "2"], "--length-penalty does nothing without --beams"),
    ([*CAPTION, "--top-k", "5"], "--top-k does nothing without a --temperature above 0"),
    ([*DRAW, "--text", "红", "--image", "{}/image.png"], "--image is for --mode i2t and --mode vqa and --mode complete"),
    ([*DRAW, "--text", "红", "--beams", "4"], "--beams is for --mode i2t"),
    ([*DRAW, "--text", "红", "--keep-rows", "2"], "--keep-rows is for --mode complete"),
    ([*DRAW, "--text", "红", "--dual-encoder", "{}/model"], "--dual-encoder does nothing without --best-of"),
    ([*COMPLETE, "--keep-rows", "2", "--best-of", "4"], "--best-of is for --mode t2i"),
    ([*COMPLETE, "--keep-rows", "2", "--text-file", "-"], "--text-file is for --mode t2i"),
    ([*DRAW, "--text", "红", "--question", "什么"], "--question is for --mode vqa"),
    ([*DRAW, "--text", "红", "--lora-scale", "2"], "--lora-scale does nothing without --lora"),
    ([*ANSWER, "--question", "红", "--top-p", "0.5"], "--top-p does nothing without a --temperature above 0"),
    ([*DRAW, "--text", "红", "--decoder", "hidden"], "no reconstructor"),
    # Texts and pictures that are none.
    (DRAW, "there is no text"),
    ([*DRAW, "--text", "红" * 20], "shorten it"),
    ([*DRAW, "--text-file", "no.txt"], "no.txt: No such file"),
    (COMPLETE, "there is no --keep-rows"),
    ([*COMPLETE, "--keep-rows", "2", "--image", "{}/image.png"], "2 --image and 1 --text"),
    (["infer", "--mode", "i2t", "--model", "{}/model"], "there is no image"),
    (ANSWER, "there is no question"),
    ([*ANSWER, "--question", " "], "the text is empty"),
    ([*CAPTION, "--image", "no.png"], "no.png: No such file"),
    ([*CAPTION, "--image", "{}/file"], "{}/file: not an image"),
    ([*DRAW, "--text", "红", "--model", "no/such"], "no folder no/such"),
    ([*DRAW, "--text", "红", "--model", "{}/pictures"], "no config.json and no config.yml"),
    ([*DRAW, "--text", "红", "--best-of", "4", "--dual-encoder", "no/such"], "there is no folder no/such"),
    ([*DRAW, "--text", ""], "the text is empty"),
    ([*DRAW, "--text", "\u3000"], "the text is empty"),
    ([*DRAW, "--text", "🍎"], "the text '🍎' has no word that the model knows"),
    ([*DRAW, "--text", "사과"], "has no word that the model knows"),
    ([*DRAW, "--text", "\u200b"], "has no word that the model knows"),
    ([*COMPLETE, "--keep-rows", "2", "--text", "🍎", "--image", "{}/image.png"], "has no word that the model knows"),
    ([*DRAW, "--text", "\udcff"], "is not UTF-8"),
    ([*DRAW, "--text-file", "{}/empty.txt"], "there is no text"),
    ([*DRAW, "--text-file", "{}/binary.txt"], "binary.txt"),
    ([*DRAW, "--text-file", "{}"], "{}: Is a directory"),
    ([*CAPTION, "--image", "{}/half.png"], "half.png: the image is truncated"),
    ([*CAPTION, "--image", "{}"], "{}: Is a directory"),
    ([*CAPTION, "--image", ""], "Is a directory"),
    ([*TRAIN, "-o", "data.path={}/file"], "data.path {}/file is not a folder"),
    ([*TRAIN, "-o", "data.path={}/model"], "{}/model has neither tar shards nor a captions file"),
    (["export", "--checkpoint", "{}/pictures", "--out", "{}/new"], "{}/pictures has no config.json and no config.yml"),
]


@pytest.mark.parametrize(("command", "said"), ODD, ids=[" ".join(command[:1] + command[-2:]) for command, _ in ODD])
def test_odd_use_is_one_sentence(tools, place, tiny_configs, capsys, monkeypatch, command, said):
    name, *words = [word.replace("{}", str(place)).replace("CONFIGS", str(tiny_configs)) for word in command]
    monkeypatch.setattr(sys, "argv", [name, *words])
    before = contents(place)
    with pytest.raises(SystemExit) as end:
        cli.run(tools(name).main)
    shown = capsys.readouterr()
    assert (end.value.code, shown.err.count("\n"), shown.out) == (2, 1, ""), shown
    assert shown.err.startswith("error: ")
    assert said.replace("{}", str(place)) in shown.err
    assert contents(place) == before
    assert not (place / "new").exists()


CALLS = {
    "no prompts": (lambda pipe: pipe([]), "prompt is \\[\\]"),
    "a blank prompt": (lambda pipe: pipe(["红", " "]), "the text is empty"),
    "prompts that are no texts": (lambda pipe: pipe([1]), "prompt is \\[1\\]"),
    "no image": (lambda pipe: pipe("红", num_images_per_prompt=0), "num_images_per_prompt is 0"),
    "no candidate": (lambda pipe: pipe("红", num_candidates=0), "num_candidates is 0"),
    "a temperature that is none": (lambda pipe: pipe("红", temperature=float("nan")), "temperature is nan"),
    "a temperature too large for a float": (lambda pipe: pipe("红", temperature=10**400), "temperature is 1000"),
    "a guidance that is none": (lambda pipe: pipe("红", guidance_scale=float("nan")), "guidance_scale is nan"),
    "an unknown prompt": (lambda pipe: pipe("한국"), "no word that the model knows"),
    "an unknown prompt among others": (lambda pipe: pipe(["红", "🍎"]), "'🍎' has no word"),
    "no prompt to encode": (lambda pipe: pipe.encode_prompts([]), "prompt is \\[\\]"),
    "no images": (lambda pipe: pipe.caption([]), "images is \\[\\]"),
    "no captions": (lambda pipe: pipe.caption(red(), num_captions=0), "num_captions is 0"),
    "an array without pixels": (lambda pipe: pipe.caption(np.zeros((0, 0, 3), np.uint8)), "uint8 \\[0, 0, 3\\]"),
    "arrays without pixels": (lambda pipe: pipe.caption(np.zeros((2, 0, 0, 3), np.uint8)), "uint8 \\[0, 0, 3\\]"),
    "an array of no images": (lambda pipe: pipe.caption(np.zeros((0, 16, 16, 3), np.uint8)), "at least one"),
    "a plane": (lambda pipe: pipe.caption(np.zeros((0, 0), np.uint8)), "uint8 \\[0, 0\\]"),
    "a PIL image without pixels": (lambda pipe: pipe.caption(Image.new("RGB", (5, 0))), "5x0 pixels"),
    "a hundred thousand beams": (lambda pipe: pipe.caption(red(), num_beams=100_000), "num_beams is 100000"),
    "no text to score": (lambda pipe: pipe.score([red()], []), "texts is \\[\\]"),
    "an empty text to score": (lambda pipe: pipe.score([red()], ""), "the text is empty"),
    "no text to embed": (lambda pipe: pipe.dual_encoder.embed_texts([]), "texts is \\[\\]"),
    "no image to embed": (lambda pipe: pipe.dual_encoder.embed_images([]), "at least one"),
    "nothing to rank": (lambda pipe: rerank(pipe.dual_encoder, [], "红"), "no image to rank"),
    "a sampling without a temperature": (lambda pipe: Sampling(temperature=float("nan")), "temperature is nan"),
    "a sampling without guidance": (lambda pipe: Sampling(guidance=float("nan")), "guidance is nan"),
    "a grid of nothing": (lambda pipe: labelled_grid([], 1), "no picture to show"),
    "rows of nothing": (lambda pipe: plain_grid([[]]), "no picture to show"),
    "a picture of nothing": (lambda pipe: save_png(np.zeros((0, 0, 3), np.uint8), Path("x.png")), "uint8 \\[0, 0, 3\\]"),
}


def red() -> Image.Image:
    return Image.new("RGB", (16, 16), "red")


@pytest.fixture(scope="module")
def pipe(tiny_model, tiny_data) -> ViLGPipeline:
    return ViLGPipeline.from_pretrained(tiny_model, dual_encoder=random_scorer(tiny_data / "vocab.txt"))


@pytest.mark.parametrize("name", CALLS)
def test_odd_calls_are_value_errors(pipe, name):
    call, said = CALLS[name]
    with pytest.raises(ValueError, match=said):
        call(pipe)


def test_a_text_for_a_list_of_texts_is_one_text(pipe):
    assert pipe.encode_prompts("红色") == pipe.encode_prompts(["红色"])
    np.testing.assert_array_equal(pipe.dual_encoder.embed_texts("红色"), pipe.dual_encoder.embed_texts(["红色"]))
    assert len(pipe("红色方块").images) == 1


def test_many_captions_are_written_in_batches(pipe):
    few, many = (pipe.caption(red(), num_captions=count, temperature=1.0)[0] for count in (3, 150))
    assert len(many) == 150
    assert many[:3] == few


def test_paddlehubs_call_is_checked_first(pipe, tmp_path):
    hub = ErnieVilG.__new__(ErnieVilG)
    hub.pipeline, file = pipe, tmp_path / "file"
    file.write_text("")
    for options, said in (
        ({"text_prompts": []}, "text_prompts is"),
        ({"text_prompts": None}, "text_prompts is None"),
        ({"text_prompts": "🍎", "style": "plain"}, "no word that the model knows"),  # whatever the style's words
        ({"text_prompts": "红", "style": 1}, "no style '1'"),
        ({"text_prompts": "红", "resolution": 16}, "resolution is '16'"),
        ({"text_prompts": "红", "output_dir": file}, "output_dir is"),
        ({"text_prompts": "红", "output_dir": file / "new"}, "output_dir is"),
    ):
        with pytest.raises(ValueError, match=said):
            hub.generate_image(**options)


def draw(tools, monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["infer", "--mode", "t2i", *map(str, words)])
    tools("infer").main()


def test_what_is_known_in_part_is_drawn_with_a_warning(tools, place, tmp_path, capsys, monkeypatch):
    draw(tools, monkeypatch, "--model", place / "model", "--text", "红🍎", "--output", tmp_path)
    assert capsys.readouterr().err == "warning: the model knows 1 of the 2 tokens of '红🍎'\n"


def test_images_of_an_earlier_call_go_and_files_of_others_stay(tools, place, tmp_path, monkeypatch):
    for name in ("0005.png", "0099.png", "mine.png", "0001.txt"):
        save_png(np.zeros((4, 4, 3), np.uint8), tmp_path / name)
    common = ["--model", place / "model", "--text", "红色方块", "--output", tmp_path]
    draw(tools, monkeypatch, *common, "--samples", 4)
    draw(tools, monkeypatch, *common, "--samples", 2, "--seed", 5)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"0000.png", "0001.png", "grid.png", "0005.png", "0099.png", "mine.png", "0001.txt"}
    assert Image.open(tmp_path / "0000.png").info["Description"] == "红色方块"


def test_a_grid_of_many_images_can_be_looked_at(tools, place, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.txt").write_text("红\n蓝\u2028色\n" * 12, "utf-8")
    common = ["--model", place / "model", "--text-file", tmp_path / "prompts.txt", "--output", tmp_path / "out"]
    draw(tools, monkeypatch, *common, "--samples", 40, "--json", tmp_path / "made.json")
    assert len(json.loads((tmp_path / "made.json").read_text("utf-8"))) == len(list((tmp_path / "out").glob("0*.png"))) == 960
    width, height = Image.open(tmp_path / "out" / "grid.png").size
    assert max(width, height) < 2000
    assert "the grid shows 16 images each of the first 16 texts; all 960 are beside it" in capsys.readouterr().err


def test_a_reader_that_leaves_gets_no_traceback(place, tmp_path):
    """As with `| head -1`, or with nobody at all; the files are there all the same."""
    command = [
        "tools/infer.py",
        "--mode",
        "t2i",
        "--model",
        place / "model",
        "--text",
        "红",
        "--samples",
        3,
        "--output",
        tmp_path,
    ]
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, *map(str, command)], stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        os.close(reader)
        said = process.stderr.read()
    assert (process.returncode, said) == (128 + signal.SIGPIPE, "")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 128 + signal.SIGINT)])
def test_a_signal_leaves_nothing_half_written(tmp_path, number, code):
    script = f"""
import os, signal
from pathlib import Path
from ppvilg.cli import run
from ppvilg.folder import new_folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
def main():
    with new_folder(Path({str(tmp_path / "new")!r})) as folder:
        (folder / "weights").write_text("half")
        os.kill(os.getpid(), {int(number)})
        while True: pass
run(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")
    assert not list(tmp_path.iterdir())


def test_the_first_process_of_a_container_ends_by_a_signal_too():
    """Such a process is not ended by SIGTERM itself; here the signal is taken from it."""
    code = (
        "import os, signal; from ppvilg.cli import run; signal.raise_signal = lambda number: None\n"
        "def main():\n    os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()\nrun(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
