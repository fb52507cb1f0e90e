"""The one program from texts to images, on plain Paddle Inference, against the pipeline's steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paddle import inference

from ppvilg.export.write import save_transformer
from ppvilg.generate.engine import generate_images
from ppvilg.generate.images import decode_images
from ppvilg.generate.sampling import Noise, Sampling
from ppvilg.model.batch import pad_prompts
from ppvilg.model.vilg import ViLG
from ppvilg.vqgan.model import VQGAN
from tests.export.test_programs import OPTIONS
from tests.generate.test_engine import PROMPTS, TEXT, build
from tests.model.test_vilg import PLANS, with_plan
from tests.model.test_vilg import VQGAN as SMALL


def run(path: Path, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """As any user of Paddle Inference would."""
    config = inference.Config(f"{path}.json", str(path.with_name("transformer.pdiparams")))
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    assert set(predictor.get_input_names()) == arrays.keys()
    for name, array in arrays.items():
        predictor.get_input_handle(name).copy_from_cpu(array)
    predictor.run()
    return {name: predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()}


def one_run(model: ViLG, folder: Path, seeds: list[int], sampling: Sampling) -> dict[str, np.ndarray]:
    """Of `PROMPTS`, a seed each."""
    empty = [TEXT.encode("")] * len(PROMPTS) if sampling.guidance != 1 else []
    ids, mask = pad_prompts([*PROMPTS, *empty], TEXT.pad, model.config)
    noise, config = Noise(seeds), model.config
    return run(
        folder / "text_to_image",
        ids=ids,
        mask=mask,
        noise=np.stack([noise.draw(config.image_vocab_size) for _ in range(config.image_length)]),
        temperature=np.float32([sampling.temperature]),
        top_k=np.int64([sampling.top_k]),
        top_p=np.float32([sampling.top_p]),
        guidance=np.float32([sampling.guidance]),
    )


SAMPLINGS = [Sampling(0), Sampling(), Sampling(0.9, top_k=4, top_p=0.8), Sampling(0.7, top_p=0.9, guidance=3.0)]


@pytest.mark.parametrize("option", [*PLANS, *OPTIONS])
def test_tokens_and_images_are_the_pipelines(option, tmp_path):
    model = build(OPTIONS[option] if option in OPTIONS else with_plan(option))
    vqgan = VQGAN(replace(SMALL), 4)
    vqgan.eval()
    save_transformer(model, tmp_path, vqgan)
    for sampling in SAMPLINGS:
        *_, expected = generate_images(model, PROMPTS, TEXT, [5, 6], sampling)
        found = one_run(model, tmp_path, [5, 6], sampling)
        np.testing.assert_array_equal(found["tokens"], expected.tokens)
        pictures = np.stack(decode_images(model, vqgan, expected))
        assert found["images"].dtype == np.uint8
        assert np.abs(found["images"].astype(int) - pictures).max() <= 1
