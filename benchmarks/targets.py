"""Does a target meet its share, and at what accuracy beside fixed strengths?

``python -m benchmarks.targets --data digits`` trains one hidden layer of ReLU units
with ``tune_strength`` for each target, and with each of a grid of fixed strengths two a
decade. It prints a Markdown table: shares and accuracies of the former, and of the
latter the best accuracy among those that remove the target's share less one point, or
more. Each learning rate falls to zero on a cosine; the target is to be met half way.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import volax
from volax.examples import _machine
from volax.examples._files import write_json
from volax.examples.data import CLASSES, Dataset, load_dataset

PAIR = volax.pair("l1/kernel", "l2/kernel", bias="l1/bias")
STRENGTHS = 10.0 ** np.arange(-5, 1.1, 0.5)


class Setting(NamedTuple):
    """A data set with the network and the training for it."""

    units: int
    batch: int
    epochs: int
    rates: dict[str, float]


SETTINGS = {
    "digits": Setting(128, 64, 60, {"sgd": 0.1, "adam": 3e-3}),
    "mnist": Setting(128, 128, 6, {"sgd": 0.1, "adam": 1e-3}),
    "fashion_mnist": Setting(128, 128, 6, {"sgd": 0.1, "adam": 1e-3}),
}
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": lambda rate: optax.sgd(rate, 0.9),
    "adam": optax.adam,
}


class Rule(NamedTuple):
    """A regularizer, and what of it is counted."""

    make: Callable[[Any, Any], optax.GradientTransformation]  # of rate and strength
    measure: str


def _decay(rate: Any, strength: Any) -> optax.GradientTransformation:
    return volax.lp_decay(rate, strength, 0.5, snap_below=1e-6)


RULES = {
    "lp_decay": Rule(_decay, "weights"),
    "group_prox": Rule(
        lambda rate, strength: volax.group_prox(rate, strength, PAIR), "units"
    ),
    "path_prox": Rule(
        lambda rate, strength: volax.path_prox(rate, strength, PAIR), "units"
    ),
}


def logits(params: Any, x: Any) -> jax.Array:
    """Of images ``[batch, pixels]``, ``[batch, classes]``."""
    hidden = jax.nn.relu(x @ params["l1"]["kernel"] + params["l1"]["bias"])
    return hidden @ params["l2"]["kernel"] + params["l2"]["bias"]


def first_params(seed: Any, pixels: int, units: int) -> Any:
    """Of He's initialisation."""
    keys = jax.random.split(jax.random.key(seed))
    draw = jax.nn.initializers.he_normal()
    return {
        "l1": {"kernel": draw(keys[0], (pixels, units)), "bias": jnp.zeros(units)},
        "l2": {"kernel": draw(keys[1], (units, CLASSES)), "bias": jnp.zeros(CLASSES)},
    }


def loss(params: Any, images: Any, labels: Any) -> jax.Array:
    """Mean cross entropy."""
    found = logits(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()


def removed(measure: str, params: Any) -> Any:
    """The share of zeros in the kernels, or of units whose outgoing weights are."""
    if measure == "units":
        return 1 - params["l2"]["kernel"].any(axis=1).mean()
    kernels = [layer["kernel"] for layer in params.values()]
    return 1 - sum(k.astype(bool).sum() for k in kernels) / sum(k.size for k in kernels)


def trainer(
    setting: Setting,
    data: Dataset,
    optimizer: str,
    rule: Rule,
    tuned: bool,
) -> Callable[[Any, Any], np.ndarray]:
    """Trains for targets (or strengths) and seeds: ``[numbers, seeds, 2]``.

    The figures are the share removed and the accuracy.
    """
    count, pixels = data.train_inputs.shape
    per_epoch = count // setting.batch
    steps = per_epoch * setting.epochs
    rate = optax.cosine_decay_schedule(setting.rates[optimizer], steps)

    def make(strength: Any) -> optax.GradientTransformation:
        return optax.chain(OPTIMIZERS[optimizer](rate), rule.make(rate, strength))

    def train(number: Any, seed: Any, data: Dataset) -> tuple[jax.Array, jax.Array]:
        tx = make(number)
        if tuned:
            groups = PAIR if rule.measure == "units" else None
            given = {"measure": rule.measure, "groups": groups, "steps": steps // 2}
            tx = volax.tune_strength(make, number, **given)
        params = first_params(seed, pixels, setting.units)

        def epoch(carry: Any, number: Any) -> Any:
            key = jax.random.fold_in(jax.random.key(seed), number)
            order = jax.random.permutation(key, count)[: per_epoch * setting.batch]
            return jax.lax.scan(step, carry, order.reshape(per_epoch, -1))

        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            batch = data.train_inputs[rows], data.train_labels[rows]
            gradient = jax.grad(loss)(params, *batch)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, tx.init(params)
        (params, _), _ = jax.lax.scan(epoch, carry, jnp.arange(setting.epochs))
        hits = logits(params, data.test_inputs).argmax(-1) == data.test_labels
        return removed(rule.measure, params), hits.mean()

    seeds_of = jax.vmap(train, in_axes=(None, 0, None))
    compiled = jax.jit(jax.vmap(seeds_of, in_axes=(0, None, None)))
    arrays = jax.device_put(data)

    def run(numbers: Any, seeds: Any) -> np.ndarray:
        found = compiled(jnp.asarray(numbers, jnp.float32), seeds, arrays)
        return np.stack(jax.device_get(found), axis=-1)

    return run


def measure(
    setting: Setting,
    data: Dataset,
    optimizer: str,
    name: str,
    targets: list[float],
    seeds: int,
) -> list[dict[str, Any]]:
    """The rows of one rule behind one optimizer, shares and accuracies as means."""
    rule, drawn = RULES[name], jnp.arange(seeds)
    fixed = trainer(setting, data, optimizer, rule, False)(STRENGTHS, drawn)
    grid = list(zip(fixed.mean(axis=1), STRENGTHS))
    own, rows = trainer(setting, data, optimizer, rule, True)(targets, drawn), []
    for target, found in zip(targets, own):
        enough = [(*f, s) for f, s in grid if f[0] >= target - 0.01]
        best = max(enough, key=lambda row: row[1], default=(np.nan,) * 3)
        rows.append(
            {
                "rule": name,
                "optimizer": optimizer,
                "target": target,
                "least": found[:, 0].min(),
                "most": found[:, 0].max(),
                "accuracy": found[:, 1].mean(),
                "fixed strength": best[2],
                "fixed share": best[0],
                "fixed accuracy": best[1],
            }
        )
        print(*_cells(rows[-1]), sep=" | ", flush=True)
    return [{k: _plain(v) for k, v in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share = {f"{100 * row[k]:.1f}" for k in ("least", "most")}
    fixed = "none"
    if np.isfinite(row["fixed accuracy"]):
        fixed = f"{100 * row['fixed accuracy']:.2f} ({row['fixed strength']:.2g}: "
        fixed += f"{100 * row['fixed share']:.1f})"
    return (
        row["rule"],
        row["optimizer"],
        f"{100 * row['target']:.0f}",
        " to ".join(sorted(share, key=float)),
        f"{100 * row['accuracy']:.2f}",
        fixed,
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; shares and accuracies in per cent."""
    head = (
        "rule",
        "optimizer",
        "target",
        "share",
        "accuracy",
        "best fixed (its share)",
    )
    lines = [head, ("---",) * len(head), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, trains, prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.targets", description=__doc__
    )
    parser.add_argument("--data", default="digits", choices=SETTINGS)
    parser.add_argument("--rules", default="all", help=f"of {', '.join(RULES)}")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--targets", default="0.3,0.6,0.9")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="0: of the setting")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args(argv)
    names = [*RULES] if given.rules == "all" else given.rules.split(",")
    optimizers = given.optimizers.split(",")
    for kind, chosen, known in (
        ("rules", names, RULES),
        ("optimizers", optimizers, OPTIMIZERS),
    ):
        if unknown := set(chosen) - known.keys():
            parser.error(f"unknown {kind}: {', '.join(sorted(unknown))}")
    setting = SETTINGS[given.data]
    setting = setting._replace(epochs=given.epochs or setting.epochs)
    data = load_dataset(given.data, os.environ.get("VOLAX_DATA_DIR", ""))
    targets = [float(t) for t in given.targets.split(",")]
    print(_machine.header())
    rows = []
    for name in names:
        for optimizer in optimizers:
            rows += measure(setting, data, optimizer, name, targets, given.seeds)
            if given.json:
                write_json(given.json, {"machine": _machine.facts(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
