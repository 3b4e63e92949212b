"""The rows of metrics as scalars of TensorBoard, where it is asked for."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volax.examples._errors import UserError


class Board:
    """One folder of events a run, written anew by each process.

    So a run that was resumed has every epoch once.

    Args:
      folder: where they are.

    Raises:
      UserError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise UserError(
                "tensorboard needs tensorboardX; pip install 'volax-optax[tensorboard]'"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        self._folder, self._make = folder, SummaryWriter
        self._writers: dict[str, Any] = {}
        self._written: dict[str, int] = {}

    def write(self, history: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Add the rows of each run that are not there yet."""
        for name, rows in history.items():
            if name not in self._writers:
                self._writers[name] = self._make(str(self._folder / name))
            for row in rows[self._written.get(name, 0) :]:
                for key, value in row.items():
                    if key != "epoch":
                        self._writers[name].add_scalar(key, value, row["epoch"])
            self._written[name] = len(rows)
            self._writers[name].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
