"""Trains a network twice, without and with a regularizer, and compares the two.

The training set lives on the device, and an epoch (shuffling, steps, evaluation) is
compiled as a whole. Everything random is drawn from the seed and the number of the
epoch, so a run resumed from a checkpoint ends bit for bit like an uninterrupted one.
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
from flax import nnx
from tqdm import tqdm

import volax
from volax.examples import _diverged, _figures, _results
from volax.examples._errors import UserError
from volax.examples._files import (
    Checkpoints,
    claim_workdir,
    replace_file,
    sole_run,
    write_json,
)
from volax.examples._optimizers import build_optimizers
from volax.examples._settings import flatten
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.loop import Loop, State
from volax.examples.models import MLP

# What may differ when a run is resumed; a cosine is planned for its number of epochs,
# so `epochs` may grow under a constant learning rate only.
_MAY_CHANGE = {"data_dir", "checkpoint_seconds"}
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
      The content of `report.json`.

    Raises:
      UserError: for settings or data that cannot be used, a workdir that another run
        uses, or a training that diverged.
    """
    workdir = Path(workdir)
    _check(config)
    data = load_dataset(
        config.dataset,
        config.data_dir,
        validation=config.validation,
        per_class=config.per_class,
        label_noise=config.label_noise,
        seed=config.seed,
    )
    examples = len(data.train_labels)
    batch_size = min(config.batch_size, examples)
    model = _build(config, data)
    model.eval()
    groups = volax.find_groups(model, jnp.asarray(data.test_inputs[:1]))
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

    arrays = jax.device_put(data)
    with ExitStack() as stack:
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
                average=config.average,
                test_batch=config.test_batch,
            )
            state, rows = checkpoints.restore(loop.start())
            epochs = build_epochs(loop, arrays, measure)
            diverged = partial(_diverged.find, loop, arrays, checkpoints)
            runs.append(_Run(name, epochs, state, rows, checkpoints, diverged))
        history = {run.name: run.rows for run in runs}
        metrics = workdir / "metrics.csv"
        for run in runs:
            _fit(run, config, after_save=lambda: _write_metrics(metrics, history))
        _write_metrics(metrics, history)

        models = {
            run.name: run.rows[-1] | _results.sized(run.state, groups) for run in runs
        }
        if models[names[1]].get("alive", 0) < models[names[1]].get("units", 0):
            trained = loop.module(runs[1].state.params, runs[1].state.rest)
            small = workdir / "small.safetensors"
            models["compacted"] = _results.compacted(trained, groups, arrays, small)
        title = (
            f"{config.dataset}, seed {config.seed}, {config.epochs} epochs, "
            f"{examples:,} training and {len(data.test_labels):,} "
            f"{'validation' if config.validation else 'test'} examples"
        )
        report = {"title": title, "config": config.to_dict(), "models": models}
        write_json(workdir / "report.json", report)
        _figures.plot_curves(workdir / "curves.png", title, history, config.regularizer)
        print(_figures.table(title, models, wall.get("volume", math.inf)))
        return report


def build_epochs(
    loop: Loop, data: Dataset, measure: Callable[[State], dict[str, jax.Array]]
) -> Callable[[State, int, int], tuple[State, dict[str, jax.Array]]]:
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

    def epoch(state, number, data):
        state, figures = loop.epoch(state, number, data)
        figures |= loop.scores(state.params, state.rest, data)
        if state.average is not None:
            found = loop.scores(state.average, state.rest, data)
            figures["average_accuracy"] = found["test_accuracy"]
        return state, figures | measure(state)

    @partial(jax.jit, donate_argnums=0)
    def epochs(state, first, count, data):
        shapes = jax.eval_shape(epoch, state, first, data)[1]
        blank = jax.tree.map(lambda s: jnp.zeros((_AT_ONCE,), s.dtype), shapes)

        def body(i, carry):
            state, table = carry
            state, row = epoch(state, first + i, data)
            return state, jax.tree.map(lambda t, value: t.at[i].set(value), table, row)

        return jax.lax.fori_loop(0, count, body, (state, blank))

    return lambda state, first, count: epochs(state, first, count, data)


@dataclasses.dataclass
class _Run:
    """One training: `state` is what `len(rows)` epochs have left."""

    name: str
    epochs: Callable[[State, int, int], tuple[State, dict[str, jax.Array]]]
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
        disable=None,  # off where the output is not a terminal
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
            if (
                now - saved >= config.checkpoint_seconds
                or done + count == config.epochs
            ):
                run.checkpoints.save(run.state, run.rows)
                after_save()
                saved = time.monotonic()
                if bar.disable:
                    print(f"{run.name}: epoch {done + count}/{config.epochs}, {note}")
            # Short epochs go many to a call: the host then costs next to nothing.
            wanted = min(_CALL_SECONDS, config.checkpoint_seconds)
            count = max(1, min(_AT_ONCE, int(wanted * count / (now - began))))
    run.checkpoints.wait()


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


def _build(config: Any, data: Dataset) -> Any:
    """The network of the config for this data."""
    widths = config.model.mlp.hidden
    if min(widths, default=1) < 1:
        raise UserError(f"model.mlp.hidden must be widths of 1 or more, not {widths}")
    features, rngs = data.train_inputs.shape[1], nnx.Rngs(config.seed)
    return MLP(features, widths, CLASSES, rngs=rngs)


def _check(config: Any) -> None:
    """Refuse numbers that make no training."""
    counts = {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "test_batch": config.test_batch,
        "optimizer.accumulate": config.optimizer.accumulate,
    }
    for key, value in counts.items():
        if value < 1:
            raise UserError(f"{key} must be 1 or more, not {value}")
    shares = {"average": config.average, "optimizer.warmup": config.optimizer.warmup}
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"{key} is a share in [0, 1), not {value}")
    if not config.optimizer.clip >= 0:
        raise UserError(
            f"optimizer.clip is a norm, 0 for none, not {config.optimizer.clip}"
        )


def _checksum(data: Dataset) -> int:
    checksum = 0
    for array in data:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
