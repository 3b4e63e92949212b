"""Trains a network twice, without and with a regularizer, and compares the two.

The training set lives on the device, and an epoch (shuffling, steps, evaluation) is
compiled as a whole, or step by step where convolutions run on CPU. Everything random is
drawn from the seed and the number of the epoch, so a run resumed from a checkpoint ends
bit for bit like an uninterrupted one.
"""

import csv
import dataclasses
import math
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from tqdm import tqdm

import volax
from volax.examples import _diverged, _figures, _results
from volax.examples._board import Board
from volax.examples._errors import UserError
from volax.examples._files import (
    Checkpoints,
    claim_workdir,
    replace_file,
    sole_run,
    write_json,
)
from volax.examples._mesh import layout
from volax.examples._optimizers import build_optimizers
from volax.examples._settings import flatten
from volax.examples._setup import augmentation, check, network
from volax.examples.data import Dataset, load
from volax.examples.loop import Loop, State

# What may differ when a run is resumed; a cosine is planned for its number of epochs,
# so `epochs` may grow under a constant learning rate only.
_MAY_CHANGE = {"data_dir", "checkpoint_seconds", "tensorboard", "mesh", "layout"}
_FOLDERS = ("plain", "regularized")
_AT_ONCE = 64  # epochs in a call, at most
_CALL_SECONDS = 0.25


def train_and_evaluate(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Train both networks, or what is left to train, and report on them.

    Args:
      config: a locked `ConfigDict`; see `configs/default.py`.
      workdir: receives `metrics.csv`, `report.json`, `curves.png`, the checkpoints,
        the settings and, where units died, the smaller model. A finished run only
        prints its table again.

    Returns:
      The content of `report.json`; nothing in processes other than the first, which
      alone writes files.

    Raises:
      UserError: for settings or data that cannot be used, a workdir that another run
        uses, or a training that diverged.
    """
    workdir = Path(workdir)
    check(config)
    loaded = load(
        config.dataset,
        config.data_dir,
        validation=config.validation,
        per_class=config.per_class,
        label_noise=config.label_noise,
        length=config.length,
        seed=config.seed,
    )
    data, changes = loaded.dataset, augmentation(config, loaded)
    examples = len(data.train_labels)
    batch_size = min(config.batch_size, examples)
    places = layout(config, batch_size)
    model = network(config, loaded, config.model.dtype)
    exact = network(config, loaded, "float32")  # whose units are found and removed
    groups = volax.find_groups(exact, jnp.asarray(data.test_inputs[:1]))
    steps = examples // batch_size * config.epochs
    optimizers = build_optimizers(config, steps, groups)
    settings = flatten(config) | {"data checksum": _checksum(data)}
    constant = (config.optimizer.schedule, config.optimizer.warmup) == ("constant", 0)

    names = (config.optimizer.name, f"{config.optimizer.name} + {config.regularizer}")
    if config.regularizer == "adamw":
        names = ("adam", "adamw")
    wall = {}
    if config.regularizer == "volumize":
        wall = {k: config.volumize[k] for k in ("volume", "mask")}

    def measure(state: State) -> dict[str, jax.Array]:
        found = groups if len(groups) else None
        return volax.metrics(state.params, found, state.opt_state, **wall)

    arrays = jax.device_put(data) if places is None else places.copied(data)
    first = jax.process_index() == 0  # the one process that writes
    with ExitStack() as stack:
        if first:
            stack.enter_context(sole_run(workdir))
            may_grow = {"epochs"} if constant else set()
            claim_workdir(workdir, settings, may_change=_MAY_CHANGE, may_grow=may_grow)
        runs = []
        for name, folder, tx in zip(names, _FOLDERS, optimizers):
            checkpoints = Checkpoints(workdir / "checkpoints" / folder, config.seed)
            stack.enter_context(checkpoints)
            loop = Loop(
                model,
                tx,
                batch_size,
                config.seed,
                augment=changes,
                average=config.average,
                test_batch=config.test_batch,
                layout=places,
            )
            state, rows = checkpoints.restore(loop.start())
            epochs = build_epochs(loop, arrays, measure)
            diverged = partial(_diverged.find, loop, arrays, checkpoints)
            runs.append(_Run(name, epochs, state, rows, checkpoints, diverged))
        history = {run.name: run.rows for run in runs}
        metrics = workdir / "metrics.csv"
        board = None
        if config.tensorboard and first:
            board = Board(workdir / "tensorboard")
            stack.callback(board.close)

        def publish() -> None:
            if not first:
                return
            _write_metrics(metrics, history)
            if board is not None:
                board.write(history)

        for run in runs:
            _fit(run, config, after_save=publish)
        publish()

        models = {
            run.name: run.rows[-1] | _results.sized(run.state, groups) for run in runs
        }
        *_, (_, last) = models.items()
        state = runs[-1].state
        if places is not None:
            state, arrays = places.gathered(state), jax.device_put(data)
        if not first:
            return {}
        unproven = ""
        left = Loop(exact, optax.identity(), 1).module(state.params, state.rest)
        if last.get("alive", 0) < last.get("units", 0):
            path = workdir / "small.safetensors"
            try:
                models["compacted"] = _results.compacted(left, groups, arrays, path)
            except ValueError as error:  # the proof failed: all else is still told
                unproven = f"not compacted: {error}"
        title = (
            f"{config.dataset}, seed {config.seed}, {config.epochs} epochs, "
            f"{examples:,} training and {len(data.test_labels):,} "
            f"{'validation' if config.validation else 'test'} examples"
        )
        if loaded.note:
            title += f"\n{loaded.note}"
        report = {"title": title, "config": config.to_dict(), "models": models}
        if data.test_labels.ndim > 1:
            report["sample"] = _results.written(left, loaded, config.seed)
        write_json(workdir / "report.json", report)
        _figures.plot_curves(workdir / "curves.png", title, history, config.regularizer)
        print(_figures.table(title, models, wall.get("volume", math.inf)))
        if unproven:
            print(f"\n{unproven}")
        if "sample" in report:
            print(f"\n{report['sample']}")
        return report


def build_epochs(
    loop: Loop, data: Dataset, measure: Callable[[State], dict[str, jax.Array]]
) -> Callable[[State, int, int], tuple[State, dict[str, Any]]]:
    """Compile epochs: shuffled steps, evaluation and counts of each.

    One program serves any number of epochs, so that how they are split into calls does
    not change a bit of the result.

    Args:
      loop: what is trained.
      data: on the device.
      measure: further figures of the state after an epoch.

    Returns:
      A function of the state, which it consumes, the number of the first epoch and how
      many to run, to the state after and the figures of each epoch.
    """

    def look(state, data):
        figures = loop.scores(state.params, state.rest, data)
        if state.average is not None:
            found = loop.scores(state.average, state.rest, data)
            figures["average_accuracy"] = found["test_accuracy"]
        return figures | measure(state)

    if loop.by_steps(data):
        train, looked = loop.stepwise(data), jax.jit(look)

        def one_by_one(state, first, count):
            rows = []
            for number in range(first, first + count):
                state, figures = train(state, number)
                rows.append(figures | jax.device_get(looked(state, data)))
            return state, {key: np.stack([row[key] for row in rows]) for key in rows[0]}

        return one_by_one

    def epoch(state, number, data):
        state, figures = loop.epoch(state, number, data)
        return state, figures | look(state, data)

    @partial(jax.jit, donate_argnums=0)
    def epochs(state, first, count, data):
        shapes = jax.eval_shape(epoch, state, first, data)[1]
        blank = jax.tree.map(lambda s: jnp.zeros((_AT_ONCE,), s.dtype), shapes)

        def body(i, carry):
            state, table = carry
            state, row = epoch(state, first + i, data)
            return state, jax.tree.map(lambda t, value: t.at[i].set(value), table, row)

        state, table = jax.lax.fori_loop(0, count, body, (state, blank))
        return loop.held(state), table

    return lambda state, first, count: epochs(state, first, count, data)


@dataclasses.dataclass
class _Run:
    """One training: `state` is what `len(rows)` epochs have left."""

    name: str
    epochs: Callable[[State, int, int], tuple[State, dict[str, Any]]]
    state: State
    rows: list[dict[str, Any]]
    checkpoints: Checkpoints
    diverged: Callable[[int], str]  # where, by the end of that epoch


def _fit(run: _Run, config: Any, after_save: Callable[[], None]) -> None:
    """Train from where the run stands to its end."""
    saved, count = time.monotonic(), 1
    with tqdm(
        total=config.epochs,
        initial=len(run.rows),
        desc=run.name,
        unit="epoch",
        # Off where the output is not a terminal, and in all processes but the first.
        disable=True if jax.process_index() else None,
    ) as bar:
        while (done := len(run.rows)) < config.epochs:
            count = min(count, config.epochs - done)
            began = time.monotonic()
            run.state, metrics = run.epochs(run.state, done, count)
            metrics = jax.device_get(metrics)
            now = time.monotonic()
            run.rows += _rows(metrics, done, count)
            broken = next((r for r in run.rows[done:] if not _is_finite(r)), None)
            if broken is not None:
                raise UserError(
                    f"{run.name} diverged {run.diverged(broken['epoch'])}; a smaller "
                    "optimizer.learning_rate may help"
                )
            note = _note(run.rows[-1], config.regularizer)
            bar.set_postfix_str(note, refresh=False)
            bar.update(count)
            due = now - saved >= config.checkpoint_seconds
            if _agreed(due) or done + count == config.epochs:
                run.checkpoints.save(run.state, run.rows)
                after_save()
                saved = time.monotonic()
                if bar.disable and not jax.process_index():
                    print(f"{run.name}: epoch {done + count}/{config.epochs}, {note}")
            # Short epochs go many to a call: the host then costs next to nothing.
            wanted = min(_CALL_SECONDS, config.checkpoint_seconds)
            fitting = int(wanted * count / (now - began))
            count = _agreed(max(1, min(_AT_ONCE, fitting)))


def _agreed(number: int) -> int:
    """What the first process says, whose clock counts for all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _rows(metrics: dict[str, np.ndarray], done: int, count: int) -> list[dict]:
    return [
        {"epoch": done + i + 1} | {k: _results.number(v[i]) for k, v in metrics.items()}
        for i in range(count)
    ]


def _is_finite(row: dict[str, Any]) -> bool:
    """Whether training can go on; the last step may break what no loss has seen."""
    return all(math.isfinite(row[key]) for key in ("loss", "largest"))


def _note(row: dict[str, Any], regularizer: str) -> str:
    own, value = _figures.own_figure(regularizer, row)
    accuracy = f"accuracy {row['test_accuracy']:.2%}"
    return f"loss {row['loss']:.4f}, {accuracy}, {own} {value:.4g}"


def _write_metrics(path: Path, history: dict[str, list[dict]]) -> None:
    rows = [{"run": label, **row} for label, rows in history.items() for row in rows]
    columns = dict.fromkeys(key for row in rows for key in row)

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    if rows:
        replace_file(path, write)


def _checksum(data: Dataset) -> int:
    checksum = 0
    for array in data:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
