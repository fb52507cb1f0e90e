"""Temporary."""

import paddle


def named_parameters(model):
    return dict(model.named_parameters())


@paddle.no_grad()
def set_weights(parameters, arrays):
    for k, a in arrays.items():
        parameters[k].set_value(a)


def load_model(model, reader):
    model.set_state_dict({k: paddle.to_tensor(v) for k, v in reader.all().items()})
