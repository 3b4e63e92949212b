"""Digits with Flax Linen (`python -m volax.examples.linen_digits`)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import volax
from volax.examples.data import Dataset, load_dataset


class Net(nn.Module):
    """Two hidden layers of some widths, with batch norm and dropout."""

    widths: tuple[int, ...] = (128, 64)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map images [batch, 64] to logits [batch, 10]."""
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10)(x)


def fit(net: Net, tx: Any, variables: Any, opt_state: Any, data: Dataset, steps: int):
    """Train for some steps; the variables and the optimizer's state afterwards."""

    def loss(params, stats, key):
        rows = jax.random.choice(key, len(data.train_labels), (128,))
        images, labels = data.train_inputs[rows], data.train_labels[rows]
        both = {"params": params, "batch_stats": stats}
        noise = {"mutable": ["batch_stats"], "rngs": {"dropout": key}}
        out, new = net.apply(both, images, train=True, **noise)
        loss = optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()
        return loss, new["batch_stats"]

    def step(carry, key):
        variables, state = carry
        params, stats = variables["params"], variables["batch_stats"]
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, key)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return ({"params": params, "batch_stats": stats}, state), None

    keys = jax.random.split(jax.random.key(1), steps)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])
    return run((variables, opt_state))


def main(steps: int = 600, share: float = 0.25) -> tuple[Any, float]:
    """Train, keep a share of the neurons, compact and train on; print what came."""
    data = jax.device_put(load_dataset("digits"))
    net, x = Net(), data.test_inputs
    variables = net.init(jax.random.key(0), x, train=False)
    groups = volax.find_groups(net, variables, x[:1], train=False)
    ramp, adam = volax.cubic_ramp(1.0, share, 0, steps // 2), optax.adam(2e-3)
    tx = optax.chain(adam, volax.keep_units(ramp, groups))
    state = tx.init(variables["params"])
    variables, state = fit(net, tx, variables, state, data, steps)

    # Linen writes widths down in the module, so the small one is built anew.
    widths = tuple(volax.metrics(variables, g)["alive"].item() for g in groups)
    less = Net(widths)
    check: Any = (*(partial(n.apply, train=False) for n in (net, less)), (x,))
    small = volax.compact(variables, groups, opt_state=state[0], check=check)
    variables, _ = fit(less, adam, small.params, small.opt_state, data, steps // 4)
    right = jnp.mean(check[1](variables, x).argmax(-1) == data.test_labels).item()
    print(f"widths {net.widths} -> {widths}, test accuracy {right:.1%}")
    return variables, right


if __name__ == "__main__":
    main()
