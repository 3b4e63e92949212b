"""The binary batches in which CIFAR-10 is published, whole or in part."""

import lzma
import re
from pathlib import Path

import numpy as np

from volax.examples._errors import UserError
from volax.examples.data.splits import CLASSES, Dataset

SHAPE = (32, 32, 3)
_BATCH = 10_000
_TRAIN_BATCHES = 5
_RECORD = 1 + 32 * 32 * 3  # label, then the red, green and blue planes
# A count behind the name says that the batch has so many images and not 10,000.
_NAME = re.compile(r"(data_batch_[1-5]|test_batch)(?:_(\d+))?\.bin(?:\.xz)?")


def from_folder(folder: Path) -> tuple[Dataset, str] | None:
    """Read the batches of a folder.

    Args:
      folder: where `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin` are,
        each with or without `.xz`. Some of the training batches are enough, and a batch
        with fewer images says how many by its name, as `test_batch_9980.bin.xz` does.

    Returns:
      The images uint8 [n, 32, 32, 3] with their labels, and a note on what is missing,
      or None where not one batch is there.

    Raises:
      UserError: for a batch that is damaged or there twice, or a side without any.
    """
    found: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob("*_batch*")):
        if not (match := _NAME.fullmatch(path.name)) or not path.is_file():
            continue
        batch, count = match.groups()
        if batch in found:
            raise UserError(f"{found[batch][0]} and {path} are the same batch")
        found[batch] = path, int(count or _BATCH)
    if not found:
        return None
    test = [batch for batch in found if batch == "test_batch"]
    train = [batch for batch in found if batch != "test_batch"]
    for name, side in (("data_batch_1.bin", train), ("test_batch.bin", test)):
        if not side:
            raise UserError(f"{folder} has neither {name}.xz nor {name}")
    sides = [[_read_batch(*found[batch]) for batch in side] for side in (train, test)]
    parts = [tuple(map(np.concatenate, zip(*side))) for side in sides]
    return Dataset(*parts[0], *parts[1]), _missing(len(parts[0][0]), len(parts[1][0]))


def pictures(rows: np.ndarray) -> np.ndarray:
    """From the planes of each colour [n, 3072] to [n, 32, 32, 3]."""
    planes = rows.reshape(-1, 3, *SHAPE[:2])
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1), np.uint8)


def _read_batch(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 32, 32, 3] and labels [count]."""
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged or cannot be read: {error}") from error
    if len(content) != count * _RECORD or not count:
        raise UserError(
            f"{path} is damaged or of another format: {count:,} images take "
            f"{count * _RECORD:,} bytes, and {len(content):,} are there"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, _RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= CLASSES:
        raise UserError(f"{path} has label {labels.max()}, expected 0 to 9")
    return pictures(records[:, 1:]), labels


def _missing(train: int, test: int) -> str:
    sides = (
        (train, _TRAIN_BATCHES * _BATCH, "training"),
        (test, _BATCH, "test"),
    )
    return ", ".join(
        f"{there:,} of {whole:,} {side} images"
        for there, whole, side in sides
        if there != whole
    )
