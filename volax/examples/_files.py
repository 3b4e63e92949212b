"""What the example writes: whole files, and checkpoints that resume exactly."""

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from volax.examples._errors import UserError


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, then rename it to `path` in one step."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as an indented JSON file, in one step."""
    text = json.dumps(value, indent=2) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text))


@contextmanager
def sole_run(workdir: Path) -> Iterator[None]:
    """Keep other runs out of `workdir`, which is made where it is missing.

    The lock is one of the operating system on the folder itself: it leaves no file, and
    it ends with the process, however that ends. Windows has no such lock.

    Args:
      workdir: the folder.

    Raises:
      UserError: another process trains in it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    folder = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another run is training in {workdir}; wait for its end, or "
                    "choose another --workdir"
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield
    finally:
        os.close(folder)


def claim_workdir(
    workdir: Path, settings: dict, *, may_change: set[str], may_grow: set[str]
) -> None:
    """Record the settings in `workdir`, or check them against the recorded ones.

    Args:
      workdir: the folder.
      settings: flat, what the run depends on.
      may_change: keys that do not change the result.
      may_grow: keys whose value may be raised.

    Raises:
      UserError: naming each key that differs, because a run resumed with other
        settings would be neither the one nor the other.
    """
    path = workdir / "config.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            recorded = dict(json.loads(path.read_text()))
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        differs = [
            f"{key} was {recorded.get(key)!r} and is {settings.get(key)!r}"
            for key in sorted(recorded.keys() | settings.keys())
            if key not in may_change
            and recorded.get(key) != settings.get(key)
            and not (key in may_grow and recorded.get(key, 0) < settings[key])
        ]
        if differs:
            raise UserError(
                f"{workdir} holds a run with other settings ({'; '.join(differs)}); "
                "choose another --workdir or delete this one"
            )
    write_json(path, settings)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block: the checkpoint library has threads."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Ctrl-C never arrives
        return
    arrived = []
    handler = signal.signal(signal.SIGINT, lambda *_: arrived.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived:
        raise KeyboardInterrupt


class Checkpoints:
    """The last two checkpoints of one run: its arrays and its rows of metrics.

    Args:
      folder: where they are.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
        with _uninterrupted():
            self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    def save(self, state: Any, rows: list[dict]) -> None:
        """Store the arrays and the rows of all epochs so far, in one step."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), rows=ocp.args.JsonSave({"rows": rows})
        )
        try:
            with _uninterrupted():
                self._manager.save(len(rows), args=items)
        except Exception as error:  # of several classes, where the disk is full
            for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{self._folder / str(len(rows))} cannot be written ({_cause(error)})"
            ) from error

    def restore(self, state: Any) -> tuple[Any, list[dict]]:
        """Load the last checkpoint, shaped like `state`; `state` where none is."""
        step = self._manager.latest_step()
        if step is None:
            return state, []
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), rows=ocp.args.JsonRestore()
        )
        try:
            with _uninterrupted():
                restored = self._manager.restore(step, args=items)
        except Exception as error:  # just that is what a damaged array raises
            what = str(error).partition(". ")[0].partition("\n")[0]
            raise UserError(
                f"{self._folder / str(step)} cannot be read ({what}); delete it to "
                "resume from the one before"
            ) from error
        return restored["state"], restored["rows"]["rows"]


def _cause(error: Exception) -> str:
    """What the operating system said: the end of a chain of files inside files."""
    last = str(error).partition("\n")[0].rpartition(": ")[2]
    return last.partition(" [os_error_code")[0]
