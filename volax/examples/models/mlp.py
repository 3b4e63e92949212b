"""A multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import volax
from volax.examples.models._inputs import unit


class MLP(nnx.Module):
    """Dense layers `hidden0`, `hidden1`, ... with ReLU between, and `out`.

    Args:
      inputs: number of input features.
      hidden: units of each hidden layer.
      outputs: number of classes.
      dtype: of the computation of the hidden layers; by default that of the arrays.
      rngs: source of the initial weights.
    """

    out: nnx.Linear

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.layers = (*(f"hidden{i}" for i in range(len(hidden))), "out")
        widths = pairwise((inputs, *hidden, outputs))
        for name, (fan_in, fan_out) in zip(self.layers, widths):
            inside = None if name == "out" else dtype
            setattr(self, name, nnx.Linear(fan_in, fan_out, dtype=inside, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images of `inputs` numbers each to logits [batch, outputs]."""
        x = unit(x).reshape(len(x), -1)
        for name in self.layers[:-1]:
            x = nnx.relu(getattr(self, name)(x))
        return self.out(x)

    def pairs(self) -> volax.pairs.Groups:
        """Find the weights on both sides of every hidden layer's units."""
        inputs = getattr(self, self.layers[0]).in_features
        return volax.find_pairs(self, jax.ShapeDtypeStruct((1, inputs), jnp.float32))
