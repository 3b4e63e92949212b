"""What a config asks for: checked numbers, the network, changes of the images."""

from typing import Any

import jax
from flax import nnx

from volax.examples._errors import UserError
from volax.examples.data import Loaded, augment
from volax.examples.loop import Augment
from volax.examples.models import build


def check(config: Any) -> None:
    """Refuse numbers that make no training.

    Raises:
      UserError: naming the setting.
    """
    counts = {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "test_batch": config.test_batch,
        "optimizer.accumulate": config.optimizer.accumulate,
    }
    for key, value in counts.items():
        if value < 1:
            raise UserError(f"{key} must be 1 or more, not {value}")
    shares = {"average": config.average, "optimizer.warmup": config.optimizer.warmup}
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"{key} is a share in [0, 1), not {value}")
    if not config.optimizer.clip >= 0:
        raise UserError(
            f"optimizer.clip is a norm, 0 for none, not {config.optimizer.clip}"
        )


def network(config: Any, loaded: Loaded, dtype: str) -> Any:
    """The network of the config for this data, in evaluation mode.

    Args:
      config: names it, and holds each one's sizes under its name.
      loaded: the data set.
      dtype: of the computation.

    Raises:
      UserError: for sizes or a dtype that cannot be used.
    """
    settings = config.model
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(
            f"model.dtype is {dtype!r}; there are float32, bfloat16, float16"
        )
    sizes = dict(settings.get(settings.name, {}))
    for key, widths in sizes.items():
        if isinstance(widths, tuple | list) and min(widths, default=1) < 1:
            name = f"model.{settings.name}.{key}"
            raise UserError(f"{name} must be widths of 1 or more, not {widths}")
    own = None if dtype == "float32" else dtype
    rngs = nnx.Rngs(config.seed)
    model = build(settings.name, loaded, dtype=own, rngs=rngs, **sizes)
    model.eval()
    return model


def augmentation(config: Any, loaded: Loaded) -> Augment | None:
    """Flip and crop, as a function of a key and a batch; None where not asked for.

    Raises:
      UserError: for data that are no pictures.
    """
    if not config.augment:
        return None
    picture = loaded.picture
    if not picture:
        raise UserError(f"augment is for images, and {config.dataset} has none")

    def change(key: jax.Array, inputs: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        images = inputs.reshape(-1, *picture)  # they may lie in rows
        images = augment.crop(second, augment.flip(first, images))
        return images.reshape(inputs.shape)

    return change
