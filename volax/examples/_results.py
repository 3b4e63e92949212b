"""What a training ends with: figures, and a smaller model where units died."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import volax
from volax.examples.data import Dataset, Loaded
from volax.examples.loop import Loop, State
from volax.examples.models import sample

_CHECKED = 8  # test examples on which both models are run
_WRITTEN = 300  # characters


def sized(state: State, groups: volax.pairs.Groups) -> dict[str, int]:
    """What training does not change: weights, bytes, multiply-adds of an example."""
    leaves = jax.tree.leaves(state.params)
    arrays = jax.tree.leaves((state.params, state.rest))
    return {
        "weights": sum(leaf.size for leaf in leaves),
        "multiply_adds": sum(groups.multiply_adds.values()),
        "bytes": sum(leaf.nbytes for leaf in arrays),
    }


def compacted(
    model: Any, groups: volax.pairs.Groups, data: Dataset, path: Path
) -> dict[str, Any]:
    """Save the model without its dead units, proven to be the same on some examples.

    Args:
      model: as it is evaluated.
      groups: its units.
      data: on the device.
      path: the file.

    Returns:
      The figures of the smaller model, and the size of the file.
    """
    inputs = data.test_inputs[:_CHECKED]
    small = volax.compact(model, groups, check=(inputs,))
    size = volax.save(path, small)
    loop = Loop(small.params, optax.identity(), 1)
    state = loop.start()
    found = jax.jit(loop.scores)(state.params, state.rest, data)
    found |= volax.metrics(state.params, small.groups)
    figures = {key: number(value) for key, value in jax.device_get(found).items()}
    again = volax.find_groups(small.params, inputs[:1])
    return figures | sized(state, again) | {"file": path.name, "bytes_on_disk": size}


def written(model: Any, loaded: Loaded, seed: int) -> str:
    """What a model of characters writes on from the beginning of the test text."""
    prompt = jnp.asarray(loaded.dataset.test_inputs[0])
    write = jax.jit(lambda key: sample(model, prompt, _WRITTEN, key, 0.8))
    numbers = np.asarray(write(jax.random.key(seed)))[len(prompt) :]
    return "".join(loaded.vocabulary[k] for k in numbers)


def number(value: np.ndarray) -> float | int:
    """A Python number that prints as the float32 does: 0.1, not 0.10000000149."""
    return float(str(value)) if value.dtype.kind == "f" else int(value)
