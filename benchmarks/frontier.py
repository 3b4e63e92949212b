"""Does removing units pay? Accuracy against size, beside nets trained small.

``python -m benchmarks.frontier --nets mnist-1024 --methods small,keep_units`` trains
every setting of the chosen methods with some seeds and prints a Markdown table. All
methods take the same number of steps in all, fine-tuning included. Figures are appended
to ``--results`` run by run, and what stands there is not trained again.
"""

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import volax
from benchmarks import machine
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.models import MLP

BATCH = 128
_RAMP = 0.4  # of the epochs, until the last unit that is to go is gone
_SELECTIONS = 20  # an epoch


class CNN(nnx.Module):
    """Two convolutions of stride 2 and a dense layer, for square images."""

    def __init__(self, pixels: int, widths: tuple[int, ...], *, rngs: nnx.Rngs):
        first, second, hidden = widths
        self.side = side = math.isqrt(pixels)
        self.conv0 = nnx.Conv(1, first, (5, 5), strides=2, rngs=rngs)
        self.conv1 = nnx.Conv(first, second, (5, 5), strides=2, rngs=rngs)
        self.hidden = nnx.Linear((side // 4) ** 2 * second, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images [batch, pixels] to logits [batch, classes]."""
        x = x.reshape(-1, self.side, self.side, 1)
        x = nnx.relu(self.conv1(nnx.relu(self.conv0(x))))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def _mlp(pixels: int, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
    return MLP(pixels, widths, CLASSES, rngs=rngs)


class Net(NamedTuple):
    """A network, its data and how long every method may train it."""

    dataset: str
    build: Callable[..., nnx.Module]
    widths: tuple[int, ...]
    epochs: int
    targets: tuple[tuple[int, ...], ...]  # widths to train small, and to cut to


_NARROW = tuple((n,) for n in (32, 52, 97, 128, 256))
_DEEP = tuple((n,) * 3 for n in (32, 64, 128))
_CONVOLUTIONS = ((4, 8, 32), (8, 16, 64))
NETS = {
    "digits-256": Net("digits", _mlp, (256,), 30, ((16,), (32,), (64,))),
    "mnist-1024": Net("mnist", _mlp, (1024,), 12, _NARROW),
    "mnist-512x3": Net("mnist", _mlp, (512,) * 3, 10, _DEEP),
    "mnist-cnn": Net("mnist", CNN, (16, 32, 128), 6, _CONVOLUTIONS),
    "fashion-1024": Net("fashion_mnist", _mlp, (1024,), 12, _NARROW),
    "fashion-512x3": Net("fashion_mnist", _mlp, (512,) * 3, 10, _DEEP),
    "fashion-cnn": Net("fashion_mnist", CNN, (16, 32, 128), 6, _CONVOLUTIONS),
}


class Study:
    """Training of one network with one seed."""

    def __init__(self, net: Net, data: Dataset, seed: int, rate: float):
        self.net, self.seed, self.rate = net, seed, rate
        self.data = jax.device_put(data)
        self.steps = len(data.train_labels) // BATCH  # of an epoch
        self.pixels = data.train_inputs.shape[1]
        self.inputs = (jnp.zeros((1, self.pixels)),)

    def model(self, widths: tuple[int, ...]) -> nnx.Module:
        return self.net.build(self.pixels, widths, rngs=nnx.Rngs(self.seed))

    def groups(self, model: nnx.Module) -> volax.pairs.Groups:
        return volax.find_groups(model, *self.inputs)

    def cosine(
        self, epochs: int, *, constant: int = 0, factor: float = 1
    ) -> optax.Schedule:
        """The study's rate in the first steps, then a cosine to 0 after all epochs."""
        rate = factor * self.rate
        falling = optax.cosine_decay_schedule(rate, epochs * self.steps - constant)
        return optax.join_schedules(
            [optax.constant_schedule(rate), falling], [constant]
        )

    def fit(
        self,
        model: nnx.Module,
        tx: optax.GradientTransformation,
        epochs: Iterable[int],
        opt_state: Any = None,
    ) -> tuple[nnx.Module, Any]:
        """Trains a copy of a model in the epochs of these numbers."""
        graph, params = nnx.split(model)
        state = params, tx.init(params) if opt_state is None else opt_state
        epoch = _epoch(graph, tx, self.steps)
        for number in epochs:
            key = jax.random.fold_in(jax.random.key(self.seed), number)
            state = epoch(state, key, self.data)
        return nnx.merge(graph, state[0]), state[1]

    def accuracy(self, model: nnx.Module) -> float:
        hits = [
            np.asarray(_logits(model, images)).argmax(-1) == labels
            for images, labels in _batches(self.data)
        ]
        return float(np.concatenate(hits).mean())


def _batches(data: Dataset, size: int = 1000) -> Iterator[tuple[Any, np.ndarray]]:
    for start in range(0, len(data.test_labels), size):
        stop = start + size
        yield data.test_inputs[start:stop], np.asarray(data.test_labels[start:stop])


@nnx.jit
def _logits(model: Any, images: jax.Array) -> jax.Array:
    return model(images)


def _epoch(
    graph: nnx.GraphDef, tx: optax.GradientTransformation, steps: int
) -> Callable[..., Any]:
    """One compiled epoch of shuffled batches."""

    def loss(params, images, labels):
        logits: Any = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, key, data):
        order = jax.random.permutation(key, len(data.train_labels))

        def step(state, rows):
            params, opt_state = state
            batch = data.train_inputs[rows], data.train_labels[rows]
            gradient = jax.grad(loss)(params, *batch)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        rows = order[: steps * BATCH].reshape(steps, BATCH)
        return jax.lax.scan(step, state, rows)[0]

    return epoch


# A method trains in all `net.epochs` epochs and gives the network that is left.


def small(study: Study, target: tuple[int, ...]) -> nnx.Module:
    """Trained small from the start."""
    epochs = study.net.epochs
    tx = optax.adam(study.cosine(epochs))
    return study.fit(study.model(target), tx, range(epochs))[0]


def magnitude(study: Study, target: tuple[int, ...]) -> nnx.Module:
    """Trained large, the units of smallest path norm killed, fine-tuned."""
    epochs, first = study.net.epochs, math.ceil(0.6 * study.net.epochs)
    model = study.model(study.net.widths)
    groups = study.groups(model)
    tx = optax.adam(study.cosine(first))
    model, _ = study.fit(model, tx, range(first))
    for group, count in zip(groups, target):
        model = volax.kill(model, [group], 1 - count / group.size)
    return _tuned(study, _compacted(model, groups), range(first, epochs))


def keep_units(study: Study, target: tuple[int, ...]) -> nnx.Module:
    """The units of largest path norm, fewer and fewer, at a constant rate first."""
    epochs = study.net.epochs
    model = study.model(study.net.widths)
    groups = study.groups(model)
    ramp = round(_RAMP * epochs * study.steps)
    every = max(study.steps // _SELECTIONS, 1)
    chain = [optax.adam(study.cosine(epochs, constant=ramp))]
    for group, count in zip(groups, target):
        share = volax.cubic_ramp(1.0, count / group.size, 0, ramp)
        chain.append(volax.keep_units(share, [group], every=every))
    model, _ = study.fit(model, optax.chain(*chain), range(epochs))
    return _compacted(model, groups)


def _tuned(study: Study, model: nnx.Module, epochs: range) -> nnx.Module:
    """Fine-tuned with plain Adam at half the rate."""
    tx = optax.adam(study.cosine(len(epochs), factor=0.5))
    return study.fit(model, tx, epochs)[0]


def _compacted(model: nnx.Module, groups: volax.pairs.Groups) -> nnx.Module:
    return volax.compact(model, groups).params


def _regularized(
    study: Study, make: Callable[..., optax.GradientTransformation]
) -> nnx.Module:
    """Trained with a regularizer, compacted, fine-tuned without it."""
    epochs, first = study.net.epochs, math.ceil(0.75 * study.net.epochs)
    model = study.model(study.net.widths)
    groups = study.groups(model)
    tx = make(study.cosine(first), groups)
    model, _ = study.fit(model, tx, range(first))
    return _tuned(study, _compacted(model, groups), range(first, epochs))


class Method(NamedTuple):
    """How to train, and which settings to try; ``None`` stands for the targets."""

    train: Callable[[Study, Any], nnx.Module]
    settings: tuple[Any, ...] | None = None


def _lp(study: Study, strength: float) -> nnx.Module:
    """Adam and decay with p = 1/2."""
    return _regularized(
        study,
        lambda rate, _: volax.lp_adam(rate, strength, 0.5, snap_below=1e-4),
    )


METHODS = {
    "small": Method(small),
    "plain": Method(lambda study, _: small(study, study.net.widths), ("",)),
    "magnitude": Method(magnitude),
    "keep_units": Method(keep_units),
    "lp_decay": Method(_lp, (3e-4, 1e-3, 3e-3)),
}


def measure(
    name: str, method: str, setting: Any, seed: int, rate: float, data: Dataset
) -> dict[str, Any]:
    """One run: what is left, how good it is, and how long it took."""
    study = Study(NETS[name], data, seed, rate)
    began = time.perf_counter()
    model = METHODS[method].train(study, setting)
    seconds = time.perf_counter() - began
    found = volax.report(model, study.groups(model), inputs=study.inputs)
    return {
        "net": name,
        "method": method,
        "setting": setting,
        "seed": seed,
        "rate": rate,
        "accuracy": study.accuracy(model),
        "units": [group.size for group in study.groups(model)],
        "multiply_adds": found.multiply_adds,
        "seconds": round(seconds),
    }


def table(rows: Iterable[dict]) -> str:
    """A Markdown table: each setting's mean over its seeds, the largest net first."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["net"], row["method"], str(row["setting"]), row["rate"]

    lines = []
    for (net, method, setting, rate), found in itertools.groupby(
        sorted(rows, key=key), key
    ):
        runs = list(found)
        hits = [100 * run["accuracy"] for run in runs]
        units = " ".join(
            f"{statistics.mean(counts):.0f}"
            for counts in zip(*(r["units"] for r in runs))
        )
        cost = statistics.mean(run["multiply_adds"] for run in runs)
        spread = f"{min(hits):.2f} to {max(hits):.2f}"
        seconds = statistics.median(run["seconds"] for run in runs)
        cells = (net, method, setting, f"{rate:g}", units, f"{cost:,.0f}")
        cells += (
            f"{statistics.mean(hits):.2f}",
            spread,
            f"{len(runs)}",
            f"{seconds:.0f}",
        )
        lines.append((net, -cost, cells))
    head = ("net", "method", "setting", "rate", "units", "multiply-adds", "accuracy, %",
            "from, to", "seeds", "s")  # fmt: skip
    body = [cells for _, _, cells in sorted(lines)]
    rule = tuple("---" for _ in head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier", description=__doc__
    )
    parser.add_argument("--nets", default="mnist-1024", help=", ".join(NETS))
    parser.add_argument("--methods", default="small", help=", ".join(METHODS))
    parser.add_argument("--settings", default="", help="part of a setting's text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--validation", type=float, default=0.0, help="share held out")
    parser.add_argument("--results", type=Path, default=Path("frontier.jsonl"))
    given = parser.parse_args(argv)
    nets, methods = given.nets.split(","), given.methods.split(",")
    for kind, names, known in (("net", nets, NETS), ("method", methods, METHODS)):
        if unknown := set(names) - known.keys():
            parser.error(f"unknown {kind}s: {', '.join(sorted(unknown))}")
    print(machine.header())
    rows = []
    if given.results.exists():
        rows = [json.loads(line) for line in given.results.read_text().splitlines()]
    done = {json.dumps(_key(row)) for row in rows}
    for name in nets:
        data = load_dataset(
            NETS[name].dataset,
            os.environ.get("VOLAX_DATA_DIR", ""),
            validation=given.validation,
        )
        for method, seed in itertools.product(methods, range(given.seeds)):
            chosen = METHODS[method].settings
            for setting in NETS[name].targets if chosen is None else chosen:
                wanted = {"net": name, "method": method, "setting": setting}
                wanted |= {"seed": seed, "rate": given.rate}
                wanted |= {"validation": given.validation}
                wanted = json.loads(json.dumps(wanted))  # as it is read again
                known = json.dumps(_key(wanted)) in done
                if known or given.settings not in str(setting):
                    continue
                row = measure(name, method, setting, seed, given.rate, data) | wanted
                rows.append(row)
                with given.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    chosen = [r for r in rows if r["net"] in nets and r["method"] in methods]
    print(table(chosen))


def _key(row: dict) -> list:
    return [row[k] for k in ("net", "method", "setting", "seed", "rate", "validation")]


if __name__ == "__main__":
    main()
