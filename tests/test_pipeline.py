"""ViLGPipeline: what it draws and writes, what it reads and saves, and what it refuses."""

import gc
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import paddle
import pytest
from PIL import Image

import ppvilg
from ppvilg import ViLGPipeline, checkpoint
from ppvilg.config import DataConfig, TextConfig, TransformerConfig, ViLGExperiment, ViLGTrainConfig, save_config
from ppvilg.folder import PipelineConfig, merge, read_config
from ppvilg.model.config import vilg_config
from tests.models import STYLES, VQGAN_CONFIG, random_pipeline

RED, BLUE = "红色方块", "蓝色方块一二三"


@pytest.fixture(scope="module")
def pipe(tiny_model) -> ViLGPipeline:
    return ViLGPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def ranked(tiny_model, tiny_dual_encoder) -> ViLGPipeline:
    return ViLGPipeline.from_pretrained(tiny_model, dual_encoder=tiny_dual_encoder)


def arrays(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


# What it draws


def test_images_are_pil_or_arrays(pipe):
    images = pipe(RED, num_images_per_prompt=2).images
    assert [(type(image), image.size, image.mode) for image in images] == [(Image.Image, (16, 16), "RGB")] * 2
    as_arrays = pipe(RED, num_images_per_prompt=2, output_type="np").images
    assert [(image.shape, image.dtype) for image in as_arrays] == [((16, 16, 3), np.uint8)] * 2
    np.testing.assert_array_equal(arrays(images), as_arrays)
    assert (as_arrays[0] != as_arrays[1]).any()


def test_an_image_depends_on_its_prompt_and_seed_alone(pipe):
    together = pipe([RED, BLUE], num_images_per_prompt=2, seed=3, output_type="np").images
    assert len(together) == 4
    for i, (prompt, seed) in enumerate([(RED, 3), (RED, 4), (BLUE, 3), (BLUE, 4)]):
        np.testing.assert_array_equal(pipe(prompt, seed=seed, output_type="np").images[0], together[i])
    assert (together[0] != together[2]).any()


def test_a_generator_draws_the_seed(pipe):
    first, again = (arrays(pipe(RED, generator=np.random.default_rng(5)).images) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    generator = np.random.default_rng(5)
    one, other = (arrays(pipe(RED, generator=generator).images) for _ in range(2))
    np.testing.assert_array_equal(one, first)
    assert (one != other).any()


def test_many_images_are_drawn_in_batches(pipe, monkeypatch):
    expected = arrays(pipe([RED, BLUE], num_images_per_prompt=5, seed=1).images)
    for size in (2, 5, 7):
        monkeypatch.setattr("ppvilg.pipeline._BATCH", size)
        np.testing.assert_array_equal(arrays(pipe([RED, BLUE], num_images_per_prompt=5, seed=1).images), expected)


def test_options_reach_the_model(pipe):
    plain = arrays(pipe(RED).images)
    greedy = arrays(pipe(RED, temperature=0).images)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 0, "seed": 7}):
        np.testing.assert_array_equal(arrays(pipe(RED, **options).images), greedy)
    assert (plain != greedy).any()
    # Without the text the prompt does not matter.
    np.testing.assert_array_equal(*(arrays(pipe(text, guidance_scale=0).images) for text in (RED, BLUE)))
    assert (arrays(pipe(RED, guidance_scale=5.0).images) != plain).any()


def test_the_callback_sees_images_grow(pipe):
    seen = []
    images = pipe([RED, BLUE], callback=lambda step, images: seen.append((step, arrays(images))), callback_steps=6).images
    assert [step for step, _ in seen] == [6, 12, 16]
    np.testing.assert_array_equal(seen[-1][1], arrays(images))
    assert all(len(images) == 2 for _, images in seen)
    streamed = list(pipe.stream([RED, BLUE], every=6))
    assert [step for step, _ in streamed] == [6, 12, 16]
    for (_, mine), (_, theirs) in zip(seen, streamed, strict=True):
        np.testing.assert_array_equal(mine, arrays(theirs))


def test_an_end_to_end_model_decodes_hidden_states(tiny_model_e2e):
    pipe = ViLGPipeline.from_pretrained(tiny_model_e2e)
    hidden, codebook = (arrays(pipe(RED, decoder=decoder).images) for decoder in ("hidden", "codebook"))
    assert hidden.shape == codebook.shape
    assert (hidden != codebook).any()
    partial = dict(pipe.stream(RED, every=15, decoder="hidden"))
    np.testing.assert_array_equal(arrays(partial[16]), hidden)


def test_a_completion_keeps_the_upper_rows(pipe, monkeypatch):
    image = pipe(BLUE, seed=9).images[0]
    tokens, decoded, decode = pipe.encode_images(image), [], pipe.vqgan.decode
    monkeypatch.setattr(pipe.vqgan, "decode", lambda ids: decoded.append(ids.numpy()) or decode(ids))
    images = pipe.complete(image, 3, RED, num_images_per_prompt=2, temperature=2.0).images
    assert len(images) == 2
    for grid in decoded[-1]:
        np.testing.assert_array_equal(grid[:3].ravel(), tokens[0, :12])
    assert (decoded[-1][0] != decoded[-1][1]).any()


# What it writes


def test_captions_of_one_image_or_several(pipe):
    images = pipe([RED, BLUE]).images
    together = pipe.caption(images, num_captions=3, temperature=1.0, seed=1)
    assert [len(texts) for texts in together] == [3, 3]
    assert pipe.caption(images[1], num_captions=3, temperature=1.0, seed=1) == [together[1]]
    assert pipe.caption(images)[0] == pipe.caption(images[0], top_k=1, temperature=1.0)[0]
    assert len(set(together[0])) > 1


def test_beam_search_in_batches(pipe, monkeypatch):
    images = pipe([RED, BLUE], num_images_per_prompt=2).images
    expected = pipe.caption(images, num_beams=3, length_penalty=0.5)
    assert [len(texts) for texts in expected] == [1] * 4
    monkeypatch.setattr("ppvilg.pipeline._BATCH", 3)
    assert pipe.caption(images, num_beams=3, length_penalty=0.5) == expected


@pytest.mark.parametrize("kind", ["PIL", "array", "bytes", "path", "str"])
def test_images_come_in_every_form(pipe, tmp_path, kind):
    image = np.random.default_rng(0).integers(0, 256, [40, 24, 3], dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    forms = {"PIL": Image.fromarray(image), "array": image, "bytes": path.read_bytes(), "path": path, "str": str(path)}
    expected = pipe.encode_images([path])
    np.testing.assert_array_equal(pipe.encode_images(forms[kind]), expected)
    np.testing.assert_array_equal(pipe.encode_images([forms[kind], forms[kind]])[1], expected[0])
    np.testing.assert_array_equal(pipe.encode_images(np.stack([image] * 2)), np.tile(expected, (2, 1)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_pil_images_of_every_mode_are_read_as_their_files(pipe, mode):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    file = io.BytesIO()
    (image.convert("RGB") if mode in ("CMYK", "YCbCr") else image).save(file, "PNG")
    np.testing.assert_array_equal(pipe.encode_images(image), pipe.encode_images(file.getvalue()))


# Ranking and scoring


def test_the_best_candidates_are_kept(ranked):
    candidates = ranked([RED, BLUE], num_images_per_prompt=6, output_type="np").images
    best = ranked([RED, BLUE], num_images_per_prompt=2, num_candidates=6, output_type="np").images
    for i, prompt in enumerate((RED, BLUE)):
        own = candidates[6 * i : 6 * i + 6]
        order = np.argsort(-ranked.score(own, prompt), kind="stable")
        np.testing.assert_array_equal(best[2 * i : 2 * i + 2], [own[j] for j in order[:2]])


def test_scores_are_cosines(ranked):
    images = ranked([RED, BLUE], output_type="np").images
    found = ranked.score(images, [BLUE, RED])
    scorer = ranked.dual_encoder
    cosines = (scorer.embed_images(np.stack(images)) * scorer.embed_texts([BLUE, RED])).sum(1)
    np.testing.assert_allclose(found, (1 + cosines) / 2, rtol=1e-6)
    np.testing.assert_allclose(ranked.score(images[0], BLUE), found[:1], rtol=1e-6)


# What it saves and reads


def test_a_saved_model_is_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = ViLGPipeline.from_pretrained(tmp_path / "saved")
    assert again.config == pipe.config
    images = pipe([RED, BLUE], guidance_scale=2.0).images
    np.testing.assert_array_equal(arrays(again([RED, BLUE], guidance_scale=2.0).images), arrays(images))
    assert again.caption(images) == pipe.caption(images)
    files = {path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "model.safetensors", "text/vocab.txt"),
        *("tokenizer/config.json", "tokenizer/model.safetensors"),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["saved"], "nothing temporary is left"
    with pytest.raises(ValueError, match="exists already"):
        pipe.save_pretrained(tmp_path / "saved")


def test_a_failed_save_leaves_nothing(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ppvilg.folder.write_config", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_run_is_read_like_a_model(tiny_data, tmp_path):
    """Its config.yml, and the averaged weights of its newest checkpoint."""
    experiment = ViLGExperiment(
        data=DataConfig(image_size=16),
        text=TextConfig(vocabulary="gone.txt", vocabulary_size=40, max_length=12, styles=STYLES),
        vqgan=VQGAN_CONFIG,
        transformer=TransformerConfig(layers=2, hidden=16, heads=2),
        train=ViLGTrainConfig(text_drop=0.1),
    )
    pipe = random_pipeline(tiny_data / "vocab.txt")
    config = PipelineConfig(vilg_config(experiment), 16, "ernie", True, STYLES)
    pipe.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    save_config(experiment, tmp_path / "run" / "config.yml")
    assert read_config(tmp_path / "run", PipelineConfig) == config
    weights = checkpoint.load_arrays(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        ViLGPipeline.from_pretrained(tmp_path / "run")
    for step, name, factor in ((1, "average", 2), (2, "average", 1), (2, "model", 2)):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        scaled = {key: (array * factor).astype(array.dtype) for key, array in weights.items()}
        checkpoint.save_arrays(scaled, folder / f"{name}.safetensors")
        (folder / "state.json").write_text(json.dumps({"step": step}))
    assert merge(tmp_path / "run", tmp_path / "merged") == folder
    assert read_config(tmp_path / "merged", PipelineConfig) == config
    for name in ("run", "merged"):
        loaded = ViLGPipeline.from_pretrained(tmp_path / name).model.state_dict()
        for key, array in weights.items():
            np.testing.assert_array_equal(loaded[key].numpy(), array)


def test_folders_that_are_no_model(tiny_model, tiny_dual_encoder, tmp_path):
    def damaged(name: str, file: str, content: str | None) -> str:
        folder = tmp_path / name
        ViLGPipeline.from_pretrained(tiny_model).save_pretrained(folder)
        (folder / file).write_text(content) if content is not None else (folder / file).unlink()
        return str(folder)

    tree = json.loads((tiny_model / "config.json").read_text("utf-8"))
    wider = {**tree, "transformer": {**tree["transformer"], "hidden": 32}}
    for folder, message in (
        ("no/such/folder", "there is no folder no/such/folder"),
        (tmp_path, r"no config\.json and no config\.yml"),
        (tiny_dual_encoder, "type `dual_encoder`, but one of type `vilg`"),
        (tiny_model / "tokenizer", "type `vqgan`"),
        (damaged("a", "config.json", "{"), r"config\.json is damaged"),
        (damaged("b", "config.json", "[]"), r"config\.json is damaged"),
        (damaged("c", "config.json", json.dumps({**tree, "colour": 1})), "colour"),
        (damaged("d", "config.json", json.dumps(wider)), "does not hold the expected weights"),
        (damaged("e", "model.safetensors", "nonsense"), "damaged"),
        (damaged("f", "text/vocab.txt", None), "holds no vocabulary"),
        (damaged("g", "tokenizer/model.safetensors", None), "model.safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            ViLGPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="type `vilg`, but one of type `dual_encoder`"):
        ViLGPipeline.from_pretrained(tiny_model, dual_encoder=tiny_model)


# What it refuses


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the text is empty"),
        (" ", {}, "the text is empty"),
        ([RED, ""], {}, "the text is empty"),
        ("红" * 20, {}, "shorten it"),
        ([], {}, r"prompt is \[\]"),
        (None, {}, "prompt is None"),
        ([RED, 3], {}, "prompt is"),
        (RED.encode(), {}, "prompt is"),
        (RED, {"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        (RED, {"num_images_per_prompt": 1.5}, r"num_images_per_prompt is 1\.5"),
        (RED, {"num_images_per_prompt": True}, "num_images_per_prompt is True"),
        (RED, {"temperature": float("nan")}, "temperature is nan: expected a number from 0 to 1000"),
        (RED, {"temperature": float("inf")}, "temperature is inf"),
        (RED, {"temperature": -1}, "temperature is -1"),
        (RED, {"temperature": "hot"}, "temperature is 'hot'"),
        (RED, {"guidance_scale": float("nan")}, "guidance_scale is nan"),
        (RED, {"guidance_scale": -1.0}, "guidance_scale is -1"),
        (RED, {"top_k": -1}, "top_k is -1"),
        (RED, {"top_k": 1.0}, r"top_k is 1\.0"),
        (RED, {"top_p": 0.0}, r"top_p is 0\.0"),
        (RED, {"top_p": 1.1}, r"top_p is 1\.1"),
        (RED, {"seed": -1}, "seed is -1"),
        (RED, {"seed": None}, "seed is None"),
        (RED, {"generator": 3}, r"generator is 3: expected a numpy\.random\.Generator"),
        (RED, {"output_type": "pt"}, "output_type is 'pt': expected 'pil' or 'np'"),
        (RED, {"decoder": "vae"}, "decoder is 'vae'"),
        (RED, {"decoder": "hidden"}, "no reconstructor"),
        (RED, {"num_candidates": 2}, "no dual encoder"),
        (RED, {"num_candidates": 2, "num_images_per_prompt": 3}, "num_candidates is 2: expected an integer of at least 3"),
        (RED, {"callback": print, "callback_steps": 0}, "callback_steps is 0"),
    ],
)
def test_impossible_calls(pipe, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": []}, "give an image"),
        ({"images": None}, "give an image"),
        ({"images": [3]}, "the image is a int"),
        ({"images": b"nonsense"}, "not an image"),
        ({"images": "README.md"}, r"README\.md: not an image"),
        ({"images": np.zeros((4, 4), np.uint8)}, r"uint8 \[4, 4\]: expected uint8 \[H, W, 3\]"),
        ({"images": np.zeros((4, 4, 3), np.float32)}, "expected uint8"),
        ({"images": np.zeros((0, 4, 3), np.uint8)}, "expected uint8"),
        ({"num_captions": 0}, "num_captions is 0"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "num_captions": 2}, "num_beams is 2"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams is 2"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_captions(pipe, options, message):
    arguments = {"images": np.zeros((16, 16, 3), np.uint8)} | options
    with pytest.raises(ValueError, match=message):
        pipe.caption(**arguments)


def test_other_impossible_calls(pipe, ranked, tiny_data, tmp_path):
    image = tiny_data / "00.png"
    for keep_rows in (0, 4, 2.0, None):
        with pytest.raises(ValueError, match="keep_rows is"):
            pipe.complete(image, keep_rows, RED)
    with pytest.raises(ValueError, match="every is 0"):
        pipe.stream(RED, every=0)
    with pytest.raises(TypeError, match="temprature"):
        pipe.complete(image, 1, RED, temprature=1.0)
    with pytest.raises(ValueError, match="no dual encoder"):
        pipe.score(image, RED)
    with pytest.raises(ValueError, match="2 texts for 1 images"):
        ranked.score(image, [RED, BLUE])
    with pytest.raises(ValueError, match="texts is"):
        ranked.score(image, [])
    with pytest.raises(FileNotFoundError):
        pipe.caption(tmp_path / "none.png")
    with pytest.raises(ValueError, match="knows no empty text"):
        random_pipeline(tiny_data / "vocab.txt", guidance=False)(RED, guidance_scale=2.0)
    config = replace(pipe.config, image_size=32)
    with pytest.raises(ValueError, match="the dual encoder reads images of 16x16"):
        ViLGPipeline(pipe.model, pipe.vqgan, pipe.text_tokenizer, config, ranked.dual_encoder)


def test_the_package_is_light():
    code = "import sys, ppvilg; assert 'paddle' not in sys.modules; ppvilg.ViLGPipeline; assert 'paddle' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = ppvilg.Pipeline


def test_paddle_seeds_do_not_matter(pipe):
    first = arrays(pipe(RED).images)
    paddle.seed(99)
    np.testing.assert_array_equal(arrays(pipe(RED).images), first)


def test_memory_does_not_grow_with_the_images_drawn(pipe):
    def objects() -> int:
        for seed in range(10):
            pipe([RED, BLUE], seed=seed, guidance_scale=2.0)
        gc.collect()
        return len(gc.get_objects())

    objects()
    before = objects()
    assert objects() < before + 20
