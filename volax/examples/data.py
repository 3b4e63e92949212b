"""Digits, MNIST and Fashion-MNIST as arrays in memory.

Digits come inside scikit-learn. The other two are read from the published IDX
files, compressed or not, in `data_dir` or its subfolder `mnist` or `fashion-mnist`;
without files they are fetched from openml.org.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from volax.examples._errors import UserError

CLASSES = 10
_DIGITS_TEST_SHARE = 0.2
_SPLIT_SEED = 0
_FOLDERS = {"mnist": "mnist", "fashion_mnist": "fashion-mnist"}
_OPENML = {"mnist": "mnist_784", "fashion_mnist": "Fashion-MNIST"}
_OPENML_TRAIN = 60_000
_IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UNSIGNED_BYTE = 8


class Dataset(NamedTuple):
    """Images as float32 rows in [0, 1], labels as int32 in [0, 10)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


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
        data = _digits()
    elif name in _FOLDERS:
        data = _from_idx(name, data_dir) or _from_openml(name, data_dir)
    else:
        known = ", ".join(["digits", *_FOLDERS])
        raise UserError(f"unknown dataset {name!r}; there are {known}")
    if validation:
        data = _hold_out(data.train_images, data.train_labels, validation)
    if per_class:
        data = _subset(data, per_class, np.random.default_rng([seed, 0]))
    if label_noise:
        data = _with_noise(data, label_noise, np.random.default_rng([seed, 1]))
    return data


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzip-compressed if it ends in `.gz`.

    Args:
      path: the file.
      ndim: the number of dimensions that it must have.

    Returns:
      The array, uint8.

    Raises:
      UserError: naming the file, unless its magic number, dimensions and length in
        bytes are all right.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or cannot be read: {error}") from error
    start = 4 + 4 * ndim
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if len(content) < start or content[:4] != magic:
        raise UserError(
            f"{path} is not an IDX file of bytes in {ndim} dimensions: it begins "
            f"with {content[:4].hex()!r}, expected {magic.hex()!r} and the sizes"
        )
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{path} is damaged: its header promises {math.prod(shape):,} bytes for "
            f"shape {shape}, and {len(content) - start:,} are there"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _digits() -> Dataset:
    """The 1,797 digits of scikit-learn, a fifth of each class for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _hold_out(_scaled(images, 16), labels.astype(np.int32), _DIGITS_TEST_SHARE)


def _from_idx(name: str, data_dir: str) -> Dataset | None:
    """The four files in `data_dir`; None where not one of them is there."""
    if not data_dir:
        return None
    for folder in (Path(data_dir, _FOLDERS[name]), Path(data_dir)):
        paths = [_existing(folder, stem) for stem in _IDX_NAMES]
        if not any(paths):
            continue
        for path, stem in zip(paths, _IDX_NAMES):
            if path is None:
                raise UserError(f"{folder} has neither {stem}.gz nor {stem}")
        found = [path for path in paths if path is not None]
        train = _read_split(*found[:2])
        test = _read_split(*found[2:])
        return Dataset(*train, *test)
    return None


def _existing(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}.gz", folder / stem)
    return next((path for path in paths if path.is_file()), None)


def _read_split(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{images_path} has images of {images.shape[1:]}, not (28, 28)")
    if not len(labels):
        raise UserError(f"{labels_path} has no labels")
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} has {len(images):,} images and {labels_path} "
            f"{len(labels):,} labels"
        )
    if labels.max() >= CLASSES:
        raise UserError(f"{labels_path} has label {labels.max()}, expected 0 to 9")
    return _scaled(images.reshape(len(images), -1), 255), labels.astype(np.int32)


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
    images, labels = _scaled(images, 255), labels.astype(np.int32)
    if images.shape != (70_000, 784):
        raise UserError(f"{name}: openml.org sent images of shape {images.shape}")
    cut = _OPENML_TRAIN
    return Dataset(images[:cut], labels[:cut], images[cut:], labels[cut:])


def _scaled(images: np.ndarray, largest: int) -> np.ndarray:
    return images.astype(np.float32) / np.float32(largest)


def _hold_out(images: np.ndarray, labels: np.ndarray, share: float) -> Dataset:
    """Move a share of each class to the test side, always the same images."""
    rng = np.random.default_rng(_SPLIT_SEED)
    counts = np.bincount(labels, minlength=CLASSES)
    test = _drawn(labels, np.rint(share * counts).astype(int), rng)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Dataset(images[train], labels[train], images[test], labels[test])


def _subset(data: Dataset, per_class: int, rng: np.random.Generator) -> Dataset:
    counts = np.bincount(data.train_labels, minlength=CLASSES)
    if counts.min() < per_class:
        raise UserError(
            f"per_class is {per_class}, but class {counts.argmin()} has only "
            f"{counts.min():,} training images"
        )
    keep = _drawn(data.train_labels, np.full(CLASSES, per_class), rng)
    return data._replace(
        train_images=data.train_images[keep], train_labels=data.train_labels[keep]
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


def _with_noise(data: Dataset, share: float, rng: np.random.Generator) -> Dataset:
    labels = data.train_labels.copy()
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    shift = rng.integers(1, CLASSES, size=len(wrong), dtype=np.int32)
    labels[wrong] = (labels[wrong] + shift) % CLASSES
    return data._replace(train_labels=labels)
