"""Which mode of path_prox suits which optimizer: units left against accuracy.

``python -m benchmarks.optimizers`` trains one net on a part of the training images with
every strength and seed, and judges it on the rest. Lines of nets trained small, with
Adam, are what a mode has to beat. No fine-tuning follows.
"""

import argparse
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import volax
from benchmarks import machine
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.models import MLP

BATCH = 64


class Setup(NamedTuple):
    """An optimizer, its peak learning rate, and the strengths that it needs."""

    make: Any
    rate: float
    strengths: tuple[float, ...]


OPTIMIZERS = {
    "sgd": Setup(optax.sgd, 0.2, (0.003, 0.01, 0.03)),
    "momentum": Setup(
        functools.partial(optax.sgd, momentum=0.9), 0.05, (0.03, 0.06, 0.1)
    ),
    "adam": Setup(optax.adam, 3e-3, (1.0, 2.0, 3.0)),
    "adamw": Setup(functools.partial(optax.adamw, weight_decay=0.01), 3e-3, (2.0,)),
    "lion": Setup(optax.lion, 5e-4, (3.0, 6.0, 10.0)),
}
MODES: dict[str, dict[str, Any]] = {
    "rescale": {"normalize": "rescale"},
    "none": {"normalize": "none"},
    "project": {"normalize": "project"},
    "p=1/2": {"p": 0.5},
}


def accuracies(
    data: Dataset,
    widths: Sequence[int],
    make: Any,
    strengths: Sequence[float],
    seeds: int,
    epochs: int,
) -> Iterator[tuple[float, float, list[float]]]:
    """For each strength the mean accuracy and the mean units left of every layer.

    Args:
      data: the images.
      widths: of the hidden layers.
      make: makes the optimizer of a number of steps, pairs and a traced strength.
      strengths: one compiled program takes them all.
      seeds: trainings for each.
      epochs: of each.

    Yields:
      Strength, accuracy on the held-out images, units.
    """
    count, features = data.train_inputs.shape
    steps = count // BATCH
    model = MLP(features, widths, CLASSES, rngs=nnx.Rngs(0))
    graph = nnx.graphdef(model)
    pairs = volax.find_pairs(model, data.train_inputs[:1])

    def logits(params, images):
        return nnx.merge(graph, params)(images)

    def loss(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images), labels
        ).mean()

    @jax.jit
    def train(params, strength, key, data):
        tx = make(epochs * steps, pairs, strength)

        def step(carry, rows):
            params, state = carry
            slopes = jax.grad(loss)(
                params, data.train_inputs[rows], data.train_labels[rows]
            )
            updates, state = tx.update(slopes, state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, key):
            order = jax.random.permutation(key, count)[: steps * BATCH]
            return jax.lax.scan(step, carry, order.reshape(steps, BATCH))[0], None

        carry = params, tx.init(params)
        params = jax.lax.scan(epoch, carry, jax.random.split(key, epochs))[0][0]
        right = logits(params, data.test_inputs).argmax(-1) == data.test_labels
        norms = volax.path_norm(params, pairs)
        return right.mean(), jnp.stack([jnp.sum(n > 0) for n in norms])

    data = jax.device_put(data)
    for strength in strengths:
        found = []
        for seed in range(seeds):
            fresh = MLP(features, widths, CLASSES, rngs=nnx.Rngs(seed))
            start = nnx.to_pure_dict(nnx.state(fresh, nnx.Param))
            found.append(train(start, strength, jax.random.key(seed), data))
        right, units = (jnp.stack(x).mean(0) for x in zip(*found))
        yield strength, 100 * float(right), units.tolist()


def _behind(setup: Setup, options: dict[str, Any]) -> Any:
    """An optimizer on a cosine, and path_prox behind it."""

    def make(steps: int, pairs: volax.pairs.Groups, strength: Any):
        rate = optax.cosine_decay_schedule(setup.rate, steps)
        chosen = pairs
        if options.get("normalize") == "project":
            chosen = pairs.disjoint()
        prox = volax.path_prox(rate, strength, chosen, **options)
        return optax.chain(setup.make(rate), prox)

    return make


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, trains, prints a line for each setting."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers", description=__doc__
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--widths", default="256", help="of the hidden layers")
    parser.add_argument("--small", default="16,32,64,128", help="trained small")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--validation", type=float, default=0.3)
    given = parser.parse_args(argv)
    widths = [int(n) for n in given.widths.split(",")]
    where = os.environ.get("VOLAX_DATA_DIR", "")
    data = load_dataset(given.dataset, where, validation=given.validation)
    print(machine.header())
    print("| optimizer | mode | frozen | strength | units | accuracy, % |")
    print("|---|---|---|---|---|---|")

    def show(name, mode, frozen, widths, make, strengths):
        for strength, right, units in accuracies(
            data, widths, make, strengths, given.seeds, given.epochs
        ):
            left = " ".join(f"{n:.0f}" for n in units)
            cells = (name, mode, frozen, f"{strength:g}", left, f"{right:.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)

    adam = OPTIMIZERS["adam"]
    for n in filter(None, given.small.split(",")):
        plain = _behind(adam, {})
        show("adam", "trained small", "", [int(n)] * len(widths), plain, [0.0])
    for name, mode, frozen in itertools.product(
        filter(None, given.optimizers.split(",")), given.modes.split(","), (True, False)
    ):
        make = _behind(OPTIMIZERS[name], MODES[mode] | {"freeze_dead": frozen})
        strengths = OPTIMIZERS[name].strengths
        show(name, mode, "yes" if frozen else "no", widths, make, strengths)


if __name__ == "__main__":
    main()
