"""Runs a Linen model on parameters of other sizes than it declares, for tests."""

import math

import flax.linen as nn


def resized(model, **kwargs):
    """``fn(variables, x)`` in which every layer takes its sizes from its arrays."""

    def fn(variables, x):
        with nn.intercept_methods(_resize):
            return model.apply(variables, x, **kwargs)

    return fn


def _resize(call, args, kwargs, context):
    layer = context.module
    if context.method_name != "__call__" or not layer.has_variable("params", "kernel"):
        return call(*args, **kwargs)
    shape = layer.get_variable("params", "kernel").shape
    new = {}
    if isinstance(layer, nn.Dense | nn.Conv | nn.ConvTranspose):
        new = {"features": shape[-1]}
    if isinstance(layer, nn.Conv) and layer.feature_group_count > 1:
        # As many groups as the channels of the input hold those of the kernel.
        new["feature_group_count"] = args[0].shape[-1] // shape[-2]
    if isinstance(layer, nn.DenseGeneral):
        axis = layer.axis if isinstance(layer.axis, tuple) else (layer.axis,)
        rest = shape[len(axis) :]
        new = {
            "features": rest if isinstance(layer.features, tuple) else math.prod(rest)
        }
    for name, value in new.items():
        object.__setattr__(layer, name, value)
    return call(*args, **kwargs)
