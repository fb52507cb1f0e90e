"""Generation of image tokens by PaddleNLP's ARTIST, at any size and with random weights."""

import logging
from collections.abc import Callable

import paddle

from ppvilg.config import ViLGExperiment


def artist_run(config: ViLGExperiment, batch: int) -> Callable[[], int]:
    """A function that generates the image tokens of `batch` random texts with an ARTIST of a config's sizes, and returns how
    many it generated.

    The tokens are drawn at temperature 1 from the whole vocabulary, as ARTIST does: image tokens, then text tokens.
    """
    # paddlenlp imports datasets, which announces at INFO where it finds torch.
    logging.getLogger("datasets").setLevel(logging.WARNING)
    from paddlenlp.transformers.artist.configuration import ArtistConfig
    from paddlenlp.transformers.artist.modeling import ArtistForConditionalGeneration

    sizes, text, codes = config.transformer, config.text, config.vqgan.codebook.size
    model = ArtistForConditionalGeneration(
        ArtistConfig(
            vocab_size=codes + text.vocabulary_size,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=4 * sizes.hidden,
            max_position_embeddings=text.max_length + config.image_tokens,
            # Without an end token nothing stops early, and no time goes into looking for one.
            eos_token_id=None,
        )
    )
    model.eval()
    prompts = paddle.randint(codes, codes + text.vocabulary_size, [batch, text.max_length])

    def generate() -> int:
        tokens, _ = model.generate(
            prompts, decode_strategy="sampling", temperature=1.0, top_k=0, max_new_tokens=config.image_tokens, use_cache=True
        )
        return int(tokens.size)

    return generate
