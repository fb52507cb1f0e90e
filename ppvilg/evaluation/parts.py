"""The work of an evaluation in parts of a few pairs, each kept in a file of its own: what an interrupted evaluation has done it
need not do again, and several processes share the parts."""

import io
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ppvilg.checkpoint import checksum, weights_file
from ppvilg.config import EvalExperiment, ViLGExperiment, load_config
from ppvilg.data.sources import Source
from ppvilg.data.splits import evenly_spaced, load_images
from ppvilg.dual_encoder import Scorer
from ppvilg.evaluation.blur import blurred
from ppvilg.evaluation.extractor import Extractor, load_extractor
from ppvilg.evaluation.likelihood import likelihood
from ppvilg.evaluation.pairs import Chosen, Pair, choose_pairs, nearest_by_caption, others_of_the_styles
from ppvilg.evaluation.style import colour_histograms
from ppvilg.files import read_arrays, write_whole
from ppvilg.generate.engine import ImageTokens, generate_images
from ppvilg.generate.images import decode_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.vilg import ViLG
from ppvilg.pipeline import ViLGPipeline

PAIRS_PER_PART = 32
EXAMPLES = 24
_SEQUENCES = 64  # drawn together

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """A model, a split, and what both are measured with."""

    config: EvalExperiment
    split: str
    output: Path
    pipeline: ViLGPipeline
    extractor: Extractor
    chosen: Chosen
    others: tuple[Source, list[int]] | None
    nearest: tuple[Source, list[int]] | None

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that are evaluated."""
        return self.chosen.pairs

    @property
    def scorer(self) -> Scorer | None:
        """What ranks candidates and scores images."""
        return self.pipeline.dual_encoder

    @property
    def parts(self) -> list[Path]:
        """The files of all parts, finished or not."""
        count = -(-len(self.pairs) // PAIRS_PER_PART)
        return [self.output / "parts" / f"{i:05d}.npz" for i in range(count)]

    @property
    def sampling(self) -> Sampling:
        """How images are drawn."""
        settings = self.config
        return Sampling(settings.temperature, settings.top_k, settings.top_p, settings.guidance)

    @property
    def radii(self) -> list[float]:
        """Of the blur, the sharpest first."""
        return sorted(set(self.config.blur))

    @property
    def best_of(self) -> list[int]:
        """From how many candidates images are chosen, ascending."""
        return sorted(set(self.config.best_of))

    @cached_property
    def examples(self) -> list[int]:
        """The pairs whose images are kept to be looked at."""
        return evenly_spaced(len(self.pairs), EXAMPLES)

    @cached_property
    def partner(self) -> np.ndarray:
        """For each pair another one, int64 [N], whose caption stands for a wrong one; each is a partner once."""
        order = np.random.default_rng([self.config.seed, 2]).permutation(len(self.pairs))
        partner = np.empty_like(order)
        partner[order] = np.roll(order, 1)
        return partner


def open_evaluation(config: EvalExperiment, split: str, output: Path) -> Evaluation:
    """Load everything that the parts need.

    Raises `ValueError` for a run, weights or data that can't be read, and where the folder holds another evaluation.
    """
    pipeline = ViLGPipeline.from_pretrained(config.model, config.dual_encoder)
    if not isinstance(pipeline.model, ViLG):
        raise ValueError(f"{config.model} is an export, which has no likelihoods: give the model that it was made from")
    pipeline.check_supported(config.guidance, config.decoder)
    if config.data is None:
        trained = Path(config.model) / "config.yml"
        if not trained.is_file():
            raise ValueError(f"{config.model} does not say what data it was trained on: give `data` in the config")
        config = config.with_data_of(load_config(trained, kind=ViLGExperiment))
    extractor = load_extractor(config.extractor)
    chosen = choose_pairs(config, split, pipeline.text_tokenizer, pipeline.config.transformer.max_text_length)
    others, nearest = others_of_the_styles(config, chosen.pairs), nearest_by_caption(config, chosen.pairs)
    evaluation = Evaluation(config, split, output, pipeline, extractor, chosen, others, nearest)
    _claim(evaluation)
    return evaluation


def compute(evaluation: Evaluation, part: Path) -> None:
    """Compute one part and put its file in place, whole."""
    number = int(part.stem)
    places = range(number * PAIRS_PER_PART, min((number + 1) * PAIRS_PER_PART, len(evaluation.pairs)))
    arrays = _measured(evaluation, places)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(part, buffer.getvalue())


def joined_parts(files: list[Path]) -> Arrays:
    """The arrays of some part files, one after another; raises `ValueError` for a damaged file."""
    found: dict[str, list[np.ndarray]] = {}
    for file in files:
        for name, array in read_arrays(file, "remove it, and it is computed again").items():
            found.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def real_images(evaluation: Evaluation, places: range) -> np.ndarray:
    """The images uint8 [P, H, W, 3] of some pairs, of the size the model draws."""
    size = evaluation.pipeline.config.image_size
    return load_images(evaluation.chosen.source, [evaluation.pairs[i].index for i in places], size)


def _claim(evaluation: Evaluation) -> None:
    """Make the folder this evaluation's; raises `ValueError` if its parts are those of another one."""
    config = evaluation.config
    weights = weights_file(config.model)
    settings = {
        "config": {key: value for key, value in asdict(config).items() if key != "model"},
        "split": evaluation.split,
        "weights": checksum(weights),
        "extractor": evaluation.extractor.weights,
        "dual_encoder": _dual_encoder_weights(config.dual_encoder),
        "pairs": [[pair.key, pair.caption] for pair in evaluation.pairs],
    }
    path = evaluation.output / "settings.json"
    text = json.dumps(settings, ensure_ascii=False)
    (evaluation.output / "parts").mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text("utf-8") != text:
        raise ValueError(f"{evaluation.output} holds another evaluation (model, settings or pairs): give another --output")
    write_whole(path, text)


def _dual_encoder_weights(name: str | None) -> str | None:
    if name is None or not Path(name).is_dir() or (Path(name) / "preprocessor_config.json").is_file():
        return name
    return checksum(weights_file(name))


def _measured(evaluation: Evaluation, places: range) -> Arrays:
    settings, pipeline = evaluation.config, evaluation.pipeline
    captions = [evaluation.pairs[i].caption for i in places]
    wrong = [evaluation.pairs[evaluation.partner[i]].caption for i in places]
    real = real_images(evaluation, places)
    tokens = ImageTokens(pipeline.encode_images(real))
    rebuilt = np.stack(decode_images(pipeline.model, pipeline.vqgan, tokens))
    error = np.mean((rebuilt.astype(np.float64) - real) ** 2, axis=(1, 2, 3))
    arrays: Arrays = {"captions": np.array(captions), "psnr": 10 * np.log10(255**2 / np.maximum(error, 1e-10))}
    sets = {"real": real, "reconstruction": rebuilt}
    for name, found in (("others", evaluation.others), ("nearest", evaluation.nearest)):
        if found:
            source, indices = found
            sets[name] = load_images(source, [indices[i] for i in places], len(real[0]))
    shown = [i - places[0] for i in evaluation.examples if i in places]
    for name, images in sets.items():
        arrays |= {f"{kind}/{name}": values for kind, values in _seen(evaluation, images).items()}
        arrays[f"pictures/{name}"] = images[shown]

    candidates = _candidates(evaluation, places, captions)
    chosen = {"best of 1": np.zeros(len(places), dtype=np.int64)}
    if evaluation.scorer:
        texts = evaluation.scorer.embed_texts(captions)
        arrays["embeddings/captions"] = texts
        embedded = evaluation.scorer.embed_images(candidates.reshape([-1, *real.shape[1:]]))
        fits = (embedded.reshape([*candidates.shape[:2], -1]) * texts[:, None]).sum(-1)
        chosen = {f"best of {count}": fits[:, :count].argmax(1) for count in evaluation.best_of}
    rows = np.arange(len(places))
    flat = {name: rows * candidates.shape[1] + choice for name, choice in chosen.items()}
    # The best of 8 is often the best of 4 too: each image is looked at once.
    looked_at, places_of = np.unique(np.concatenate(list(flat.values())), return_inverse=True)
    seen = _seen(evaluation, candidates.reshape([-1, *real.shape[1:]])[looked_at])
    for name, where in zip(flat, places_of.reshape([len(flat), -1]), strict=True):
        arrays |= {f"{kind}/{name}": values[where] for kind, values in seen.items()}
        arrays[f"pictures/{name}"] = candidates[rows, chosen[name]][shown]

    written = pipeline.caption(real, num_beams=settings.beams)
    arrays["written"] = np.array([texts[0] for texts in written])
    for name, texts in (("own", captions), ("wrong", wrong)):
        bits = likelihood(pipeline, real, texts)
        counts = len(real) * pipeline.config.transformer.image_length, sum(map(len, texts))
        values = bits["bits_per_image_token"] * counts[0], counts[0], bits["bits_per_character"] * counts[1], counts[1]
        arrays[f"likelihood/{name}"] = np.array([values])
    return arrays


def _seen(evaluation: Evaluation, images: np.ndarray) -> Arrays:
    """What is measured of images uint8 [P, H, W, 3]: colours, features for each blur, logits for the least, embeddings."""
    found: Arrays = {"colours": colour_histograms(images)}
    for radius in evaluation.radii:
        features, logits = evaluation.extractor.network(blurred(images, radius))
        found[f"features@{radius:g}"] = features
        if radius == evaluation.radii[0]:
            found["logits"] = logits
    if evaluation.scorer:
        found["embeddings"] = evaluation.scorer.embed_images(images)
    return found


def _candidates(evaluation: Evaluation, places: range, captions: list[str]) -> np.ndarray:
    """Images uint8 [P, N, H, W, 3], N for each caption; every pair has its own seeds, so that they do not depend on the
    part."""
    pipeline, most, decoder = evaluation.pipeline, evaluation.best_of[-1], evaluation.config.decoder
    base = evaluation.config.seed * len(evaluation.pairs) * most
    candidates: list[np.ndarray] = []
    at_once = max(1, _SEQUENCES // most)
    for first in range(0, len(captions), at_once):
        prompts = captions[first : first + at_once]
        start = base + (places[0] + first) * most
        seeds = list(range(start, start + len(prompts) * most))
        texts, tokenizer = pipeline.encode_prompts(prompts), pipeline.text_tokenizer
        *_, output = generate_images(
            pipeline.model, texts, tokenizer, seeds, evaluation.sampling, return_states=decoder == "hidden"
        )
        candidates += decode_images(pipeline.model, pipeline.vqgan, output, decoder)
    return np.stack(candidates).reshape([len(captions), most, *candidates[0].shape])
