"""The image sets: digits, MNIST, Fashion-MNIST and CIFAR-10."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from volax.examples._errors import UserError
from volax.examples.data import cifar, idx
from volax.examples.data.splits import CLASSES, Dataset, Loaded, hold_out, scaled

_FOLDERS = {
    "mnist": ("mnist",),
    "fashion_mnist": ("fashion-mnist",),
    "cifar10": ("cifar-10", "cifar-10-batches-bin"),
}
_OPENML = {
    "mnist": "mnist_784",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR_10",
}
_TEST = 10_000  # the last ones of what openml.org sends
_TEST_SHARE = 0.2


def digits(data_dir: str) -> Loaded:
    """The 1,797 digits of scikit-learn, a fifth of each class for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = scaled(images, 16), labels.astype(np.int32)
    data = hold_out(Dataset(images, labels, images[:0], labels[:0]), _TEST_SHARE)
    return Loaded(data, CLASSES, picture=(8, 8, 1))


def mnist(data_dir: str) -> Loaded:
    """Handwritten digits, 28 x 28 pixels."""
    return _grey("mnist", data_dir)


def fashion_mnist(data_dir: str) -> Loaded:
    """Garments, 28 x 28 pixels."""
    return _grey("fashion_mnist", data_dir)


def cifar10(data_dir: str) -> Loaded:
    """Photographs, 32 x 32 pixels in colour, as bytes."""
    found = _in_folders("cifar10", data_dir, cifar.from_folder)
    if found is None:
        rows, labels = _fetched("cifar10", data_dir, (60_000, 3072), "binary batches")
        found = _published(cifar.pictures(rows), labels), ""
    data, note = found
    return Loaded(data, CLASSES, picture=cifar.SHAPE, note=note)


def _grey(name: str, data_dir: str) -> Loaded:
    data = _in_folders(name, data_dir, idx.from_folder)
    if data is None:
        rows, labels = _fetched(name, data_dir, (70_000, 784), "four IDX files")
        data = _published(scaled(rows, 255), labels)
    return Loaded(data, CLASSES, picture=(28, 28, 1))


def _in_folders(name: str, data_dir: str, read: Callable[[Path], Any]) -> Any:
    """What the first folder with files holds, or None."""
    folders = (*(Path(data_dir, own) for own in _FOLDERS[name]), Path(data_dir))
    found = map(read, folders if data_dir else ())
    return next((data for data in found if data is not None), None)


def _published(images: np.ndarray, labels: np.ndarray) -> Dataset:
    return Dataset(images[:-_TEST], labels[:-_TEST], images[-_TEST:], labels[-_TEST:])


def _fetched(
    name: str, data_dir: str, shape: tuple[int, int], files: str
) -> tuple[np.ndarray, np.ndarray]:
    """Images of the given shape and labels from openml.org."""
    from sklearn import datasets

    try:
        images, labels = datasets.fetch_openml(
            _OPENML[name],
            version=1,
            as_frame=False,
            parser="liac-arff",  # needs no pandas
            return_X_y=True,
        )
    # Besides OSError for the connection, a refused or broken download is a ValueError.
    except (OSError, ValueError) as error:
        where = f"no {files} in {data_dir!r}" if data_dir else "no data_dir is set"
        raise UserError(
            f"{name}: {where} and openml.org cannot be used ({error}); put the "
            f"{files} into a folder and name it by --config.data_dir or VOLAX_DATA_DIR"
        ) from error
    if images.shape != shape:
        raise UserError(f"{name}: openml.org sent images of shape {images.shape}")
    return images, labels.astype(np.int32)
