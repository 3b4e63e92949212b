"""Ways to a smaller network, all with the same number of steps in all.

Each method takes a `Study`, which knows how a network is made and trained, and a
target, the sizes of a network with fewer units, and gives what is left, trained.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import optax

import volax

_RAMP = 0.4  # of the epochs
_SELECTIONS = 20  # an epoch


class Study:
    """Training of one network with one seed.

    Args:
      epochs: of every method in all, fine-tuning included.
      steps: of an epoch.
      rate: of Adam.
      whole: the sizes of the whole network.
      inputs: to trace it with, a batch of one.
    """

    def __init__(
        self, epochs: int, steps: int, rate: float, whole: Any, inputs: tuple[Any, ...]
    ):
        self.epochs, self.steps, self.rate = epochs, steps, rate
        self.whole, self.inputs = whole, inputs

    def model(self, target: Any) -> Any:
        """A network of these sizes with its first weights."""
        raise NotImplementedError

    def fit(
        self,
        model: Any,
        tx: optax.GradientTransformation,
        epochs: Iterable[int],
        opt_state: Any = None,
    ) -> tuple[Any, Any]:
        """Train a copy of a network in the epochs of these numbers.

        Returns:
          The network, and the optimizer's state.
        """
        raise NotImplementedError

    def groups(self, model: Any) -> volax.pairs.Groups:
        """The units of a network."""
        return volax.find_groups(model, *self.inputs)

    def counts(
        self, groups: volax.pairs.Groups, target: Any
    ) -> list[tuple[volax.pairs.Group, int]]:
        """What is left of each group at a target."""
        few = self.groups(self.model(target))
        return [(g, left.sizes[-1]) for g, left in zip(groups, few, strict=True)]

    def cost(self, model: Any) -> float:
        """Multiply-adds of one example."""
        return sum(self.groups(model).multiply_adds.values())

    def removed(self, target: Any) -> float:
        """The share of the multiply-adds that a target does without."""
        few, total = (self.cost(self.model(sizes)) for sizes in (target, self.whole))
        return 1 - few / total

    @property
    def ramp(self) -> int:
        """The steps until the last unit that is to go is gone."""
        return round(_RAMP * self.epochs * self.steps)

    def cosine(
        self, epochs: int, *, constant: int = 0, factor: float = 1
    ) -> optax.Schedule:
        """The study's rate in the first steps, then a cosine to 0 after all epochs."""
        rate = factor * self.rate
        falling = optax.cosine_decay_schedule(rate, epochs * self.steps - constant)
        return optax.join_schedules(
            [optax.constant_schedule(rate), falling], [constant]
        )


def small(study: Study, target: Any, *, ramp: int = 0) -> Any:
    """Trained small from the start, at a constant rate in the first steps."""
    tx = optax.adam(study.cosine(study.epochs, constant=ramp))
    return study.fit(study.model(target), tx, range(study.epochs))[0]


def small_held(study: Study, target: Any) -> Any:
    """Trained small with the rates that nets have which lose their units on a ramp."""
    return small(study, target, ramp=study.ramp)


def plain(study: Study, _: Any) -> Any:
    """All units, all the time."""
    return small(study, study.whole)


def magnitude(study: Study, target: Any) -> Any:
    """Trained large, the units of smallest path norm killed, fine-tuned."""
    epochs, first = study.epochs, math.ceil(0.6 * study.epochs)
    model = study.model(study.whole)
    groups = study.groups(model)
    tx = optax.adam(study.cosine(first))
    model, _ = study.fit(model, tx, range(first))
    for group, count in study.counts(groups, target):
        model = volax.kill(model, [group], 1 - count / group.sizes[-1])
    model = volax.compact(model, groups).params
    tx = optax.adam(study.cosine(epochs - first, factor=0.5))
    return study.fit(model, tx, range(first, epochs))[0]


def _ramped(study: Study, make: Callable[..., Any]) -> Any:
    """With rules on a ramp at a constant rate, then what is left on a cosine to zero.

    `make` gives the rules for the rate, the groups and the steps of the ramp.
    """
    epochs, ramp = study.epochs, study.ramp
    first = math.floor(_RAMP * epochs) + 1
    model = study.model(study.whole)
    groups, rate = study.groups(model), study.cosine(epochs, constant=ramp)
    adam = optax.adam(rate)
    tx = optax.chain(adam, *make(rate, groups, ramp))
    model, (moments, *_) = study.fit(model, tx, range(first))
    small = volax.compact(model, groups, opt_state=moments)
    return study.fit(small.params, adam, range(first, epochs), small.opt_state)[0]


def keep_units(study: Study, target: Any) -> Any:
    """The units of largest path norm, fewer and fewer."""
    every = max(study.steps // _SELECTIONS, 1)

    def rules(_, groups, ramp):
        return [
            volax.keep_units(
                volax.cubic_ramp(1.0, count / group.sizes[-1], 0, ramp),
                [group],
                every=every,
            )
            for group, count in study.counts(groups, target)
        ]

    return _ramped(study, rules)


def keep_units_of_all(study: Study, target: Any) -> Any:
    """The same among the units of all layers, to the multiply-adds of the target."""
    every = max(study.steps // _SELECTIONS, 1)

    def rules(_, groups, ramp):
        share = volax.cubic_ramp(1.0, 1 - study.removed(target), 0, ramp)
        return [volax.keep_units(share, groups, scope="global", every=every)]

    return _ramped(study, rules)


def shrunk(
    make: Callable[..., optax.GradientTransformation],
) -> Callable[[Study, Any], Any]:
    """A regularizer whose strength follows the multiply-adds of the target."""

    def train(study: Study, target: Any) -> Any:
        def rules(rate, groups, ramp):
            rule = volax.tune_strength(
                lambda strength: make(rate, strength, groups),
                study.removed(target),
                measure="multiply_adds",
                groups=groups,
                steps=ramp,
            )
            return [rule]

        return _ramped(study, rules)

    return train


def path_rule(p: float) -> Callable[..., optax.GradientTransformation]:
    """`path_prox` with this exponent, for `shrunk`."""
    return lambda rate, strength, groups: volax.path_prox(
        rate, strength, groups.pairs, p=p, freeze_dead=True
    )


def group_rule(rate: Any, strength: Any, groups: Any) -> optax.GradientTransformation:
    """`group_prox` with exponent 1/2, for `shrunk`."""
    return volax.group_prox(rate, strength, groups, over="all", p=0.5)


def lp_rule(rate: Any, strength: Any, _: Any) -> optax.GradientTransformation:
    """`lp_decay` with exponent 1/2, for `shrunk`."""
    return volax.lp_decay(rate, strength, 0.5, snap_below=1e-4)
