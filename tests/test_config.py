"""Configs: what is accepted, what is refused and how it is said."""

import dataclasses
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml

from ppvilg.config import (
    DualEncoderExperiment,
    EvalDataConfig,
    EvalExperiment,
    Experiment,
    TrainingExperiment,
    ViLGExperiment,
    VQGANConfig,
    VQGANExperiment,
    load_config,
    save_config,
)
from ppvilg.data.prepare import PrepareExperiment
from ppvilg.model.config import vilg_config
from ppvilg.model.vilg import ViLG
from ppvilg.vqgan.model import VQGAN

CONFIGS = sorted(Path("configs").glob("*.yml"))


def write(folder: Path, name: str, **tree) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return path


@pytest.mark.parametrize("kind", [VQGANExperiment, ViLGExperiment, DualEncoderExperiment, EvalExperiment])
def test_defaults_and_round_trip(tmp_path, kind):
    needed = {"model": "runs/x"} if kind is EvalExperiment else {}
    config = load_config(write(tmp_path, "a.yml", task=kind.task, **needed))
    assert config == kind(**needed)
    save_config(config, tmp_path / "saved.yml")
    assert load_config(tmp_path / "saved.yml", kind=kind) == config
    saved = yaml.safe_load((tmp_path / "saved.yml").read_text("utf-8"))
    assert saved.keys() == {field.name for field in dataclasses.fields(kind)}


def test_inheritance_and_overrides(tmp_path):
    write(tmp_path, "base.yml", task="vilg", train={"steps": 5000, "seed": 7}, data={"keep": {"style": ["a"]}})
    (tmp_path / "sub").mkdir()
    child = write(tmp_path, "sub/child.yml", base="../base.yml", train={"seed": 8}, data={"keep": {"concept": ["b"]}})
    config = load_config(child, ["train.learning_rate=0.5", "text.vocabulary=x.txt"])
    assert (config.train.steps, config.train.seed, config.train.learning_rate) == (5000, 8, 0.5)
    assert config.data.keep == {"concept": ["b"]}, "a mapping of the user's replaces its base's"
    assert config.text.vocabulary == "x.txt"


def test_several_bases_are_merged_in_their_order(tmp_path):
    write(tmp_path, "a.yml", train={"steps": 5000, "seed": 7}, text={"max_length": "long"})
    write(tmp_path, "b.yml", train={"seed": 8})
    child = write(tmp_path, "c.yml", base=["a.yml", "b.yml"], task="vilg")
    config = load_config(child, ["text.max_length=9"])
    assert (config.train.steps, config.train.seed) == (5000, 8)
    with pytest.raises(ValueError, match=r"a\.yml: text\.max_length"):
        load_config(child)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        *(("vqgan", key) for key in ("text.max_length", "transformer.layers", "data.languages", "train.text_drop")),
        *(("vqgan", f"parallel.{key}") for key in ("mp_degree", "pp_degree", "sharding_stage", "recompute", "precision")),
        *(("dual_encoder", key) for key in ("vqgan.channels", "train.tokenizer", "train.preview_every", "text.embeddings")),
        *(("dual_encoder", f"parallel.{key}") for key in ("mp_degree", "offload", "sequence_parallel")),
        *(("vilg", key) for key in ("dual_encoder.hidden", "model", "best_of")),
        *(("eval", key) for key in ("train.steps", "parallel.dp_degree", "data.image_size", "data.workers")),
    ],
)
def test_keys_that_do_nothing_for_a_task_cannot_be_written(tmp_path, task, key):
    path = write(tmp_path, "a.yml", task=task, **({"model": "runs/x"} if task == "eval" else {}))
    with pytest.raises(ValueError, match="unknown key"):
        load_config(path, [f"{key}=1"])


@pytest.mark.parametrize(("tree", "said"), [({}, "`task` is missing"), ({"task": "match"}, "'match'"), ({"task": []}, "task")])
def test_the_task_has_to_be_known(tmp_path, tree, said):
    with pytest.raises(ValueError, match="expected vqgan or vilg or dual_encoder or eval") as caught:
        load_config(write(tmp_path, "a.yml", **tree))
    assert said in str(caught.value)


def test_a_config_of_another_kind_is_refused(tmp_path):
    path = write(tmp_path, "a.yml", task="eval", model="runs/x")
    with pytest.raises(ValueError, match=r"'eval' does not fit: expected vqgan or vilg or dual_encoder$"):
        load_config(path, kind=TrainingExperiment)
    with pytest.raises(ValueError, match=r"expected eval$"):
        load_config(write(tmp_path, "b.yml", task="vilg"), kind=EvalExperiment)


LAYOUTS = [
    ({"sharding_degree": 2, "sharding_stage": 2, "pp_degree": 2}, "set sharding_stage: 1, or pp_degree: 1"),
    ({"sharding_degree": 2, "sharding_stage": 3, "pp_degree": 2}, "set sharding_stage: 1, or pp_degree: 1"),
    ({"sharding_degree": 2, "sharding_stage": 3, "mp_degree": 2}, "set sharding_stage: 2, or mp_degree: 1"),
    ({"sharding_stage": 2}, "expected 1 with sharding_degree: 1"),
    ({"offload": True}, "sharding_stage: 3 and a sharding_degree of at least 2"),
    ({"sharding_degree": 2, "sharding_stage": 2, "offload": True}, "sharding_stage: 3 and a sharding_degree of at least 2"),
    ({"dp_degree": 2, "sharding_degree": 4, "sharding_stage": 3, "offload": True}, None),
    ({"sequence_parallel": True}, "with mp_degree: 1"),
    ({"dp_degree": 32, "mp_degree": 8, "sequence_parallel": True}, "divides the 2 sequences of a micro-batch"),
    ({"mp_degree": 3}, "divisor of transformer.heads = 16"),
    ({"pp_degree": 25}, "at most transformer.layers = 24"),
    ({"dp_degree": 3}, "multiple of gradient_accumulation_steps x dp_degree x sharding_degree = 3"),
    ({"dp_degree": 2, "sharding_degree": 2, "sharding_stage": 3}, None),
    ({"sharding_degree": 2, "mp_degree": 2, "sharding_stage": 2, "sequence_parallel": True}, None),
    ({"sharding_degree": 2, "mp_degree": 2, "pp_degree": 2, "dp_degree": 2, "recompute": "full"}, None),
    ({"sharding_degree": 2, "sharding_stage": 3, "offload": True}, None),
]


@pytest.mark.parametrize(("layout", "said"), LAYOUTS)
def test_layouts_that_fleet_cannot_combine(tmp_path, layout, said):
    path = write(tmp_path, "a.yml", task="vilg", parallel=layout)
    if said is None:
        parallel = load_config(path).parallel
        assert parallel.world_size == parallel.data_world_size * parallel.mp_degree * parallel.pp_degree
    else:
        with pytest.raises(ValueError, match=r"expected|Fleet|set ") as caught:
            load_config(path)
        assert said in str(caught.value)


def test_data_of_an_evaluation_is_that_of_the_training_unless_it_is_given(tmp_path):
    data = {"path": "x", "keep": {"style": ["a"]}, "languages": {"zh": 1.0}, "validation_fraction": 0.25, "image_size": 32}
    trained = load_config(write(tmp_path, "a.yml", task="vilg", data=data, train={"seed": 3}))
    path = write(tmp_path, "b.yml", task="eval", model="runs/x")
    found = load_config(path, kind=EvalExperiment).with_data_of(trained).data
    assert found == EvalDataConfig("x", None, 0.25, 3, {"style": ["a"]}, {"zh": 1.0})
    own = load_config(path, ["data.path=y"], EvalExperiment)
    assert own.with_data_of(trained) == own


ERNIE = {"vocab_size": 9, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("transformer.layrs=3", ["transformer.layrs", "did you mean `layers`"]),
        ("trian.steps=3", ["trian", "did you mean `train`"]),
        ("train.steps=many", ["train.steps", "'many'", "integer"]),
        ("train.steps=true", ["train.steps", "True", "integer"]),
        ("train.learning_rate=1e-4", ["train.learning_rate", "'1e-4'", "1.0e-4"]),
        ("train.steps=0", ["train.steps", "0", "greater than 0"]),
        ("vqgan.codebook.learning=magic", ["vqgan.codebook.learning", "'magic'", "'ema'"]),
        ("transformer.heads=5", ["transformer.heads", "5", "divisor of transformer.hidden"]),
        ("data.image_size=100", ["data.image_size", "100", "multiple of f"]),
        ("train.gradient_accumulation_steps=5", ["train.gradient_accumulation_steps", "5", "divisor of train.batch_size"]),
        ("train.warmup_steps=200000", ["train.warmup_steps", "fewer than train.steps"]),
        ("vqgan.loss.perceptual=1.0", ["vqgan.loss.perceptual", "perceptual_weights"]),
        ("text.styles={flat: {zh: 扁平}}", ["text.styles.flat.zh", "'扁平'", "one {}"]),
        ("text.encoder={}", ["text.encoder.model", "None", "an ERNIE model's name or folder, or sizes to draw one by"]),
        ("text.encoder={model: ernie, tran: true}", ["text.encoder.tran", "did you mean `train`"]),
        ("text.encoder={model: ernie, learning_rate_scale: 0}", ["text.encoder.learning_rate_scale", "greater than 0"]),
        (f"text.encoder.sizes={ERNIE | {'num_attention_heads': 5}}", ["num_attention_heads", "5", "hidden_size = 12"]),
        (f"text.encoder.sizes={ERNIE | {'max_position_embeddings': 8}}", ["max_position_embeddings", "text.max_length = 64"]),
        ("text={tokenizer: sentencepiece, encoder: {model: ernie}}", ["text.encoder", "text.tokenizer other than ernie"]),
        ("text={padding: visible, encoder: {model: ernie}}", ["text.padding", "'visible'", "hidden with text.encoder"]),
        ("text.max_length=2", ["text.max_length", "2", "greater than or equal to 3"]),
        ("transformer.attention.plan=[row,diagonal]", ["transformer.attention.plan.1", "'diagonal'", "'convolution'"]),
        ("transformer.attention.plan=[]", ["transformer.attention.plan", "at least 1 item"]),
        ("transformer.attention.kernel=4", ["transformer.attention.kernel", "4", "odd"]),
        ("transformer={tie_embeddings: true, head_bias: true}", ["transformer.head_bias", "True", "tie_embeddings"]),
        ("text={padding: positional, vocabulary_size: 64}", ["text.vocabulary_size", "64", "more than the 64 padding tokens"]),
        ("transformer.attention.kernle=3", ["transformer.attention.kernle", "did you mean `kernel`"]),
        ("train.steps", ["section.key=value"]),
        ("train.steps=[", ["not valid YAML"]),
    ],
)
def test_refusals_name_key_value_and_expectation(tmp_path, override, parts):
    path = write(tmp_path, "a.yml", task="vilg", transformer={"hidden": 1024})
    with pytest.raises(ValueError, match="-o") as caught:
        load_config(path, [override])
    assert all(part in str(caught.value) for part in [*parts, "-o"]), str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusals_name_the_file_that_set_the_key(tmp_path):
    write(tmp_path, "base.yml", task="vilg", train={"steps": "x"})
    child = write(tmp_path, "child.yml", base="base.yml", train={"seed": 1})
    with pytest.raises(ValueError, match=r"base\.yml: train\.steps"):
        load_config(child)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "task: vilg\nbase: 3\n", "base: self.yml\n", "train: {steps: 5}\n"])
def test_files_that_are_no_config(tmp_path, text):
    path = tmp_path / "self.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"self\.yml"):
        load_config(path)
    with pytest.raises(ValueError, match="missing"):
        load_config(tmp_path / "missing.yml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load(path):
    load_config(path, kind=PrepareExperiment if path.name.startswith("data_") else Experiment)


def count(layer: paddle.nn.Layer) -> int:
    return sum(int(np.prod(p.shape)) for p in layer.parameters())


def test_the_default_plan_is_the_papers():
    """1-based: column where i mod 4 is 2, convolution last, row otherwise: 12, 1 and 35 of 48 layers."""
    kinds = load_config("configs/vilg_10b.yml").transformer.attention.kinds(48)
    assert kinds[-1] == "convolution"
    for i, kind in enumerate(kinds[:-1], start=1):
        assert kind == ("column" if i % 4 == 2 else "row")
    assert [kinds.count(kind) for kind in ("column", "row")] == [12, 35]


@pytest.mark.parametrize("name", ["vilg_emoji.yml", "vilg_small.yml", "vilg_300m.yml", "vilg_10b.yml"])
def test_transformer_parameters_without_allocating(name):
    config = load_config(f"configs/{name}")
    with paddle.LazyGuard():
        model = ViLG(vilg_config(config))
    h, layers = config.transformer.hidden, config.transformer.layers
    text, codes = config.text.vocabulary_size, config.vqgan.codebook.size
    width = config.text.embedding_width or h
    tables = (text + 2 * codes + config.text.max_length + sum(config.grid) + 4) * h + text * width + (width != h) * width * h
    assert count(model) == layers * (12 * h * h + 11 * h) + tables + 2 * h
    published = {"vilg_300m.yml": 0.3e9, "vilg_10b.yml": 9.66e9}  # 12 L h^2
    assert layers * 12 * h * h == pytest.approx(published.get(name, layers * 12 * h * h), rel=0.01)


def vqgan_parameters(vqgan: VQGANConfig, image_size: int) -> int:
    """Counted from the description of VQGAN's network, layer by layer."""

    def convolution(inputs, outputs, kernel=3):
        return inputs * outputs * kernel**2 + outputs

    def residual(inputs, outputs):
        shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + convolution(inputs, outputs) + 2 * outputs + convolution(outputs, outputs) + shortcut

    def attention(width):
        return 2 * width + 4 * convolution(width, width, 1)

    widths = [vqgan.channels * multiplier for multiplier in vqgan.channel_multipliers]
    with_attention = [image_size // 2**i in vqgan.attention_resolutions for i in range(len(widths))]
    pixels, middle = 3 * vqgan.patch_size**2, widths[-1]
    z, dim = vqgan.latent_channels, vqgan.codebook.dim
    total = 2 * (2 * residual(middle, middle) + attention(middle))  # the middles of encoder and decoder
    total += convolution(pixels, widths[0]) + 2 * middle + convolution(middle, z)
    total += convolution(z, middle) + 2 * widths[0] + convolution(widths[0], pixels)
    total += convolution(z, dim, 1) + convolution(dim, z, 1) + vqgan.codebook.size * dim
    down, up = widths[0], middle
    for width, attends in zip(widths, with_attention, strict=True):
        for _ in range(vqgan.res_blocks):
            total += residual(down, width) + attends * attention(width)
            down = width
    for width, attends in reversed(list(zip(widths, with_attention, strict=True))):
        for _ in range(vqgan.res_blocks + 1):
            total += residual(up, width) + attends * attention(width)
            up = width
    resampled = sum(convolution(width, width) for width in widths[:-1]) + sum(convolution(w, w) for w in widths[1:])
    return total + resampled


@pytest.mark.parametrize("name", ["vqgan_emoji.yml", "vqgan_f8_8192.yml"])
def test_tokenizer_parameters_without_allocating(name):
    # The sums of a codebook that learns by moving averages start as a copy of it, which needs it allocated.
    config = load_config(f"configs/{name}", ["vqgan.codebook.learning=gradient"])
    with paddle.LazyGuard():
        model = VQGAN(config.vqgan, config.data.image_size)
    assert count(model) == vqgan_parameters(config.vqgan, config.data.image_size)
