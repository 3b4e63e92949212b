"""Arrays and a text in one safetensors file, written as a whole or not at all.

The safetensors library writes and reads the format. The text and a checksum of
everything stand in the metadata of the file's header.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from volax._types import Library

_FORMAT = "volax 3"


def _library(what: str) -> Library:
    """The safetensors library; ``what`` names the caller."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{what} needs safetensors: pip install 'volax-optax[compress]'"
        ) from error
    return safetensors


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """A file that takes the place of ``path`` once it is complete and on the disk."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner may read
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(path: Path, arrays: Mapping[str, np.ndarray], text: str) -> int:
    """Writes arrays by name and a text to one file, and returns its size in bytes."""
    safetensors = _library("save")
    checksum = _Checksum(text)
    for name, array in arrays.items():
        checksum.add(name, array)
    metadata = {"format": _FORMAT, "volax": text, "sha256": checksum.digest()}
    with _writing(path) as partial:
        try:
            safetensors.numpy.save_file(dict(arrays), partial, metadata=metadata)
        except safetensors.SafetensorError as error:
            raise OSError(f"save: {path} cannot be written: {error}") from error
        return partial.stat().st_size


class _Checksum:
    """SHA-256 of a text, and of the names, dtypes, shapes and bytes of arrays."""

    def __init__(self, text: str):
        self._sha256 = hashlib.sha256(json.dumps(text).encode())

    def add(self, name: str, array: np.ndarray) -> None:
        """Takes one more array in; its shape and dtype tell where its bytes end."""
        head = json.dumps([name, array.dtype.name, array.shape])
        self._sha256.update(head.encode())
        self._sha256.update(array.reshape(-1).view(np.uint8).data)

    def digest(self) -> str:
        """The checksum of everything so far, in hexadecimal digits."""
        return self._sha256.hexdigest()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[tuple[str, Callable[[str], np.ndarray]]]:
    """The text of a file, and what reads one array by its name; checked on leaving.

    No array is kept here, so that one at a time is in memory beside what is made of
    it. The checksum takes the arrays in the order in which they are read, so they have
    to be read in the order in which they were written, each once.
    """
    safetensors = _library("load")
    with open(path, "rb"):  # what cannot be read at all is an OSError with its name
        pass
    try:
        # The pages of a memory map count as this process's memory while it is open.
        with safetensors.safe_open(path, framework="np", backend="pread") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(
                    f"load: {path} was not written by this volax.save: expected the "
                    f"format {_FORMAT!r}, got {metadata.get('format')!r}"
                )
            unread, text = set(file.keys()), metadata.get("volax", "")
            checksum = _Checksum(text)

            def read(name: str) -> np.ndarray:
                unread.remove(name)
                array = file.get_tensor(name)
                checksum.add(name, array)
                return array

            yield text, read
    except (safetensors.SafetensorError, AttributeError) as error:
        raise ValueError(
            f"load: {path} is truncated, altered, or no safetensors file: {error}"
        ) from error
    if unread or checksum.digest() != metadata.get("sha256"):
        raise ValueError(f"load: {path} was altered: its checksum does not match")
