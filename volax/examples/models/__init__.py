"""The networks of the examples, in Flax NNX, one file a family."""

from volax.examples.models.mlp import MLP as MLP
