"""What the example writes: whole files, and checkpoints that resume exactly."""

import asyncio
import errno
import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from volax.examples._errors import UserError

_THREAD_SECONDS = 10.0  # how long a disk that does not answer is waited for


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


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """See all that was begun in the block to its end, when a part of it has failed.

    The library closes its event loop at the first error, while other files are being
    read, and Python then complains of each that the loop is closed.
    """
    new_event_loop = asyncio.new_event_loop

    def make() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        close = loop.close

        def finish() -> None:
            if left := asyncio.all_tasks(loop):
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            close()

        loop.close = finish
        return loop

    asyncio.new_event_loop = make
    try:
        yield
    finally:
        asyncio.new_event_loop = new_event_loop


class Checkpoints:
    """The last two checkpoints of one run: its arrays and its rows of metrics.

    Each holds where in the data it stands, which is the seed and the number of epochs,
    and sums over its arrays: of a damaged file the library may read other numbers and
    say nothing. It is on the disk before the training goes on.

    Args:
      folder: where they are.
      seed: of everything random in the run.
    """

    def __init__(self, folder: Path, seed: int):
        self._folder, self._seed = folder, seed
        self._damaged: list[int] = []
        folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            cleanup_tmp_directories=True,
            # Its threads read arrays on the CPU where they lie, so an epoch that takes
            # donated ones over would change what they write.
            enable_async_checkpointing=False,
        )
        with _uninterrupted():
            self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    def save(self, state: Any, rows: list[dict]) -> None:
        """Store the arrays and the rows of all epochs so far, in one step.

        The arrays may be donated afterwards.

        Raises:
          UserError: it cannot be written; those before are as they were.
        """
        about = {"seed": self._seed, "epochs": len(rows), "rows": rows}
        about["sums"] = _sums(state, about)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
        )
        others = set(threading.enumerate())
        try:
            with _uninterrupted():
                for step in self._damaged:
                    self._manager.delete(step)
                self._damaged = []
                self._manager.save(len(rows), args=items)
        except Exception as error:  # of several classes, where the disk is full
            # The library raises the first error while its threads write on, and they
            # make the folders that they miss. Closed, it ends those that wait for work.
            with suppress(Exception):
                self._manager.close()
            for thread in set(threading.enumerate()) - others:
                with suppress(AssertionError, RuntimeError):  # not one of Python's
                    thread.join(_THREAD_SECONDS)
            for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{self._folder / str(len(rows))} cannot be written ({_cause(error)})"
            ) from error

    def restore(self, state: Any) -> tuple[Any, list[dict]]:
        """Load the last checkpoint that is whole, or give back what was given.

        A damaged one is left out with a warning, and removed when the next is written.

        Args:
          state: gives the structure, the shapes and where the arrays are to lie.

        Returns:
          The state, and a row of metrics for each epoch that it has seen; `state` and
          no rows where there is no checkpoint.

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reasons: list[str] = []
        for step in steps:
            try:
                restored = self._read(step, state)
            except Exception as error:  # just that is what a damaged array raises
                what = str(error).partition(". ")[0].partition("\n")[0]
                reasons.append(what or type(error).__name__)
                continue
            self._damaged = steps[: len(reasons)]
            for damaged, reason in zip(self._damaged, reasons):
                warnings.warn(
                    f"{self._folder / str(damaged)} is damaged ({reason}); training "
                    f"goes on from {self._folder / str(step)}",
                    stacklevel=2,
                )
            return restored
        if steps:
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({steps[0]}: "
                f"{reasons[0]}); delete the folder to begin this run again"
            )
        return state, []

    def _read(self, step: int, state: Any) -> tuple[Any, list[dict]]:
        """The arrays and rows of one checkpoint, proven to be what was stored."""
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), about=ocp.args.JsonRestore()
        )
        with _uninterrupted(), _nothing_left_behind():
            restored = self._manager.restore(step, args=items)
        state, about = restored["state"], dict(restored["about"])
        if about.pop("sums", None) != _sums(state, about):
            raise ValueError("its numbers are not those that were stored")
        if (about["seed"], about["epochs"]) != (self._seed, step):
            raise ValueError(
                f"it is of seed {about['seed']} after {about['epochs']} epochs"
            )
        return state, about["rows"]


def _sums(state: Any, about: dict) -> list[str]:
    """Two sums over the bits of all that a checkpoint holds: its arrays and its text.

    They are the words of each array, each with its square, added up modulo 2^64, so
    that it does not matter on which devices of which processes the parts of an array
    lie. A word is as wide as an element of the array.
    """
    text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    sums = np.zeros(2, np.uint64)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                sums += _sum_and_squares(np.asarray(shard.data))
    if jax.process_count() > 1:
        parts = multihost_utils.process_allgather(sums.view(np.uint32))
        sums = np.asarray(parts).view(np.uint64).sum(0)
    return [str(x) for x in sums + _sum_and_squares(text)]


def _sum_and_squares(array: np.ndarray) -> np.ndarray:
    """The sum of the words of an array and that of their squares, uint64 [2]."""
    words = np.ascontiguousarray(array).reshape(-1)
    words = words.view(f"u{array.itemsize}").astype(np.uint64)
    return np.array([words.sum(), np.dot(words, words)], np.uint64)


def _cause(error: Exception) -> str:
    """What the operating system said: the end of a chain of files inside files."""
    last = str(error).partition("\n")[0].rpartition(": ")[2]
    return last.partition(" [os_error_code")[0]
