"""Which examples are trained on and which are tested, as NumPy draws them."""

from typing import NamedTuple

import numpy as np

from volax.examples._errors import UserError

CLASSES = 10  # of every image set here
_SPLIT_SEED = 0


class Dataset(NamedTuple):
    """Two sides of examples in memory.

    Attributes:
      train_inputs: images as float32 rows [n, pixels] in [0, 1] or as uint8
        [n, height, width, colours], or text as int32 [n, length].
      train_labels: int32 [n], or [n, length] with a label for each character.
      test_inputs: as those to train on.
      test_labels: as those to train on.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray


class Loaded(NamedTuple):
    """A data set and what a model for it has to know.

    Attributes:
      dataset: the arrays.
      classes: labels are smaller than this.
      picture: (height, width, colours) of an image, which may lie in a row; empty for
        text.
      vocabulary: characters, or words, by their number; empty for images.
      note: what the reader of a result has to know of the data, or empty.
    """

    dataset: Dataset
    classes: int
    picture: tuple[int, ...] = ()
    vocabulary: tuple[str, ...] = ()
    note: str = ""


def hold_out(data: Dataset, share: float) -> Dataset:
    """Let a share of the training side take the place of the test side.

    It is the same share in every class, and always the same examples. Where every
    character has a label, it is the end of the text.
    """
    inputs, labels = data.train_inputs, data.train_labels
    if labels.ndim > 1:
        test = np.arange(len(labels) - round(share * len(labels)), len(labels))
    else:
        rng = np.random.default_rng(_SPLIT_SEED)
        test = _drawn(labels, np.rint(share * np.bincount(labels)).astype(int), rng)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Dataset(inputs[train], labels[train], inputs[test], labels[test])


def subset(
    data: Dataset, classes: int, per_class: int, rng: np.random.Generator
) -> Dataset:
    """Keep so many training examples of each class."""
    counts = np.bincount(data.train_labels, minlength=classes)
    if counts.min() < per_class:
        raise UserError(
            f"per_class is {per_class}, but class {counts.argmin()} has only "
            f"{counts.min():,} training examples"
        )
    keep = _drawn(data.train_labels, np.full(classes, per_class), rng)
    return data._replace(
        train_inputs=data.train_inputs[keep], train_labels=data.train_labels[keep]
    )


def _drawn(
    labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Sorted indices of `counts[c]` random examples of each class `c`."""
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(drawn))


def with_noise(
    data: Dataset, classes: int, share: float, rng: np.random.Generator
) -> Dataset:
    """Give a share of the training labels another class, drawn uniformly."""
    labels = data.train_labels.copy()
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    shift = rng.integers(1, classes, size=len(wrong), dtype=np.int32)
    labels[wrong] = (labels[wrong] + shift) % classes
    return data._replace(train_labels=labels)


def scaled(images: np.ndarray, largest: int) -> np.ndarray:
    """Numbers up to `largest` as float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(largest)
