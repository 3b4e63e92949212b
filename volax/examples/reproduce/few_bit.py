"""One or two bits a weight: may a network behind a wall be rounded without retraining?

Weights that are trained against a wall gather at it, so rounding them to -V and V, or
to -V, 0 and V, changes little (arXiv 2003.11243). The study rounds volumized networks
at the end of training, and during it every few epochs as the authors do, and compares
them with rounded plain ones and with straight-through training, which rounds the
weights in every forward pass. Biases stay as they are.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from matplotlib.figure import Figure

import volax
from volax.examples._figures import BLUE, GREEN, GREY, RED, plain_axes
from volax.examples.data import Loaded
from volax.examples.loop import State, follow, right
from volax.examples.models import build
from volax.examples.reproduce._study import (
    Aim,
    Chosen,
    Method,
    Result,
    Row,
    Task,
    Trials,
    told,
    worst_if_nan,
)

VERSION = 2
_BATCH = 128
_EVERY = 3  # epochs between two roundings
_FLOAT, _TERNARY, _BINARY = "float", "ternary", "binary"
_ROUND = {_TERNARY: volax.ternarize, _BINARY: volax.binarize}

_ADAM, _WALL, _SOMETIMES, _THROUGH = (
    "Adam",
    "volumized",
    f"volumized, rounded every {_EVERY} epochs",
    "straight-through",
)
_COLORS = {_ADAM: GREY, _WALL: RED, _SOMETIMES: GREEN, _THROUGH: BLUE}

# The most promising first, which are all that a quick study tries. Rounded weights
# have the scale of the wall, or that of least squares, for a whole leaf or for each
# output. A wall is a multiple of the largest initial weight of its leaf.
_FREE: Sequence[Mapping[str, Any]] = [
    {"learning_rate": rate, "scale": scale}
    for rate in (3e-3, 1e-3, 3e-4, 1e-4)
    for scale in ("output", "leaf")
]
_WALLED: Sequence[Mapping[str, Any]] = [
    {"learning_rate": rate, "volume": volume, "scale": scale}
    for volume, rate, scale in (
        (0.5, 3e-3, "wall"),
        (1.0, 3e-3, "output"),
        (0.5, 3e-3, "output"),
        (0.25, 3e-3, "wall"),
        (1.0, 3e-3, "wall"),
        (0.5, 1e-3, "wall"),
        (0.25, 1e-3, "wall"),
        (2.0, 3e-3, "output"),
    )
]


class Size(NamedTuple):
    """How much is measured."""

    networks: Sequence[tuple[str, str, int, int]]  # data, model, epochs, images a class
    widths: Mapping[str, Mapping[str, Sequence[int]]]  # of the models
    settings: int  # of each method that are tried
    bits: Sequence[str] = (_TERNARY, _BINARY)


_WIDTHS = {"mlp": {"hidden": (1024,)}, "lenet": {"widths": (6, 16, 120, 84)}}
FULL = Size(
    [
        ("mnist", "mlp", 15, 0),
        ("mnist", "lenet", 15, 1000),
        ("fashion_mnist", "mlp", 15, 0),
        ("fashion_mnist", "lenet", 15, 1000),
    ],
    _WIDTHS,
    8,
)
QUICK = Size([("mnist", "mlp", 12, 300)], _WIDTHS, 3)


def run(trials: Trials, size: Size) -> Result:
    """Find the best float, ternary and binary network of each method."""
    cases = [
        {
            **trials.source(dataset, per_class),
            "model": model,
            "epochs": epochs,
            **size.widths[model],
        }
        for dataset, model, epochs, per_class in size.networks
    ]
    train = partial(_train, trials)
    few = slice(size.settings)
    unbound, walled = _FREE[few], _WALLED[few]
    free = [Method(_ADAM, unbound), Method(_WALL, walled)]
    chosen = {_FLOAT: trials.search(cases, free, train, by=_FLOAT)}
    for bits in size.bits:
        # What is rounded in training is trained for these bits alone.
        own = [Method(f"{_SOMETIMES}: {bits}", walled)]
        own += [Method(f"{_THROUGH}: {bits}", unbound)]
        chosen[bits] = trials.search(cases, [*free, *own], train, by=bits)
    return Result(
        title="one or two bits a weight",
        head=("data, network", "weights", "method", "setting", "accuracy, %"),
        rows=[
            [*_cells(best, bits), best.cell(bits)]
            for case in cases
            for bits, choices in chosen.items()
            for best in choices
            if best.case == case
        ],
        text=_text(trials, size),
        aims=[aim for case in cases for aim in _aims(case, chosen)],
        figures={
            bits: [best._asdict() for best in choices]
            for bits, choices in chosen.items()
        },
        draw=partial(_draw, cases=cases, chosen=chosen),
    )


def _train(trials: Trials, task: Task) -> Row:
    """Accuracies of the network as it is trained and of its roundings."""
    case, setting = task.case, task.setting
    loaded = trials.data(task)
    method, _, bits = task.method.partition(": ")
    model = _network(loaded, case, task.seed)
    steps = len(loaded.dataset.train_labels) // _BATCH * case["epochs"]
    rate = optax.cosine_decay_schedule(setting["learning_rate"], steps)
    tx: optax.GradientTransformation = optax.adam(rate)
    walls, change = None, None
    if "volume" in setting:
        walls = _walls(nnx.to_pure_dict(nnx.state(model, nnx.Param)), setting["volume"])
        tx = optax.chain(tx, volax.volumize(walls))
    scale = {
        "wall": {"volume": walls},
        "leaf": {},
        "output": {"channel_axis": -1},
    }[setting["scale"]]
    rules = {name: partial(rule, **scale) for name, rule in _ROUND.items()}
    if method == _SOMETIMES:
        change = partial(_rounded, rules[bits])
    if method == _THROUGH:
        model = StraightThrough(model, rules[bits])
    model, rows = follow(
        model,
        tx,
        loaded.dataset,
        range(case["epochs"]),
        batch_size=_BATCH,
        seed=task.seed,
        change=change,
    )
    if not math.isfinite(rows[-1]["test_loss"]):  # no scale can be taken of a NaN
        return dict.fromkeys(("accuracy", _FLOAT, *_ROUND), math.nan)
    count = len(loaded.dataset.test_labels)
    found: Row = {"accuracy": [row["test_accuracy"] for row in rows]}
    if method == _THROUGH:  # rounds what it computes with
        return {**found, bits: found["accuracy"][-1]}
    found[_FLOAT] = found["accuracy"][-1]
    for name in [bits] if bits else _ROUND:
        found[name] = right(rules[name](model), loaded.dataset) / count
    return found


def _network(loaded: Loaded, case: Mapping[str, Any], seed: int) -> nnx.Module:
    names = _WIDTHS[case["model"]]
    sizes: dict[str, Any] = {name: tuple(case[name]) for name in names}
    return build(case["model"], loaded, rngs=nnx.Rngs(seed), **sizes)


def _walls(params: Any, scale: float) -> Any:
    """V of every kernel, a multiple of its largest weight; None for the biases."""
    return jax.tree.map(
        lambda w: scale * float(jnp.abs(w).max()) if w.ndim > 1 else None, params
    )


def _rounded(rule: Callable[[Any], Any], state: State, number: Any) -> State:
    """The state with rounded weights, after every few epochs."""
    due = (number + 1) % _EVERY == 0
    params = jax.tree.map(partial(jnp.where, due), rule(state.params), state.params)
    return state._replace(params=params)


class StraightThrough(nnx.Module):
    """A network that computes with rounded weights, with gradients as if it did not.

    Args:
      net: the network.
      rule: rounds a tree of its parameters.
    """

    def __init__(self, net: nnx.Module, rule: Callable[[Any], Any]):
        self.net, self.rule = net, rule

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map inputs to logits."""
        graph, params, rest = nnx.split(self.net, nnx.Param, ...)
        near = jax.tree.map(
            lambda w, q: w + jax.lax.stop_gradient(q - w), params, self.rule(params)
        )
        net: Any = nnx.merge(graph, near, rest)
        return net(x)


def _where(case: Mapping[str, Any]) -> str:
    return f"{case['dataset']}, {case['model']}"


def _cells(best: Chosen, bits: str) -> list[str]:
    method = best.method.partition(": ")[0]
    return [_where(best.case), bits, method, told(best.setting)]


def _of(chosen: Sequence[Chosen], case: Mapping[str, Any]) -> dict[str, Chosen]:
    """The choices of a case by method."""
    return {x.method.partition(": ")[0]: x for x in chosen if x.case == case}


def _aims(case: Mapping[str, Any], chosen: Mapping[str, Sequence[Chosen]]) -> list[Aim]:
    """What MNIST is to show, asked of every data set and network."""
    floats = _of(chosen[_FLOAT], case).values()
    best = max(floats, key=lambda x: worst_if_nan(x.mean(_FLOAT)))
    aims = []
    for bits, points in ((_TERNARY, 1), (_BINARY, 2)):
        choices = _of(chosen.get(bits, []), case)
        if not choices:
            continue
        walled = [choices[_WALL], choices[_SOMETIMES]]
        own = max(walled, key=lambda x: worst_if_nan(x.mean(bits)))
        within = best.mean(_FLOAT) - own.mean(bits) <= points / 100
        unit = "point" if points == 1 else "points"
        claim = f"{_where(case)}: {bits}, within {points} {unit} of the best float"
        told = f"{own.method.partition(': ')[0]} {own.cell(bits)}"
        aims.append(Aim(claim, within, f"{told}, float {best.cell(_FLOAT)}"))
        if (case["dataset"], case["model"], bits) == ("mnist", "mlp", _TERNARY):
            claim = f"{_where(case)}: {bits}, at least 98 %"
            aims.append(Aim(claim, own.mean(bits) >= 0.98, told))
        for rival in (_ADAM, _THROUGH):
            other = choices[rival]
            claim = f"{_where(case)}: {bits}, above {_RIVALS[rival]}"
            holds = own.mean(bits) > other.mean(bits)
            aims.append(Aim(claim, holds, f"{told}, {other.cell(bits)}"))
    return aims


_RIVALS = {_ADAM: "rounding plain Adam", _THROUGH: "straight-through training"}


def _text(trials: Trials, size: Size) -> str:
    return (
        f"Adam on a cosine, batches of {_BATCH}, {size.settings} settings of each "
        "method tried with one seed on held-out images by the accuracy of the rounded "
        f"network, the best trained with {trials.seeds}; ± is the standard deviation "
        "over the seeds. Adam and volumized are rounded once, when training has ended. "
        "All kernels are rounded, the first and the last as well, to the scale of the "
        "wall or to that of least squares, for a whole leaf or for each output."
    )


def _draw(
    figure: Figure,
    cases: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Sequence[Chosen]],
) -> None:
    figure.set_size_inches(4 * len(cases), 3.4)
    panels = figure.subplots(1, len(cases), squeeze=False)[0]
    for axes, case in zip(panels, cases):
        for place, (bits, choices) in enumerate(chosen.items()):
            for k, method in enumerate(_COLORS):
                best = _of(choices, case).get(method)
                if best is None:
                    continue
                values = [100 * value for value in best.values(bits)]
                axes.bar(
                    place + 0.2 * (k - 1.5),
                    statistics.fmean(values),
                    0.18,
                    yerr=100 * best.spread(bits),
                    color=_COLORS[method],
                    label=method if bits == _TERNARY else None,
                )
        heights = [bar.get_height() for bar in axes.patches]
        lowest = min(filter(math.isfinite, heights), default=0)
        axes.set_ylim(max(lowest - 5, 0), 100)
        axes.set_xticks(range(len(chosen)), list(chosen))
        axes.set_title(_where(case))
        plain_axes(axes)
    panels[0].set_ylabel("test accuracy (%)")
    handles, names = panels[0].get_legend_handles_labels()
    place = "outside lower center"
    figure.legend(handles, names, frameon=False, fontsize=8, ncols=2, loc=place)
