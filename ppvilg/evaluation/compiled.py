"""Networks that only look at pictures, made fast on the CPU."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import paddle
from paddle import nn

Network = Callable[[paddle.Tensor], paddle.Tensor]


def compiled(network: nn.Layer, shape: list[int]) -> Network:
    """A network of one float32 input [B, *shape] that computes the same, to rounding, by Paddle Inference with oneDNN.

    Paddle's own convolutions are about seven times slower on a CPU. On a GPU it is the network itself.
    """
    network.eval()
    if paddle.get_device() != "cpu":
        return network
    from paddle import inference

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network")
        paddle.jit.save(network, path, input_spec=[paddle.static.InputSpec([None, *shape], "float32")])
        config = inference.Config(f"{path}.json", f"{path}.pdiparams")
        config.disable_glog_info()
        config.enable_mkldnn()
        predictor = inference.create_predictor(config)
    # What a predictor returns is overwritten by its next run.
    return lambda x: predictor.run([x])[0].clone()
