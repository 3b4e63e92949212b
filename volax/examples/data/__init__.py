"""Images and text as arrays in memory.

Digits come inside scikit-learn, the others are read from the files in which they are
published, in `data_dir` or a subfolder of it. Without files, images are fetched from
openml.org, and for text a small embedded set takes the place, which the note says.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from volax.examples._errors import UserError
from volax.examples.data import images, splits, text
from volax.examples.data.splits import CLASSES as CLASSES
from volax.examples.data.splits import Dataset as Dataset
from volax.examples.data.splits import Loaded as Loaded

_WINDOW = 64  # characters
_IMAGES: dict[str, Callable[[str], Loaded]] = {
    "digits": images.digits,
    "mnist": images.mnist,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
}
IMAGES = tuple(_IMAGES)
NAMES = (*IMAGES, "shakespeare", "rt_polarity")


def load(
    name: str,
    data_dir: str = "",
    *,
    validation: float = 0.0,
    per_class: int = 0,
    label_noise: float = 0.0,
    length: int = 0,
    seed: int = 0,
) -> Loaded:
    """Load a data set, complete and checked, or raise.

    Args:
      name: one of `NAMES`.
      data_dir: where the files are; empty to fetch images and to take embedded text.
        Digits ignore it.
      validation: share of the training examples, class by class, that takes the place
        of the test examples. For tuning; the split never changes.
      per_class: keep this many training examples of each class; 0 keeps all.
      label_noise: share of the training labels replaced by another class, drawn
        uniformly, so that exactly this share is wrong.
      length: characters of a window (0: 64), or words of a sentence (0: as many as the
        longest one has). Images ignore it.
      seed: draws the subset and the noise.

    Returns:
      The examples, and what a model for them has to know. Test labels are never noisy.

    Raises:
      UserError: for an option out of range, a missing or damaged file, or a data
        set that can neither be found nor fetched.
    """
    if not 0 <= validation < 1:
        raise UserError(f"validation is a share in [0, 1), not {validation}")
    if not 0 <= label_noise <= 1:
        raise UserError(f"label_noise is a share in [0, 1], not {label_noise}")
    if per_class < 0:
        raise UserError(f"per_class is a count, 0 for all, not {per_class}")
    if length < 0:
        raise UserError(f"length is a count, 0 for the default, not {length}")
    if name in _IMAGES:
        loaded = _IMAGES[name](data_dir)
    elif name == "shakespeare":
        if per_class or label_noise:
            raise UserError("per_class and label_noise need one label an example")
        loaded = text.shakespeare(data_dir, length or _WINDOW)
    elif name == "rt_polarity":
        loaded = text.rt_polarity(data_dir)
    else:
        raise UserError(f"unknown dataset {name!r}; there are {', '.join(NAMES)}")
    data, classes = loaded.dataset, loaded.classes
    if validation:
        data = splits.hold_out(data, validation)
    if per_class:
        rng = np.random.default_rng([seed, 0])
        data = splits.subset(data, classes, per_class, rng)
    if label_noise:
        rng = np.random.default_rng([seed, 1])
        data = splits.with_noise(data, classes, label_noise, rng)
    loaded = loaded._replace(dataset=data)
    # Last, so that the vocabulary knows no word that is held out.
    return text.tokenized(loaded, length) if name == "rt_polarity" else loaded


def load_dataset(name: str, data_dir: str = "", **options: Any) -> Dataset:
    """The arrays alone of what :func:`load` returns for the same arguments."""
    return load(name, data_dir, **options).dataset
