"""Finished runs in a file of JSON lines: what stands there is not made again."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


class Runs:
    """Runs that are made when they are asked for, and kept.

    A line is one run: what it was made with, and its figures. A number that is not
    finite is stored as null. A damaged line, such as the last one of a process that was
    killed while it wrote, is left out with a warning, and its run is made again.

    Args:
      path: the file; its folder exists.
      names: keys of all that a run depends on.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self.path, self.names = path, tuple(names)
        self.rows: dict[str, Row] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                self.rows[self._key(row)] = row
            except (ValueError, KeyError, TypeError):
                if line.strip():
                    warnings.warn(
                        f"{path}, line {number}, is no run with "
                        f"{', '.join(self.names)}; it is left out",
                        stacklevel=2,
                    )

    def __contains__(self, settings: Mapping[str, Any]) -> bool:
        return self._key(settings) in self.rows

    def __call__(self, settings: Mapping[str, Any], make: Callable[[], Row]) -> Row:
        """The run with these settings: its row in the file.

        Args:
          settings: a value for each of the names.
          make: trains, and gives the figures.

        Returns:
          Settings and figures, as they are read from the file.
        """
        key = self._key(settings)
        if key not in self.rows:
            line = json.dumps(plain({**settings, **make()}), allow_nan=False)
            # What a killed process left behind ends without a new line.
            whole = not self.path.exists() or self.path.read_bytes()[-1:] in b"\n"
            with self.path.open("a") as file:
                file.write(("" if whole else "\n") + line + "\n")
            self.rows[key] = json.loads(line)
        return self.rows[key]

    def _key(self, row: Mapping[str, Any]) -> str:
        return json.dumps([plain(row[name]) for name in self.names], sort_keys=True)


def plain(value: Any) -> Any:
    """A value as JSON holds it: lists, Python's numbers, None for one not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic) or hasattr(value, "tolist"):
        array = np.asarray(value)
        if array.ndim:
            return [plain(item) for item in array]
        # A float32 prints as 0.1, where its float64 is 0.10000000149.
        value = float(str(array)) if array.dtype.kind == "f" else array.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
