"""Generation of image tokens by PaddleNLP's ARTIST, at any size and with random weights."""

import logging
from collections.abc import Callable

import paddle


def artist_generation(
    layers: int,
    hidden: int,
    heads: int,
    text_vocabulary: int,
    image_vocabulary: int,
    text_length: int,
    image_tokens: int,
    batch: int,
) -> Callable[[], int]:
    """A function that writes `image_tokens` tokens for each of `batch` random texts and returns how many it wrote.

    The tokens are drawn at temperature 1 from the whole vocabulary, as ARTIST does: image tokens, then text tokens.
    """
    # paddlenlp imports datasets, which announces at INFO where it finds torch.
    logging.getLogger("datasets").setLevel(logging.WARNING)
    from paddlenlp.transformers.artist.configuration import ArtistConfig
    from paddlenlp.transformers.artist.modeling import ArtistForConditionalGeneration

    config = ArtistConfig(
        vocab_size=image_vocabulary + text_vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=text_length + image_tokens,
        # Without an end token nothing stops early, and no time goes into looking for one.
        eos_token_id=None,
    )
    model = ArtistForConditionalGeneration(config)
    model.eval()
    text = paddle.randint(image_vocabulary, image_vocabulary + text_vocabulary, [batch, text_length])

    def generate() -> int:
        tokens, _ = model.generate(
            text, decode_strategy="sampling", temperature=1.0, top_k=0, max_new_tokens=image_tokens, use_cache=True
        )
        return int(tokens.size)

    return generate
