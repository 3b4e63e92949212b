"""The optimizers of the example: a plain one, and the same one with a regularizer."""

from collections.abc import Mapping
from typing import Any, TypeVar

import optax

import volax
from volax.examples._errors import UserError

_Choice = TypeVar("_Choice")


def build_optimizers(
    config: Any, steps: int, groups: volax.pairs.Groups
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Build the plain optimizer and the same one with the regularizer.

    Gradients of several batches are gathered around the whole of either, so that the
    regularizer acts where the weights move, and as often as the learning rate says.

    Args:
      config: names both, and holds each regularizer's arguments under its name.
      steps: how many batches there are in all.
      groups: the units of the model.

    Raises:
      UserError: for an unknown name or an argument that the library refuses.
    """
    settings = config.optimizer
    steps = max(steps // settings.accumulate, 1)
    rate = _rate(settings, steps)
    optimizers = {"adam": optax.adam(rate), "sgd": optax.sgd(rate, settings.momentum)}
    plain = _known("optimizer.name", settings.name, optimizers)

    regularizers = {
        "adamw": lambda **options: optax.adamw(rate, **options),
        "volumize": lambda **options: volax.volumized(plain, **options),
        "lp_decay": lambda **options: optax.chain(
            plain, volax.lp_decay(rate, **options)
        ),
        "path_prox": lambda **options: optax.chain(
            plain, volax.path_prox(rate, pairs=groups.pairs, **options)
        ),
        "group_prox": lambda **options: optax.chain(
            plain, volax.group_prox(rate, groups=groups, **options)
        ),
        "keep_units": lambda share, ramp, **options: optax.chain(
            plain,
            volax.keep_units(
                volax.cubic_ramp(1.0, share, 0, max(round(ramp * steps), 1)),
                groups,
                **options,
            ),
        ),
    }
    regularize = _known("regularizer", config.regularizer, regularizers)
    if config.regularizer == "adamw" and settings.name != "adam":
        raise UserError(
            "regularizer 'adamw' stands on Adam: optimizer.name must be 'adam', "
            f"not {settings.name!r}"
        )
    try:
        regularized = regularize(**config[config.regularizer])
    except (TypeError, ValueError) as error:
        said = str(error).removeprefix(f"{config.regularizer}: ")
        raise UserError(f"{config.regularizer}: {said}") from error
    return _fed(settings, plain), _fed(settings, regularized)


def _rate(settings: Any, steps: int) -> optax.Schedule:
    """The learning rate of each update of the weights."""
    peak, warm = settings.learning_rate, round(settings.warmup * steps)
    schedules = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, max(steps - warm, 1)),
    }
    rate = _known("optimizer.schedule", settings.schedule, schedules)
    if not warm:
        return rate
    # One step after 0 first, for an update of nothing would be a step in vain.
    rising = optax.linear_schedule(peak / (warm + 1), peak, warm)
    return optax.join_schedules([rising, rate], [warm])


def _fed(
    settings: Any, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optimizer that gets clipped gradients, of several batches at once."""
    if settings.clip:
        tx = optax.chain(optax.clip_by_global_norm(settings.clip), tx)
    if settings.accumulate > 1:
        tx = optax.MultiSteps(tx, settings.accumulate).gradient_transformation()
    return tx


def _known(key: str, name: str, choices: Mapping[str, _Choice]) -> _Choice:
    if name not in choices:
        raise UserError(f"{key} is {name!r}; there are {', '.join(choices)}")
    return choices[name]
