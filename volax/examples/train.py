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
import optax
from flax import nnx
from tqdm import tqdm

from volax.examples import _figures
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
from volax.examples.models import MLP

# What may differ when a run is resumed; a cosine is planned for its number of epochs,
# so `epochs` may grow under a constant learning rate only.
_MAY_CHANGE = {"data_dir", "checkpoint_seconds"}
_FOLDERS = ("plain", "regularized")
_AT_ONCE = 64  # epochs in a call, at most
_CALL_SECONDS = 0.25
_COLUMNS = (
    "loss",
    "train_accuracy",
    "test_accuracy",
    "worst_class_accuracy",
    "active_units",
    "zero_share",
    "wall_share",
    "largest_weight",
    "non_zero_weights",
    "weights_left",
    "bytes_left",
)


def train_and_evaluate(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Train both networks, or what is left to train, and report on them.

    Args:
      config: a locked `ConfigDict`; see `configs/default.py`.
      workdir: receives `metrics.csv`, `report.json`, `curves.png`, the checkpoints and
        the settings. A finished run only prints its table again.

    Returns:
      The content of `report.json`.

    Raises:
      UserError: for settings or data that cannot be used, a workdir that another run
        uses, or a training that diverged.
    """
    workdir = Path(workdir)
    for key in ("epochs", "batch_size"):
        if config[key] < 1:
            raise UserError(f"{key} must be 1 or more, not {config[key]}")
    if min(config.hidden, default=1) < 1:
        raise UserError(f"hidden must be widths of 1 or more, not {config.hidden}")
    data = load_dataset(
        config.dataset,
        config.data_dir,
        validation=config.validation,
        per_class=config.per_class,
        label_noise=config.label_noise,
        seed=config.seed,
    )
    images, features = data.train_inputs.shape
    batch_size = min(config.batch_size, images)
    model = MLP(features, config.hidden, CLASSES, rngs=nnx.Rngs(config.seed))
    steps = images // batch_size * config.epochs
    plain, regularized = build_optimizers(config, steps, model)
    constant = config.optimizer.schedule == "constant"
    settings = flatten(config) | {"data checksum": _checksum(data)}
    may_grow = {"epochs"} if constant else set()

    names = (config.optimizer.name, f"{config.optimizer.name} + {config.regularizer}")
    if config.regularizer == "adamw":
        names = ("adam", "adamw")
    volume = config.volumize.volume if config.regularizer == "volumize" else math.inf
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    arrays = jax.device_put(data)
    with ExitStack() as stack:
        stack.enter_context(sole_run(workdir))
        claim_workdir(workdir, settings, may_change=_MAY_CHANGE, may_grow=may_grow)
        runs = []
        for name, folder, tx in zip(names, _FOLDERS, (plain, regularized)):
            checkpoints = Checkpoints(workdir / "checkpoints" / folder, config.seed)
            stack.enter_context(checkpoints)
            # A copy, because an epoch consumes what it is given.
            state = jax.tree.map(jnp.copy, params), tx.init(params)
            state, rows = checkpoints.restore(state)
            epochs = build_epochs(model, tx, arrays, batch_size, config.seed, volume)
            runs.append(_Run(name, epochs, state, rows, checkpoints))
        history = {run.name: run.rows for run in runs}
        metrics = workdir / "metrics.csv"
        for run in runs:
            _fit(run, config, after_save=lambda: _write_metrics(metrics, history))
        _write_metrics(metrics, history)

        title = (
            f"{config.dataset}, seed {config.seed}, {config.epochs} epochs, "
            f"{images:,} training and {len(data.test_labels):,} "
            f"{'validation' if config.validation else 'test'} images"
        )
        last = {name: rows[-1] for name, rows in history.items()}
        size = _figures.sizes(params, config.hidden)
        report = {"title": title, "config": config.to_dict(), **size, "runs": last}
        write_json(workdir / "report.json", report)
        _figures.plot_curves(workdir / "curves.png", title, history, config.regularizer)
        print(_figures.table(title, last, size, volume))
        return report


def build_epochs(
    model: MLP,
    tx: optax.GradientTransformation,
    data: Dataset,
    batch_size: int,
    seed: int,
    volume: float,
) -> Callable[[Any, int, int], tuple[Any, dict[str, jax.Array]]]:
    """Compile epochs: shuffled steps, evaluation and counts of each.

    One program serves any number of epochs, so that how they are split into calls does
    not change a bit of the result.

    Args:
      model: gives the structure; its weights are not used.
      tx: the optimizer.
      data: on the device. The last incomplete batch of an epoch is left out.
      batch_size: images in a step.
      seed: with an epoch's number it draws the order of its images.
      volume: the wall for the counts.

    Returns:
      A function of `(weights, optimizer state)`, which it consumes, the number of the
      first epoch and how many to run, to the successors and the figures of each epoch.
    """
    graph = nnx.graphdef(model)

    def loss_and_hits(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss.mean(), logits.argmax(-1) == labels

    def epoch(state, number, data):
        count = len(data.train_labels) // batch_size * batch_size
        key = jax.random.fold_in(jax.random.key(seed), number)
        order = jax.random.permutation(key, len(data.train_labels))[:count]

        def step(state, rows):
            params, opt_state = state
            (loss, hits), gradient = jax.value_and_grad(loss_and_hits, has_aux=True)(
                params, data.train_inputs[rows], data.train_labels[rows]
            )
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (loss, hits)

        state, (loss, hits) = jax.lax.scan(step, state, order.reshape(-1, batch_size))
        params, _ = state
        _, test_hits = loss_and_hits(params, data.test_inputs, data.test_labels)
        seen = jnp.bincount(data.test_labels, length=CLASSES)
        right = jnp.bincount(data.test_labels, 1.0 * test_hits, length=CLASSES)
        return state, {
            "loss": loss.mean(),
            "train_accuracy": hits.mean(),
            "test_accuracy": test_hits.mean(),
            "worst_class_accuracy": jnp.where(seen, right / seen, 1).min(),
            **_figures.measure(model, params, volume),
        }

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
    """One training: `state` is (weights, optimizer state) after `len(rows)` epochs."""

    name: str
    epochs: Callable[[Any, int, int], tuple[Any, dict[str, jax.Array]]]
    state: Any
    rows: list[dict[str, Any]]
    checkpoints: Checkpoints


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
            if not math.isfinite(run.rows[-1]["loss"]):
                first = next(r for r in run.rows if not math.isfinite(r["loss"]))
                raise UserError(
                    f"{run.name} diverged in epoch {first['epoch']}: the loss is "
                    f"{first['loss']}; a smaller optimizer.learning_rate may help"
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
        {"epoch": done + i + 1} | {name: _number(metrics[name][i]) for name in _COLUMNS}
        for i in range(count)
    ]


def _note(row: dict[str, Any], regularizer: str) -> str:
    own, value = _figures.own_figure(regularizer, row)
    accuracy = f"accuracy {row['test_accuracy']:.2%}"
    return f"loss {row['loss']:.4f}, {accuracy}, {own} {value:.4g}"


def _number(value: np.ndarray) -> float | int:
    """A Python number that prints as the float32 does: 0.1, not 0.10000000149."""
    return float(str(value)) if value.dtype.kind == "f" else int(value)


def _write_metrics(path: Path, history: dict[str, list[dict]]) -> None:
    rows = [{"run": label, **row} for label, rows in history.items() for row in rows]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    if rows:
        replace_file(path, write)


def _checksum(data: Dataset) -> int:
    checksum = 0
    for array in data:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
