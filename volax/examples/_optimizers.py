"""The optimizers of the example: a plain one, and the same one with a regularizer."""

from collections.abc import Mapping
from typing import Any, TypeVar

import optax

import volax
from volax.examples._errors import UserError
from volax.examples.models import MLP

_Choice = TypeVar("_Choice")


def build_optimizers(
    config: Any, steps: int, model: MLP
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Build the plain optimizer and the same one with the regularizer.

    Args:
      config: names both, and holds each regularizer's arguments under its name.
      steps: how many steps the learning rate's schedule lasts.
      model: tells the pairs of weights around its hidden units.

    Raises:
      UserError: for an unknown name or an argument that the library refuses.
    """
    settings = config.optimizer
    schedules = {
        "constant": optax.constant_schedule(settings.learning_rate),
        "cosine": optax.cosine_decay_schedule(settings.learning_rate, steps),
    }
    rate = _known("optimizer.schedule", settings.schedule, schedules)
    optimizers = {"adam": optax.adam(rate), "sgd": optax.sgd(rate, settings.momentum)}
    plain = _known("optimizer.name", settings.name, optimizers)

    regularizers = {
        "adamw": lambda **options: optax.adamw(rate, **options),
        "volumize": lambda **options: volax.volumized(plain, **options),
        "lp_decay": lambda **options: optax.chain(
            plain, volax.lp_decay(rate, **options)
        ),
        "path_prox": lambda **options: optax.chain(
            plain, volax.path_prox(rate, pairs=model.pairs(), **options)
        ),
        "keep_units": lambda share, ramp, **options: optax.chain(
            plain,
            volax.keep_units(
                volax.cubic_ramp(1.0, share, 0, max(round(ramp * steps), 1)),
                model.pairs(),
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
        return plain, regularize(**config[config.regularizer])
    except (TypeError, ValueError) as error:
        said = str(error).removeprefix(f"{config.regularizer}: ")
        raise UserError(f"{config.regularizer}: {said}") from error


def _known(key: str, name: str, choices: Mapping[str, _Choice]) -> _Choice:
    if name not in choices:
        raise UserError(f"{key} is {name!r}; there are {', '.join(choices)}")
    return choices[name]
