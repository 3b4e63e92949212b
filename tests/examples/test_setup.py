"""What a config asks for: options of the optimizer, of the images and of the model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax
from volax.examples._errors import UserError
from volax.examples._optimizers import build_optimizers
from volax.examples._setup import augmentation, network
from volax.examples.data import load

PAIR = volax.pairs.Groups((volax.pair("l1/kernel", "l2/kernel"),))
PARAMS = {"l1": {"kernel": jnp.ones((2, 3))}, "l2": {"kernel": jnp.ones((3, 1))}}


def steps_of(tx, gradients):
    """The weights of the first layer after each step."""
    params: Any = PARAMS
    state, found = tx.init(PARAMS), []
    for scale in gradients:
        grads = jax.tree.map(lambda p, scale=scale: scale * jnp.ones_like(p), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params["l1"]["kernel"])
    return found


def test_gathered_gradients_make_one_step_of_optimizer_and_regularizer(load_config):
    options = {"optimizer.schedule": "constant", "lp_decay.strength": 0.5}
    config = load_config("digits:lp_decay", **options)
    _, one = build_optimizers(config, 10, PAIR)
    config.optimizer.accumulate = 2
    _, two = build_optimizers(config, 10, PAIR)
    first, both = steps_of(two, (0.25, 0.75))
    np.testing.assert_array_equal(first, PARAMS["l1"]["kernel"])  # not even decay
    np.testing.assert_allclose(both, steps_of(one, (0.5,))[0], rtol=1e-6)
    # As many updates as the cosine has steps: the last one is the smallest.
    config.optimizer.schedule = "cosine"
    plain, _ = build_optimizers(config, 40, PAIR)
    moved = -np.diff([w[0, 0] for w in steps_of(plain, [1.0] * 40)[1::2]])
    assert len(moved) == 19
    assert moved[-1] < 0.02 * moved[0]


def test_the_rate_rises_before_it_falls(load_config):
    options = {"optimizer.name": "sgd", "optimizer.momentum": 0.0}
    config = load_config("digits:lp_decay", **options)
    config.optimizer.warmup = 0.2
    plain, _ = build_optimizers(config, 20, PAIR)
    weights = [1.0, *(float(w[0, 0]) for w in steps_of(plain, [1.0] * 20))]
    rates = -np.diff(weights) / config.optimizer.learning_rate
    np.testing.assert_allclose(rates[:5], (0.2, 0.4, 0.6, 0.8, 1.0), rtol=1e-2)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(16) / 16))
    np.testing.assert_allclose(rates[4:], cosine, atol=2e-3)


def test_a_long_gradient_is_clipped(load_config):
    options = {"optimizer.name": "sgd", "optimizer.schedule": "constant"}
    config = load_config("digits:lp_decay", **options)
    config.optimizer.clip = 0.3
    plain, _ = build_optimizers(config, 10, PAIR)
    (found,) = steps_of(plain, (100.0,))
    moved = 1 - found[0, 0]  # nine weights share the norm
    np.testing.assert_allclose(moved, 0.1 * config.optimizer.learning_rate, rtol=1e-3)


def test_images_are_flipped_and_moved_as_rows_too(load_config):
    config = load_config("digits:adamw", augment=True)
    loaded = load("digits")
    rows = jnp.zeros((64, 8, 8)).at[:, 4, 2].set(1.0).reshape(64, 64)
    change = augmentation(config, loaded)
    assert change is not None
    changed = change(jax.random.key(0), rows)
    assert changed.shape == rows.shape
    places = {
        tuple(np.argwhere(image.reshape(8, 8))[0]) for image in changed if image.any()
    }
    assert len(places) > 20
    assert set(np.unique(changed)) == {0, 1}
    config.augment = False
    assert augmentation(config, loaded) is None
    config.augment = True
    with pytest.raises(UserError, match="augment is for images"):
        augmentation(config, loaded._replace(picture=()))


def test_the_computation_is_narrow_and_the_weights_are_not(load_config):
    config = load_config("digits:adamw")
    loaded = load("digits")
    images = jnp.asarray(loaded.dataset.test_inputs[:4])
    exact, narrow = (network(config, loaded, d) for d in ("float32", "bfloat16"))
    assert narrow.hidden0.kernel.dtype == jnp.float32
    np.testing.assert_array_equal(narrow.hidden0.kernel, exact.hidden0.kernel)
    assert narrow.hidden0(images).dtype == jnp.bfloat16
    assert 0 < abs(narrow(images) - exact(images)).max() < 0.1
    with pytest.raises(UserError, match=r"model.dtype is 'int8'; there are float32"):
        network(config, loaded, "int8")
