"""What an optimizer does with all weights of a model, in one pass on a CPU; elsewhere with paddle's functions."""

from collections.abc import Sequence

import paddle
from paddle import nn

from ppvilg.ops.extension import has_kernels, run


class AdamW(paddle.optimizer.AdamW):
    """paddle's AdamW, with the same state under the same names; float32 weights on a CPU are updated by one C++ call.

    It only replaces how a parameter is updated, so Fleet's wrappers can shard its state.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._waiting = []

    def _append_optimize_op(self, block, param_and_grad):
        """Update one parameter, or have `_finish_update` do it."""
        if isinstance(param_and_grad, dict):
            param_and_grad = self._update_param_group(param_and_grad)
        weight, gradient = param_and_grad
        rate = self._create_param_lr(param_and_grad)
        sparse = gradient.is_selected_rows()
        if self._amsgrad or self._lr_ratio is not None or sparse or not has_kernels(weight, gradient, rate):
            return super()._append_optimize_op(block, param_and_grad)
        names = self._moment1_acc_str, self._moment2_acc_str, self._beta1_pow_acc_str, self._beta2_pow_acc_str
        state = [self._get_accumulator_master(name, weight) for name in names]
        decayed = self._apply_decay_param_fun is None or self._apply_decay_param_fun(weight.name)
        self._waiting.append((weight, gradient, *state, rate, self._weight_decay if decayed else 0.0))
        return None

    def _finish_update(self, block, parameters_and_grads):
        """Called once after `_append_optimize_op` for all parameters, or all of a parameter group."""
        super()._finish_update(block, parameters_and_grads)
        if self._waiting:
            *tensors, decays = map(list, zip(*self._waiting, strict=True))
            self._waiting.clear()
            run("adamw", *tensors, self._beta1, self._beta2, self._epsilon, decays)


class ClipGradByGlobalNorm(nn.ClipGradByGlobalNorm):
    """paddle's clipping by the norm of all gradients together; on a CPU in place and with one pass for the norm.

    Fleet replaces it by its own where gradients are spread over processes.
    """

    def _dygraph_clip(self, params_grads):
        gradients = [g for p, g in params_grads if g is not None and getattr(p, "need_clip", True)]
        if not gradients or any(g.is_selected_rows() for g in gradients) or not has_kernels(*gradients):
            return super()._dygraph_clip(params_grads)
        with paddle.no_grad():
            run("clip_norm", gradients, self.clip_norm)
        return params_grads


def squared_sum(tensors: Sequence[paddle.Tensor]) -> paddle.Tensor:
    """The sum of all squares of all values, float32 []; the square of the norm of all of them together."""
    tensors = list(tensors)
    if has_kernels(*tensors):
        return run("squared_sum", tensors)
    return paddle.stack([t.astype("float32").square().sum() for t in tensors]).sum()


@paddle.no_grad()
def lerp_(tensors: Sequence[paddle.Tensor], others: Sequence[paddle.Tensor], share: float) -> None:
    """Move each tensor in place by a share of the way to the other one of the same shape: t += share · (o - t)."""
    tensors, others = list(tensors), list(others)
    if has_kernels(*tensors, *others):
        run("lerp", tensors, others, share)
        return
    for tensor, other in zip(tensors, others, strict=True):
        tensor.add_((other.astype(tensor.dtype) - tensor).scale_(share))
