"""One table of every transformation and alias, for the conformance tests."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import volax

PAIR = volax.pair("l1/kernel", "l2/kernel", bias="l1/bias")
Tree = Any  # Optax's type for trees has no entries that a test could read.


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A factory with its arguments, in ``kwargs`` so that they can be injected."""

    factory: Any
    kwargs: dict[str, Any]
    alone: bool  # an optimizer of its own, not to be put behind one

    def make(self, **overrides):
        """The transformation itself."""
        return self.factory(**(self.kwargs | overrides))

    def optimizer(self, **overrides):
        """The transformation as a user would train with it."""
        tx = self.make(**overrides)
        return tx if self.alone else optax.chain(optax.sgd(0.1), tx)


def volumized_momentum(volume, alpha=0.0, mask="all"):
    return volax.volumized(optax.sgd(0.1, 0.9), volume, alpha, mask=mask)


def proximal(learning_rate, strength, mask="matrices"):
    return volax.proximal(learning_rate, strength, volax.prox.soft_threshold, mask=mask)


def proximal_groups(learning_rate, strength, mask="matrices"):
    group = functools.partial(volax.prox.group_soft_threshold, axis=0)
    return volax.proximal(learning_rate, strength, group, mask=mask)


def proximal_adam(learning_rate, strength, mask="matrices"):
    return volax.proximal_adam(
        learning_rate, strength, volax.prox.soft_threshold, mask=mask
    )


def tuned_decay(learning_rate, mask="matrices"):
    def make(strength):
        return volax.lp_decay(learning_rate, strength, 1.0, snap_below=0.02, mask=mask)

    return volax.tune_strength(
        make, 0.9, measure="weights", steps=8, initial=0.3, mask=mask
    )


def tuned_units(learning_rate):
    def make(strength):
        return volax.path_prox(learning_rate, strength, PAIR)

    return volax.tune_strength(make, 0.5, groups=PAIR, steps=8, initial=0.3)


# As the messages name them.
proximal_groups.__name__ = "proximal"
tuned_decay.__name__ = tuned_units.__name__ = "tune_strength"


def _case(factory, alone: bool = False, **kwargs: Any) -> Case:
    return Case(factory, kwargs, alone)


RATE: dict[str, Any] = {"learning_rate": 0.1}
CASES = {
    "volumize": _case(volax.volumize, volume=0.3, mask="all"),
    "volumize-elastic": _case(volax.volumize, volume=0.3, alpha=-0.5, mask="all"),
    "volumize-relative": _case(
        volax.volumize, volume=volax.relative_to_init(0.5), mask="all"
    ),
    "volumized": _case(volumized_momentum, True, volume=0.3, alpha=-0.5),
    "lp_decay-0.8": _case(volax.lp_decay, **RATE, strength=0.5, p=0.8),
    "lp_decay-1": _case(volax.lp_decay, **RATE, strength=0.5, p=1.0),
    "lp_decay-2": _case(volax.lp_decay, **RATE, strength=0.5, p=2.0),
    "lp_decay-3": _case(volax.lp_decay, **RATE, strength=0.5, p=3.0),
    "path_prox": _case(volax.path_prox, **RATE, strength=2.0, pairs=PAIR),
    "path_prox-project": _case(
        volax.path_prox, **RATE, strength=2.0, pairs=[PAIR], normalize="project"
    ),
    "path_prox-none": _case(
        volax.path_prox, **RATE, strength=2.0, pairs=[PAIR], normalize="none"
    ),
    "path_prox-all": _case(
        volax.path_prox,
        **RATE,
        strength=2.0,
        pairs=(PAIR,),
        p=0.7,
        regularize_bias=True,
        balance=True,
        freeze_dead=True,
    ),
    "group_prox": _case(volax.group_prox, **RATE, strength=2.0, groups=PAIR),
    "group_prox-half": _case(
        volax.group_prox, **RATE, strength=2.0, groups=[PAIR], p=0.5
    ),
    "group_prox-all": _case(
        volax.group_prox,
        **RATE,
        strength=2.0,
        groups=(PAIR,),
        over="all",
        freeze_dead=True,
    ),
    "keep_units": _case(volax.keep_units, share=0.5, groups=PAIR),
    "keep_units-global": _case(
        volax.keep_units, share=0.6, groups=[PAIR], scope="global", score="consumers"
    ),
    "keep_units-free": _case(
        volax.keep_units, share=0.5, groups=(PAIR,), freeze=False, every=2
    ),
    "proximal": _case(proximal, **RATE, strength=2.0),
    "proximal-groups": _case(proximal_groups, **RATE, strength=2.0),
    "proximal_adam": _case(proximal_adam, True, **RATE, strength=2.0),
    "tune_strength-weights": _case(tuned_decay, **RATE),
    "tune_strength-units": _case(tuned_units, **RATE),
    "lp_adam": _case(volax.lp_adam, True, **RATE, strength=0.5, p=1.0),
    "lp_sgd": _case(volax.lp_sgd, True, **RATE, strength=0.5, p=1.0, momentum=0.9),
    "volumized_adam": _case(volax.volumized_adam, True, **RATE, volume=0.3),
    "path_prox_sgd": _case(volax.path_prox_sgd, True, **RATE, strength=2.0, pairs=PAIR),
    "path_prox_adam": _case(
        volax.path_prox_adam, True, **RATE, strength=2.0, pairs=PAIR
    ),
}


@functools.cache
def _tree(seed, dtype):
    shapes = {
        "l1": {"kernel": (3, 4), "bias": (4,)},
        "l2": {"kernel": (4, 2), "bias": (2,)},
    }
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: type(x) is tuple)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        jax.random.normal(k, s, dtype) for k, s in zip(keys, leaves)
    )


def params(seed=0, dtype=jnp.float32):
    return jax.tree.map(lambda x: x, _tree(seed, dtype))


def grads(count=5, seed=100):
    return [params(seed + i) for i in range(count)]


def update(tx, grads, tree, state=None) -> tuple[Tree, Tree]:
    """The updates of one step, from the first state if none is given, and its state."""
    return tx.update(grads, tx.init(tree) if state is None else state, tree)


def apply(tree, updates) -> Tree:
    """The new parameters."""
    return optax.apply_updates(tree, updates)


def jitted(tx) -> Any:
    """The transformation with its update compiled, for those that branch inside.

    Eager, a ``lax.cond`` is compiled anew at every step.
    """
    return tx._replace(update=jax.jit(tx.update))


def train(tx, tree, steps, state=None) -> tuple[Tree, Tree]:
    """Plain eager training; the parameters and the state."""
    state = tx.init(tree) if state is None else state
    for g in steps:
        updates, state = tx.update(g, state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree, state


@functools.cache
def _trained(case):
    return train(case.optimizer(), params(), grads())[0]


def trained(case) -> Tree:
    """What ``params()`` become in the five steps of ``grads()``, each case run once."""
    return jax.tree.map(lambda x: x, _trained(case))
