"""Trains a network twice, without and with a regularizer, and compares the two.

The training set lives on the device, and an epoch (shuffling, steps, evaluation) is
one compiled call. Everything random is drawn from the seed and the number of the
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

from volax.examples import figures
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.errors import UserError
from volax.examples.files import (
    Checkpoints,
    claim_workdir,
    replace_file,
    write_json,
)
from volax.examples.models import MLP
from volax.examples.optimizers import build_optimizers
from volax.examples.settings import flatten

# What may differ when a run is resumed; `epochs` as well if nothing was planned by it.
_MAY_CHANGE = {"data_dir", "checkpoint_seconds"}
_FOLDERS = ("plain", "regularized")
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
      UserError: for settings or data that cannot be used, or a training that diverged.
    """
    workdir = Path(workdir)
    if config.epochs < 1:
        raise UserError(f"epochs must be 1 or more, not {config.epochs}")
    data = load_dataset(
        config.dataset,
        config.data_dir,
        validation=config.validation,
        per_class=config.per_class,
        label_noise=config.label_noise,
        seed=config.seed,
    )
    batch_size = min(config.batch_size, len(data.train_labels))
    steps = len(data.train_labels) // batch_size
    model = MLP(
        data.train_images.shape[1],
        config.hidden,
        CLASSES,
        rngs=nnx.Rngs(config.seed),
    )
    plain, regularized = build_optimizers(config, steps * config.epochs, model)
    constant = config.optimizer.schedule == "constant"
    claim_workdir(
        workdir,
        flatten(config) | {"data checksum": _checksum(data)},
        may_change=_MAY_CHANGE,
        may_grow={"epochs"} if constant else set(),
    )

    names = (config.optimizer.name, f"{config.optimizer.name} + {config.regularizer}")
    if config.regularizer == "adamw":
        names = ("adam", "adamw")
    volume = config.volumize.volume if config.regularizer == "volumize" else math.inf
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    arrays = jax.device_put(data)

    with ExitStack() as stack:
        runs = []
        for name, folder, tx in zip(names, _FOLDERS, (plain, regularized)):
            checkpoints = Checkpoints(workdir / "checkpoints" / folder)
            stack.enter_context(checkpoints)
            # A copy, because an epoch consumes what it is given.
            state, rows = checkpoints.restore(
                (jax.tree.map(jnp.copy, params), tx.init(params))
            )
            epoch = build_epoch(model, tx, arrays, batch_size, config.seed, volume)
            runs.append(_Run(name, epoch, state, rows, checkpoints))
        history = {run.name: run.rows for run in runs}
        metrics = workdir / "metrics.csv"
        for run in runs:
            _fit(run, config, after_save=lambda: _write_metrics(metrics, history))
        _write_metrics(metrics, history)

    title = (
        f"{config.dataset}, seed {config.seed}, {config.epochs} epochs, "
        f"{len(data.train_labels):,} training and {len(data.test_labels):,} "
        f"{'validation' if config.validation else 'test'} images"
    )
    last = {run.name: run.rows[-1] for run in runs}
    size = figures.sizes(params, config.hidden)
    report = {"title": title, "config": config.to_dict(), **size, "runs": last}
    write_json(workdir / "report.json", report)
    figures.plot_curves(workdir / "curves.png", title, history, config.regularizer)
    print(figures.table(title, last, size, volume))
    return report


def build_epoch(
    model: MLP,
    tx: optax.GradientTransformation,
    data: Dataset,
    batch_size: int,
    seed: int,
    volume: float,
) -> Callable[[Any, int], tuple[Any, dict[str, jax.Array]]]:
    """Compile one epoch: shuffled steps, evaluation and counts.

    Args:
      model: gives the structure; its weights are not used.
      tx: the optimizer.
      data: on the device. The last incomplete batch of an epoch is left out.
      batch_size: images in a step.
      seed: with the epoch's number it draws the order of the images.
      volume: the wall for the counts.

    Returns:
      A function of `(weights, optimizer state)` and the epoch's number to their
      successors and the figures of the epoch; it consumes its first argument.
    """
    graph = nnx.graphdef(model)

    def loss_and_hits(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss.mean(), logits.argmax(-1) == labels

    @partial(jax.jit, donate_argnums=0)
    def epoch(state, number, data):
        count = len(data.train_labels) // batch_size * batch_size
        key = jax.random.fold_in(jax.random.key(seed), number)
        order = jax.random.permutation(key, len(data.train_labels))[:count]

        def step(state, rows):
            params, opt_state = state
            (loss, hits), gradient = jax.value_and_grad(loss_and_hits, has_aux=True)(
                params, data.train_images[rows], data.train_labels[rows]
            )
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (loss, hits)

        state, (loss, hits) = jax.lax.scan(step, state, order.reshape(-1, batch_size))
        params, _ = state
        _, test_hits = loss_and_hits(params, data.test_images, data.test_labels)
        seen = jnp.bincount(data.test_labels, length=CLASSES)
        right = jnp.bincount(data.test_labels, 1.0 * test_hits, length=CLASSES)
        return state, {
            "loss": loss.mean(),
            "train_accuracy": hits.mean(),
            "test_accuracy": test_hits.mean(),
            "worst_class_accuracy": jnp.where(seen, right / seen, 1).min(),
            **figures.measure(model, params, volume),
        }

    return lambda state, number: epoch(state, number, data)


@dataclasses.dataclass
class _Run:
    """One training: `state` is (weights, optimizer state) after `len(rows)` epochs."""

    name: str
    epoch: Callable[[Any, int], tuple[Any, dict[str, jax.Array]]]
    state: Any
    rows: list[dict[str, Any]]
    checkpoints: Checkpoints


def _fit(run: _Run, config: Any, after_save: Callable[[], None]) -> None:
    """Train from where the run stands to its end."""
    saved = time.monotonic()
    with tqdm(
        total=config.epochs,
        initial=len(run.rows),
        desc=run.name,
        unit="epoch",
        disable=None,  # off where the output is not a terminal
    ) as bar:
        for number in range(len(run.rows), config.epochs):
            run.state, metrics = run.epoch(run.state, number)
            metrics = jax.device_get(metrics)
            row = {"epoch": number + 1}
            row |= {column: _number(metrics[column]) for column in _COLUMNS}
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"{run.name} diverged in epoch {number + 1}: the loss is "
                    f"{row['loss']}; a smaller optimizer.learning_rate may help"
                )
            run.rows.append(row)
            own, value = figures.own_figure(config.regularizer, row)
            note = (
                f"loss {row['loss']:.4f}, accuracy {row['test_accuracy']:.2%}, "
                f"{own} {value:.4g}"
            )
            bar.set_postfix_str(note, refresh=False)
            bar.update()
            due = time.monotonic() - saved >= config.checkpoint_seconds
            if due or number + 1 == config.epochs:
                run.checkpoints.save(run.state, run.rows)
                after_save()
                saved = time.monotonic()
                if bar.disable:
                    print(f"{run.name}: epoch {number + 1}/{config.epochs}, {note}")


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
