"""Does removing units pay? Accuracy against size, beside nets trained small.

``python -m benchmarks.frontier --nets mnist-1024 --methods small,keep_units`` trains
every setting of the chosen methods with some seeds and prints a Markdown table. All
methods take the same number of steps in all, fine-tuning included. Of several
``--rates`` each is tried once on ``--search``, a share of the training data, and the
best is taken: for nets trained small one at each size, for another method one for all
sizes, found at the middle one. Figures are appended to ``--results`` run by run, and
what stands there is not trained again.
"""

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import volax
from benchmarks import transformer
from volax.examples import _machine, loop
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.models import MLP
from volax.examples.reproduce._pruning import (
    Study,
    group_rule,
    keep_units,
    keep_units_of_all,
    lp_rule,
    magnitude,
    path_rule,
    plain,
    shrunk,
    small,
    small_held,
)
from volax.examples.reproduce._runs import Runs

BATCH = 128


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


def _characters(
    length: int, widths: tuple[int, ...], *, seed: int
) -> dict[str, jax.Array]:
    """Parameters of a transformer with so many units and channels of a head."""
    units, channels = widths
    size = transformer.Size(units=units, channels=channels, length=length)
    return transformer.init(size, jax.random.key(seed))


class Net(NamedTuple):
    """A network, its data and how long every method may train it."""

    dataset: str
    build: Callable[..., Any]
    widths: tuple[int, ...]
    epochs: int
    targets: tuple[tuple[int, ...], ...]  # widths to train small, and to cut to


_NARROW = tuple((n,) for n in (52, 97, 256))
_DEEP = tuple((n,) * 3 for n in (64, 128))
_CONVOLUTIONS = ((2, 4, 16), (4, 8, 32))
NETS = {
    "digits-256": Net("digits", _mlp, (256,), 30, ((16,), (32,), (64,))),
    "mnist-1024": Net("mnist", _mlp, (1024,), 12, _NARROW),
    "mnist-512x3": Net("mnist", _mlp, (512,) * 3, 10, _DEEP),
    "mnist-cnn": Net("mnist", CNN, (8, 16, 64), 4, _CONVOLUTIONS),
    "fashion-1024": Net("fashion_mnist", _mlp, (1024,), 12, _NARROW),
    "fashion-512x3": Net("fashion_mnist", _mlp, (512,) * 3, 10, _DEEP),
    "fashion-cnn": Net("fashion_mnist", CNN, (8, 16, 64), 4, _CONVOLUTIONS),
    "fashion-256": Net("fashion_mnist", _mlp, (256,), 8, ((32,), (64,))),
    "letters": Net("letters", _characters, (128, 8), 15, ((21, 2), (60, 4))),
}


class Images(Study):
    """Training of a network for images."""

    def __init__(self, net: Net, data: Dataset, seed: int, rate: float):
        self.net, self.seed = net, seed
        self.data = jax.device_put(data)
        self.pixels = data.train_inputs.shape[1]
        steps = len(data.train_labels) // BATCH
        inputs = (jnp.zeros((1, self.pixels)),)
        super().__init__(net.epochs, steps, rate, net.widths, inputs)

    def model(self, target: tuple[int, ...]) -> nnx.Module:
        return self.net.build(self.pixels, target, rngs=nnx.Rngs(self.seed))

    def fit(
        self,
        model: nnx.Module,
        tx: optax.GradientTransformation,
        epochs: Iterable[int],
        opt_state: Any = None,
    ) -> tuple[nnx.Module, Any]:
        return loop.fit(
            model,
            tx,
            self.data,
            epochs,
            batch_size=BATCH,
            seed=self.seed,
            opt_state=opt_state,
        )

    def quality(self, model: nnx.Module) -> dict[str, float]:
        """The accuracy on the test images."""
        return {"accuracy": loop.right(model, self.data) / len(self.data.test_labels)}


class Letters(Study):
    """Training of a character transformer, whose loss takes the place of accuracy."""

    def __init__(self, net: Net, data: Any, seed: int, rate: float):
        self.net, self.seed = net, seed
        self.train, self.test = data
        self.size = transformer.Size()
        inputs = (jnp.asarray(self.test[None, : self.size.length]),)
        super().__init__(net.epochs, 100, rate, net.widths, inputs)

    def model(self, target: tuple[int, ...]) -> Any:
        return self.net.build(self.size.length, target, seed=self.seed)

    def groups(self, model: Any) -> volax.pairs.Groups:
        return volax.find_groups(transformer.forward, model, *self.inputs)

    def counts(
        self, groups: volax.pairs.Groups, target: tuple[int, ...]
    ) -> list[tuple[volax.pairs.Group, int]]:
        """MLP units and the channels of each head; all heads stay."""
        units, channels = target
        left = {"up": units, "value": channels}
        named = [(g, g.producers[0].path.rpartition("/")[2]) for g in groups]
        return [(group, left[name]) for group, name in named if name in left]

    def cost(self, model: Any) -> float:
        return super().cost(model) / self.size.length

    def fit(
        self,
        model: Any,
        tx: optax.GradientTransformation,
        epochs: Iterable[int],
        opt_state: Any = None,
    ) -> tuple[Any, Any]:
        numbers = list(epochs)
        seed = 1000 * self.seed + numbers[0]  # other pieces of the text in each phase
        steps = len(numbers) * self.steps
        return transformer.trained(
            tx, model, self.train, steps, self.size, seed, opt_state
        )

    def quality(self, model: Any) -> dict[str, float]:
        """Nats a letter on the rest of the text."""
        found = transformer.held_out(model, self.test, self.size.length)
        return {"loss": found}


# The transformer has no pairs for path_prox: GELU does not scale with its inputs.
METHODS: dict[str, Callable[[Study, Any], nnx.Module]] = {
    "small": small,
    "small held": small_held,
    "plain": plain,
    "magnitude": magnitude,
    "keep_units": keep_units,
    "keep_units global": keep_units_of_all,
    "path_prox": shrunk(path_rule(1.0)),
    "path_prox p=1/2": shrunk(path_rule(0.5)),
    "group_prox": shrunk(group_rule),
    "lp_decay": shrunk(lp_rule),
}


def measure(
    name: str, method: str, setting: Any, seed: int, rate: float, data: Any
) -> dict[str, Any]:
    """One run: what is left, how good it is, and how long it took."""
    net = NETS[name]
    study = (Letters if net.dataset == "letters" else Images)(net, data, seed, rate)
    began = time.perf_counter()
    model = METHODS[method](study, setting)
    seconds = time.perf_counter() - began
    return {
        **study.quality(model),
        "units": [group.size for group in study.groups(model)],
        "multiply_adds": study.cost(model),
        "seconds": round(seconds),
    }


_SETTINGS = ("net", "method", "setting", "seed", "rate", "validation")


def _run(runs: Runs, **settings: Any) -> dict[str, Any]:
    """The run with these settings, trained and printed where it is not known."""
    net, method, setting, seed, rate, share = (settings[name] for name in _SETTINGS)

    def make() -> dict[str, Any]:
        data = _data(NETS[net].dataset, share)
        return measure(net, method, setting, seed, rate, data)

    is_known = settings in runs
    row = runs(settings, make)
    if not is_known:
        print(json.dumps(row), flush=True)
    return row


@functools.lru_cache(maxsize=1)
def _data(name: str, share: float) -> Any:
    """Images, or letters to train on and to judge by."""
    if name != "letters":
        where = os.environ.get("VOLAX_DATA_DIR", "")
        return load_dataset(name, where, validation=share)
    text = transformer.letters()
    first = int(len(text) * (1 - transformer.HELD_OUT))
    if not share:
        return text[:first], text[first:]
    return text[: int(first * (1 - share))], text[int(first * (1 - share)) : first]


def _value(row: dict) -> float:
    """The more the better."""
    return row["accuracy"] if "accuracy" in row else -row["loss"]


def table(rows: Iterable[dict]) -> str:
    """A Markdown table: each setting's mean over its seeds, the largest net first."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["net"], row["method"], str(row["setting"]), row["rate"]

    lines = []
    for (net, method, setting, rate), found in itertools.groupby(
        sorted(rows, key=key), key
    ):
        runs = list(found)
        sign, digits = (100, 2) if "accuracy" in runs[0] else (-1, 3)
        values = sorted(abs(sign * _value(run)) for run in runs)
        units = " ".join(
            f"{statistics.mean(counts):.0f}"
            for counts in itertools.zip_longest(
                *(r["units"] for r in runs), fillvalue=0
            )
        )
        cost = statistics.mean(run["multiply_adds"] for run in runs)
        cells = (net, method, setting, f"{rate:g}", units, f"{cost:,.0f}")
        cells += (
            f"{statistics.mean(values):.{digits}f}",
            f"{values[0]:.{digits}f} to {values[-1]:.{digits}f}",
            f"{len(runs)}",
            f"{statistics.median(run['seconds'] for run in runs):.0f}",
        )
        lines.append((net, -cost, cells))
    head = ("net", "method", "setting", "rate", "units", "multiply-adds",
            "accuracy, % (loss)", "from, to", "seeds", "s")  # fmt: skip
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
    parser.add_argument("--rates", default="1e-3", help="of Adam")
    parser.add_argument("--search", type=float, default=1 / 6, help="share held out")
    parser.add_argument("--validation", type=float, default=0.0, help="share held out")
    parser.add_argument("--results", type=Path, default=Path("frontier.jsonl"))
    given = parser.parse_args(argv)
    nets, methods = given.nets.split(","), given.methods.split(",")
    for kind, names, known in (("net", nets, NETS), ("method", methods, METHODS)):
        if unknown := set(names) - known.keys():
            parser.error(f"unknown {kind}s: {', '.join(sorted(unknown))}")
    rates = [float(rate) for rate in given.rates.split(",")]
    print(_machine.header())
    runs, rows = Runs(given.results, _SETTINGS), []
    trial = functools.partial(_run, runs)
    for net, method in itertools.product(nets, methods):
        targets = [""] if method == "plain" else NETS[net].targets
        for target in targets:
            if given.settings not in str(target):
                continue
            rate = rates[0]
            if len(rates) > 1:
                is_small = method.startswith("small")
                tried = target if is_small else targets[len(targets) // 2]
                search = {"seed": 0, "validation": given.search}
                held = [
                    trial(net=net, method=method, setting=tried, rate=r, **search)
                    for r in rates
                ]
                rate = max(held, key=_value)["rate"]
            for seed in range(given.seeds):
                row = trial(
                    net=net,
                    method=method,
                    setting=target,
                    seed=seed,
                    rate=rate,
                    validation=given.validation,
                )
                rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
