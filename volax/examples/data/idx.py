"""The IDX files in which MNIST and Fashion-MNIST are published."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from volax.examples._errors import UserError
from volax.examples.data.splits import CLASSES, Dataset, scaled

_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UNSIGNED_BYTE = 8


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


def from_folder(folder: Path) -> Dataset | None:
    """Read the four files of a folder.

    Args:
      folder: where they are, compressed or not.

    Returns:
      The images and labels, or None where not one of the files is there.

    Raises:
      UserError: for a file that is missing beside others, or damaged.
    """
    paths = [_existing(folder, stem) for stem in _NAMES]
    if not any(paths):
        return None
    for path, stem in zip(paths, _NAMES):
        if path is None:
            raise UserError(f"{folder} has neither {stem}.gz nor {stem}")
    found = [path for path in paths if path is not None]
    return Dataset(*_read_split(*found[:2]), *_read_split(*found[2:]))


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
    return scaled(images.reshape(len(images), -1), 255), labels.astype(np.int32)
