"""Which examples are trained on and which are tested, as NumPy draws them."""

from typing import NamedTuple

import numpy as np

from volax.examples._errors import UserError

CLASSES = 10
_SPLIT_SEED = 0


class Dataset(NamedTuple):
    """Images as float32 rows in [0, 1], labels as int32 in [0, 10)."""

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray


def hold_out(inputs: np.ndarray, labels: np.ndarray, share: float) -> Dataset:
    """Move a share of each class to the test side, always the same images."""
    rng = np.random.default_rng(_SPLIT_SEED)
    counts = np.bincount(labels, minlength=CLASSES)
    test = _drawn(labels, np.rint(share * counts).astype(int), rng)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Dataset(inputs[train], labels[train], inputs[test], labels[test])


def subset(data: Dataset, per_class: int, rng: np.random.Generator) -> Dataset:
    """Keep so many training examples of each class."""
    counts = np.bincount(data.train_labels, minlength=CLASSES)
    if counts.min() < per_class:
        raise UserError(
            f"per_class is {per_class}, but class {counts.argmin()} has only "
            f"{counts.min():,} training images"
        )
    keep = _drawn(data.train_labels, np.full(CLASSES, per_class), rng)
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


def with_noise(data: Dataset, share: float, rng: np.random.Generator) -> Dataset:
    """Give a share of the training labels another class, drawn uniformly."""
    labels = data.train_labels.copy()
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    shift = rng.integers(1, CLASSES, size=len(wrong), dtype=np.int32)
    labels[wrong] = (labels[wrong] + shift) % CLASSES
    return data._replace(train_labels=labels)


def scaled(images: np.ndarray, largest: int) -> np.ndarray:
    """Bytes as float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(largest)
