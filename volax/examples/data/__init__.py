"""Digits, MNIST and Fashion-MNIST as arrays in memory.

Digits come inside scikit-learn. The other two are read from the published IDX
files, compressed or not, in `data_dir` or its subfolder `mnist` or `fashion-mnist`;
without files they are fetched from openml.org.
"""

import numpy as np

from volax.examples._errors import UserError
from volax.examples.data import images, splits
from volax.examples.data.splits import CLASSES as CLASSES
from volax.examples.data.splits import Dataset as Dataset


def load_dataset(
    name: str,
    data_dir: str = "",
    *,
    validation: float = 0.0,
    per_class: int = 0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Load a data set, complete and checked, or raise.

    Args:
      name: `digits`, `mnist` or `fashion_mnist`.
      data_dir: where the IDX files are; empty to fetch them. Digits ignore it.
      validation: share of the training images, class by class, that takes the place
        of the test images. For tuning; the split never changes.
      per_class: keep this many training images of each class; 0 keeps all.
      label_noise: share of the training labels replaced by another class, drawn
        uniformly, so that exactly this share is wrong.
      seed: draws the subset and the noise.

    Returns:
      The images and labels. Test labels are never noisy.

    Raises:
      UserError: for an option out of range, a missing or damaged file, or a data
        set that can neither be found nor fetched.
    """
    if not 0 <= validation < 1:
        raise UserError(f"validation is a share in [0, 1), not {validation}")
    if not 0 <= label_noise <= 1:
        raise UserError(f"label_noise is a share in [0, 1], not {label_noise}")
    if per_class < 0:
        raise UserError(f"per_class is a count, 0 for all images, not {per_class}")
    if name == "digits":
        data = images.digits()
    elif name in images.FOLDERS:
        data = images.published(name, data_dir)
    else:
        known = ", ".join(["digits", *images.FOLDERS])
        raise UserError(f"unknown dataset {name!r}; there are {known}")
    if validation:
        data = splits.hold_out(data.train_inputs, data.train_labels, validation)
    if per_class:
        data = splits.subset(data, per_class, np.random.default_rng([seed, 0]))
    if label_noise:
        data = splits.with_noise(data, label_noise, np.random.default_rng([seed, 1]))
    return data
