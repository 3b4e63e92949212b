"""Smaller while it trains: `python -m volax.examples.ramp --units=26`.

Trains a wide network twice with Adam. The first time all its units stay. The second
time `keep_units` leaves fewer and fewer on a cubic ramp over the first two fifths of
the steps, in which the learning rate is constant, and every few epochs `compact`
removes them from the network and from Adam's moments, so that the next epochs cost
less.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx

import volax
from volax.examples._errors import UserError
from volax.examples._figures import numbers
from volax.examples._settings import positive
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.loop import fit, right
from volax.examples.models import MLP

_RATE = 2e-3
_RAMP = 0.4  # of the steps


def ramp(
    data: Dataset,
    *,
    hidden: int,
    units: int,
    epochs: int,
    every: int,
    batch: int,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Train one hidden layer with all its units, and down to fewer of them.

    Args:
      data: the images.
      hidden: units at the beginning.
      units: units at the end.
      epochs: of either training.
      every: epochs between two compactions.
      batch: images of a step.
      seed: of the weights and the order of the images.

    Returns:
      Units, right test images and seconds, of both trainings.
    """
    pixels = data.train_inputs.shape[1]
    model = MLP(pixels, (hidden,), CLASSES, rngs=nnx.Rngs(seed))
    steps = len(data.train_labels) // batch
    last = max(round(_RAMP * epochs * steps), 1)
    falling = volax.cubic_ramp(1.0, units / hidden, 0, last)
    cosine = optax.cosine_decay_schedule(_RATE, max(epochs * steps - last, 1))
    constant = optax.constant_schedule(_RATE)
    adam = optax.adam(optax.join_schedules([constant, cosine], [last]))
    rows: dict[str, list[float]] = {"units": [], "right": [], "seconds": []}
    for share, phase in ((optax.constant_schedule(1.0), epochs), (falling, every)):
        start = time.perf_counter()
        small, moments = model, adam.init(_weights(model))
        groups = volax.find_groups(model, jnp.zeros((1, pixels)))
        for done in range(0, epochs, phase):
            kept = _kept(share, groups, hidden, done * steps)
            small, (moments, _) = fit(
                small,
                optax.chain(adam, kept),
                data,
                range(done, min(done + phase, epochs)),
                batch_size=batch,
                seed=seed,
                opt_state=(moments, kept.init(_weights(small))),
            )
            cut = volax.compact(small, groups, opt_state=moments)
            small, moments, groups = cut.params, cut.opt_state, cut.groups
        rows["seconds"].append(time.perf_counter() - start)
        rows["units"].append(groups[0].size)
        rows["right"].append(right(small, data))
    return rows


def _weights(model: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _kept(
    share: optax.Schedule, groups: volax.pairs.Groups, hidden: int, done: int
) -> optax.GradientTransformation:
    """The rest of the ramp, for a network that has fewer units than at first."""
    whole = hidden / groups[0].size
    return volax.keep_units(
        lambda count: jnp.minimum(share(count + done) * whole, 1), groups, every=10
    )


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--hidden", type=positive, default=512)
    parser.add_argument("--units", type=positive, default=32)
    parser.add_argument("--epochs", type=positive, default=48)
    parser.add_argument("--every", type=positive, default=8)
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(argv))
    try:
        data = load_dataset(given.pop("dataset"), given.pop("data_dir"))
        rows = ramp(data, **given)
    except (OSError, UserError) as error:
        parser.exit(1, f"error: {error}\n")
    print(numbers(("", "all units", "on the ramp"), rows))
    return rows


if __name__ == "__main__":
    run()
