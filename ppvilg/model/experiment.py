"""The model that an experiment's config describes."""

from ppvilg.config import ViLGExperiment
from ppvilg.model.config import ViLGConfig


def vilg_config(config: ViLGExperiment) -> ViLGConfig:
    """Sizes and attention of the transformer of an experiment."""
    model, text, (rows, columns) = config.transformer, config.text, config.grid
    return ViLGConfig(
        text_vocab_size=text.vocabulary_size,
        max_text_length=text.max_length,
        image_vocab_size=config.vqgan.codebook.size,
        rows=rows,
        columns=columns,
        layers=model.layers,
        hidden=model.hidden,
        heads=model.heads,
        ffn_multiplier=model.ffn_multiplier,
        dropout=model.dropout,
        tie_embeddings=model.tie_embeddings,
        text_embedding_width=text.embedding_width,
        attention=model.attention,
        reconstructor=config.vqgan if model.reconstructor else None,
    )
