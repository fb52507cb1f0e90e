"""A perceptual distance whose weights come with a package, unlike LPIPS's."""

import paddle
from paddle import nn

from ppvilg.evaluation.efficientnet import load_feature_maps
from ppvilg.vqgan.lpips import unit

_STAGES = 4
"""Of the network's stages, the first ones: they see edges, textures and small parts, and cost little."""


class EfficientNetDistance(nn.Layer):
    """LPIPS's distance (Zhang et al. 2018, equation 1, with all channels weighing the same) over EfficientNet-Lite0's features.

    The features are those after each of the first four stages, at 1/2, 1/4, 1/8 and 1/16 of the picture's size. The weights are
    constant: they get no gradient and stay out of the state_dict, hence out of checkpoints. Raises `ValueError` if the package
    is missing or its file damaged.
    """

    def __init__(self):
        super().__init__()
        network = load_feature_maps(_STAGES)
        for parameter in network.parameters():
            parameter.stop_gradient = True
        # Not a sublayer, which would be saved and trained.
        self.__dict__["network"] = network

    def forward(self, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        """Two batches of images float32 [B, 3, H, W] in [-1, 1] -> distances float32 [B], each from 0 to 4."""
        pairs = zip(self.network(x), self.network(y), strict=True)
        return sum(((unit(a) - unit(b)) ** 2).sum(1).mean([1, 2]) for a, b in pairs) / _STAGES
