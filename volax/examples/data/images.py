"""The image sets: the digits of scikit-learn, MNIST and Fashion-MNIST."""

from pathlib import Path

import numpy as np

from volax.examples._errors import UserError
from volax.examples.data.idx import from_folder
from volax.examples.data.splits import Dataset, hold_out, scaled

FOLDERS = {"mnist": "mnist", "fashion_mnist": "fashion-mnist"}
_OPENML = {"mnist": "mnist_784", "fashion_mnist": "Fashion-MNIST"}
_PUBLISHED_TRAIN = 60_000
_TEST_SHARE = 0.2


def digits() -> Dataset:
    """The 1,797 digits of scikit-learn, a fifth of each class for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return hold_out(scaled(images, 16), labels.astype(np.int32), _TEST_SHARE)


def published(name: str, data_dir: str) -> Dataset:
    """MNIST or Fashion-MNIST, from files where there are some, else from openml.org."""
    folders = (Path(data_dir, FOLDERS[name]), Path(data_dir)) if data_dir else ()
    found = (from_folder(folder) for folder in folders)
    return next((data for data in found if data), None) or _from_openml(name, data_dir)


def _from_openml(name: str, data_dir: str) -> Dataset:
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
        where = f"no IDX files in {data_dir!r}" if data_dir else "no data_dir is set"
        raise UserError(
            f"{name}: {where} and openml.org cannot be used ({error}); put the four "
            "IDX files into a folder and name it by --config.data_dir or VOLAX_DATA_DIR"
        ) from error
    images, labels = scaled(images, 255), labels.astype(np.int32)
    if images.shape != (70_000, 784):
        raise UserError(f"{name}: openml.org sent images of shape {images.shape}")
    cut = _PUBLISHED_TRAIN
    return Dataset(images[:cut], labels[:cut], images[cut:], labels[cut:])
