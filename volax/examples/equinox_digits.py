"""Digits with Equinox: train, remove neurons, compact, go on training.

Run it as `python -m volax.examples.equinox_digits`, with Equinox installed.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import volax
from volax.examples.data import Dataset, load_dataset


def batched(model: eqx.nn.MLP, images: jax.Array) -> jax.Array:
    """Map images [batch, 64] to logits [batch, 10]; the model takes one image."""
    return jax.vmap(model)(images)


def fit(model: eqx.nn.MLP, tx: Any, opt_state: Any, data: Dataset, steps: int):
    """Train for some steps; the model and the optimizer's state afterwards."""
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, key):
        rows = jax.random.choice(key, len(data.train_labels), (128,))
        out = batched(eqx.combine(params, rest), data.train_inputs[rows])
        labels = data.train_labels[rows]
        return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])
    params, opt_state = run((params, opt_state))
    return eqx.combine(params, rest), opt_state


def main(steps: int = 600, share: float = 0.25) -> tuple[eqx.nn.MLP, float]:
    """Train, keep a share of the neurons, compact and train on; print what came."""
    data = jax.device_put(load_dataset("digits"))
    model = eqx.nn.MLP(64, 10, 128, 2, key=jax.random.key(0))
    groups = volax.find_groups(batched, model, data.test_inputs[:1])
    ramp = volax.cubic_ramp(1.0, share, 0, steps // 2)
    tx = optax.chain(optax.adam(2e-3), volax.keep_units(ramp, groups))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    model, state = fit(model, tx, state, data, steps)

    check = (batched, batched, (data.test_inputs,))
    small = volax.compact(model, groups, opt_state=state[0], check=check)
    widths = [group.size for group in small.groups]
    model, _ = fit(small.params, optax.adam(2e-3), small.opt_state, data, steps // 4)
    guess = batched(model, data.test_inputs).argmax(-1)
    right = jnp.mean(guess == data.test_labels).item()
    print(f"widths [128, 128] -> {widths}, test accuracy {right:.1%}")
    return model, right


if __name__ == "__main__":
    main()
