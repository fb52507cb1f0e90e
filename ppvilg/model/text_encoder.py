"""A contextual encoder of the source text: PaddleNLP's ERNIE, its last hidden states projected to the transformer's width."""

from dataclasses import asdict

import paddle
from paddle import nn

from ppvilg.config import TextEncoderConfig

_HIDDEN = -1e4  # added to the scores of padding, as `ErnieModel` does


class TextEncoder(nn.Layer):
    """The layers of PaddleNLP's `ErnieModel` without its pooler, under the same names, and the projection of their states.

    Every tensor parallel process holds all of it. Without dropout unless it is trained.
    """

    def __init__(self, config: TextEncoderConfig, hidden: int, dropout: float):
        super().__init__()
        from paddlenlp.transformers import ErnieConfig, ErnieModel  # takes seconds

        p = dropout if config.train else 0.0
        sizes = ErnieConfig(**asdict(config.sizes), hidden_dropout_prob=p, attention_probs_dropout_prob=p)
        ernie = ErnieModel(sizes)
        self.embeddings, self.encoder = ernie.embeddings, ernie.encoder
        for parameter in self.parameters():
            parameter.stop_gradient = not config.train
            parameter.optimize_attr["learning_rate"] = config.learning_rate_scale
        self.projection = nn.Linear(config.sizes.hidden_size, hidden, bias_attr=False)

    def forward(self, ids: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [B, L], mask bool [B, L] True for real tokens -> [B, L, hidden]."""
        return self.projection(self.states(ids, mask))

    def states(self, ids: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        """The last hidden states [B, L, width] of the encoder, as `ErnieModel` has them; arguments as of a call."""
        x = self.embeddings(ids)
        hides = (1 - mask.astype(x.dtype)) * _HIDDEN
        return self.encoder(x, src_mask=hides.unsqueeze([1, 2]))
