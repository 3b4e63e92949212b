"""The exponent of the decay: how many weights are zero, and what that costs.

Decay of the penalty |w|^p drives weights to zero, most of them for p < 1, and is to
generalize best for 1 < p < 2 (arXiv 2404.10824). The study trains three nets by Adam
with one exponent after the other and strengths over three decades, beside an l1 penalty
in the gradient and magnitude pruning with fine-tuning. Of each method two settings are
tested: the best one, and of those about as good as plain Adam the one with most zeros.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import volax
from volax.examples._figures import GREY, plain_axes
from volax.examples.data import Dataset
from volax.examples.loop import fit, scores
from volax.examples.models import build
from volax.examples.reproduce._study import (
    Aim,
    Chosen,
    Method,
    Result,
    Row,
    Setting,
    Task,
    Trials,
    told,
    worst_if_nan,
)

VERSION = 1
_PLAIN, _L1, _MAGNITUDE = "Adam", "l1 in the gradient", "magnitude, fine-tuned"
_MATRICES = volax.path_matches("(kernel|embedding)$")  # decayed, pruned and counted
_TYPICAL = 0.03  # a weight of this size feels a strength alike for every p
_GRADIENT = 3e-5  # the middle strength of the penalty in the gradient
_CUT = 1e-3  # where the gradient's penalty ends: it makes small weights, no zeros
_SNAP = 1e-13  # what the paper counts as zero
_FIRST = 0.6  # of the epochs come before magnitude pruning
_LOST = {"accuracy": 0.005, "loss": 0.02}  # against plain Adam, half a point or nats
_TASK = "mnist"  # of the claim on the share of zeros
_ZEROS = 0.97


class Net(NamedTuple):
    """A model, its data, and how it is trained."""

    model: str
    sizes: Mapping[str, Any]
    dataset: str
    per_class: int  # training images; 0 is all
    epochs: int
    batch: int
    learning_rate: float  # in the middle of those that are tried


class Size(NamedTuple):
    """How much is measured."""

    nets: Sequence[Net]
    powers: Sequence[float]
    settings: int  # of each method that are tried


_GPT = {"width": 64, "layers": 2, "heads": 4}
FULL = Size(
    (
        Net("mlp", {"hidden": [300, 100]}, "mnist", 0, 15, 128, 1e-3),
        Net("lenet", {}, "fashion_mnist", 0, 10, 128, 1e-3),
        Net("gpt", _GPT, "shakespeare", 0, 4, 32, 2e-3),
    ),
    (0.4, 0.6, 0.8, 1.0, 1.5, 2.0),
    7,
)
QUICK = Size(
    (Net("mlp", {"hidden": [300, 100]}, "mnist", 300, 20, 128, 5e-3),),
    (0.5, 1.0, 1.5),
    4,
)


class Curves(NamedTuple):
    """What was found on one net."""

    plain: Chosen
    best: list[Chosen]  # by quality
    sparse: list[Chosen]  # by zeros, of those about as good as plain Adam


def run(trials: Trials, size: Size) -> Result:
    """Train each net with each exponent, and compare zeros and quality."""
    found = [_compared(trials, size, _case(trials, net)) for net in size.nets]
    rows = [row for curves in found for row in _rows(curves)]
    return Result(
        title="zeros and quality by the exponent of the decay",
        head=(
            "net",
            "method",
            "best setting",
            "accuracy, % (loss)",
            "zeros, %",
            "sparsest setting",
            "accuracy, % (loss)",
            "zeros, %",
        ),
        rows=rows,
        text=_text(trials, size, found),
        aims=[aim for curves in found for aim in _aims(curves)],
        figures={
            "nets": [
                {
                    "plain": curves.plain._asdict(),
                    "best": [best._asdict() for best in curves.best],
                    "sparse": [best._asdict() for best in curves.sparse],
                }
                for curves in found
            ]
        },
        draw=partial(_draw, found=found),
    )


def _case(trials: Trials, net: Net) -> dict[str, Any]:
    return {**net._asdict(), **trials.source(net.dataset, net.per_class)}


def _compared(trials: Trials, size: Size, case: Setting) -> Curves:
    """Plain Adam's rate, and with it both choices of the other methods."""
    train = partial(_train, trials)
    rates = case["learning_rate"] * np.geomspace(0.3, 3, size.settings)
    plain = Method(_PLAIN, [{"learning_rate": _rounded(rate)} for rate in rates])
    (plain,) = trials.search([case], [plain], train, by="quality")
    known = [row["value"] for row in plain.tried if row["value"] is not None]
    least = max(known, default=-math.inf) - _LOST[_measure(case)]
    methods = _methods(size, plain.setting["learning_rate"])
    best = trials.search([case], methods, train, by="quality")
    sparse = trials.search([case], methods, train, by=partial(_sparsity, least))
    return Curves(plain, best, sparse)


def _methods(size: Size, learning_rate: float) -> list[Method]:
    """The grids, all of one size and with one learning rate."""
    factors = 10 ** np.linspace(-1.5, 1.5, size.settings)
    decays = [
        Method(
            f"p = {p:g}",
            [{"p": p, "strength": _rounded(_TYPICAL ** (2 - p) * f)} for f in factors],
        )
        for p in size.powers
    ]
    penalties = [{"strength": _rounded(_GRADIENT * f)} for f in factors]
    left = np.geomspace(0.5, 0.01, size.settings)
    shares = [{"share": _rounded(1 - share)} for share in left]
    methods = [*decays, Method(_L1, penalties), Method(_MAGNITUDE, shares)]
    rate = {"learning_rate": learning_rate}
    return [Method(name, [{**rate, **own} for own in grid]) for name, grid in methods]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _measure(case: Setting) -> str:
    """What is judged: the loss of a text, the accuracy on images."""
    return "loss" if case["model"] == "gpt" else "accuracy"


def _sparsity(least: float, row: Row) -> float | None:
    """Zeros, from 1 on, of a run that is good enough; below 0 what another lacks."""
    if row["quality"] is None:
        return None
    if row["quality"] < least:
        return row["quality"] - least
    return 1 + row["zeros"]


def _train(trials: Trials, task: Task) -> Row:
    """Loss, accuracy and share of zeros of a run; of `quality` more is better."""
    case, loaded = task.case, trials.data(task)
    data = loaded.dataset
    rngs = nnx.Rngs(task.seed)
    model = build(case["model"], loaded, rngs=rngs, **case["sizes"])
    epochs, steps = case["epochs"], len(data.train_labels) // case["batch"]
    train = partial(_fit, data=data, task=task)

    def cosine(rate: float, count: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(rate, count * steps)

    rate = task.setting["learning_rate"]
    if task.method == _MAGNITUDE:
        first = math.ceil(_FIRST * epochs)
        model = train(model, optax.adam(cosine(rate, first)), epochs=range(first))
        model = _changed(model, partial(_pruned, task.setting["share"]))
        slow = optax.adam(cosine(rate / 2, max(epochs - first, 1)))
        held = optax.masked(optax.stateless_with_tree_map(_held), _MATRICES.tree)
        model = train(model, optax.chain(slow, held), epochs=range(first, epochs))
    else:
        tx = _optimizer(task, cosine(rate, epochs))
        model = train(model, tx, epochs=range(epochs))
    if task.method == _L1:
        model = _changed(model, _cut)
    found = scores(model, data)
    loss, accuracy = found["test_loss"], found["test_accuracy"]
    quality = -loss if _measure(case) == "loss" else accuracy
    return {
        "quality": quality if math.isfinite(loss) else math.nan,
        "accuracy": accuracy,
        "loss": loss,
        "zeros": _zeros(model),
    }


def _fit(model: Any, tx: Any, *, data: Dataset, task: Task, epochs: range) -> Any:
    batch = task.case["batch"]
    return fit(model, tx, data, epochs, batch_size=batch, seed=task.seed)[0]


def _optimizer(task: Task, rate: optax.Schedule) -> optax.GradientTransformation:
    adam = optax.adam(rate)
    if task.method == _PLAIN:
        return adam
    if task.method == _L1:
        strength = task.setting["strength"]

        def penalized(gradient: Any, weight: Any) -> jax.Array:
            return gradient + strength * jnp.sign(weight)

        penalty = optax.stateless_with_tree_map(penalized)
        return optax.chain(optax.masked(penalty, _MATRICES.tree), adam)
    decay = volax.lp_decay(
        rate,
        task.setting["strength"],
        task.setting["p"],
        snap_below=_SNAP,
        mask=_MATRICES,
    )
    return optax.chain(adam, decay)


def _held(update: Any, weight: Any) -> jax.Array:
    """The update without the weights that are zero."""
    return jnp.where(weight == 0, 0, update)


def _weights(params: Any) -> tuple[list[jax.Array], list[bool]]:
    """The leaves, and which of them are counted."""
    leaves, chosen = jax.tree.leaves(params), _MATRICES.tree(params)
    return leaves, jax.tree.leaves(chosen)


def _changed(model: Any, change: Any) -> Any:
    """The model with other matrices: `change` maps the list of them to a new one."""
    graph, state, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.to_pure_dict(state)
    leaves, chosen = _weights(params)
    made = iter(change([np.asarray(x) for x, own in zip(leaves, chosen) if own]))
    leaves = [jnp.asarray(next(made)) if own else x for x, own in zip(leaves, chosen)]
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return nnx.merge(graph, params, rest)


def _pruned(share: float, weights: list[np.ndarray]) -> list[np.ndarray]:
    """The weights without this share of them all, the smallest."""
    least = np.quantile(np.concatenate([np.abs(w).ravel() for w in weights]), share)
    return [np.where(np.abs(w) < least, np.float32(0), w) for w in weights]


def _cut(weights: list[np.ndarray]) -> list[np.ndarray]:
    return [np.where(np.abs(w) < _CUT, np.float32(0), w) for w in weights]


def _zeros(model: Any) -> float:
    """The share of the matrices' weights that are exactly zero."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    weights = [np.asarray(leaf) for leaf, own in zip(*_weights(params)) if own]
    nonzero = sum(np.count_nonzero(w) for w in weights)
    return 1 - nonzero / sum(w.size for w in weights)


def _quality(best: Chosen) -> str:
    """The accuracy, or the loss, in a cell."""
    if _measure(best.case) == "loss":
        return f"({best.cell('loss', 1, 3)})"
    return best.cell("accuracy")


def _name(case: Setting) -> str:
    return f"{case['model']}, {case['dataset']}"


def _rows(curves: Curves) -> Iterator[list[str]]:
    plain = curves.plain
    cells = [told(plain.setting), _quality(plain), plain.cell("zeros", digits=1)]
    yield [_name(plain.case), plain.method, *cells, "-", "-", "-"]
    for pair in zip(curves.best, curves.sparse):
        cells = [
            cell
            for best in pair
            for cell in (
                _setting(best.setting), _quality(best), best.cell("zeros", digits=1)
            )
        ]  # fmt: skip
        yield [_name(pair[0].case), pair[0].method, *cells]


def _setting(setting: Setting) -> str:
    """A setting without the exponent of the method's name and the rate of all."""
    own = {k: v for k, v in setting.items() if k not in ("p", "learning_rate")}
    return told(own)


def _sparsest(curves: Curves, names: Sequence[str]) -> Chosen | None:
    """The choice of these methods with most zeros that tests as well as plain Adam."""
    least = curves.plain.mean("quality") - _LOST[_measure(curves.plain.case)]
    good = [
        choice
        for choice in curves.sparse
        if choice.method in names and choice.mean("quality") >= least
    ]
    return max(good, key=lambda choice: choice.mean("zeros"), default=None)


def _told(name: str, choice: Chosen | None) -> str:
    """A choice in the figures of an aim."""
    if choice is None:
        return f"{name}: none within"
    zeros = choice.cell("zeros", digits=1)
    return f"{choice.method}: {zeros} % zeros at {_quality(choice)}"


def _aims(curves: Curves) -> list[Aim]:
    case = curves.plain.case
    name, decays = _name(case), _decays(curves)
    lost = "half a point" if _measure(case) == "accuracy" else "0.02 nats"
    sparsest = _sparsest(curves, list(decays))
    others = {other: _sparsest(curves, [other]) for other in (_L1, _MAGNITUDE)}
    zeros = 0 if sparsest is None else sparsest.mean("zeros")
    top = max(
        (best for best in curves.best if best.method in decays),
        key=lambda best: worst_if_nan(best.mean("quality")),
    )
    aims = [
        Aim(
            f"{name}: most zeros within {lost} of plain Adam are those of a p below 1",
            sparsest is not None and decays[sparsest.method] < 1,
            _told("lp_decay", sparsest),
        ),
        Aim(
            f"{name}: the p that generalizes best lies between 1 and 2",
            1 < decays[top.method] < 2,
            f"{top.method}: {_quality(top)}, plain {_quality(curves.plain)}",
        ),
        Aim(
            f"{name}: within {lost} it has more zeros than an l1 penalty in the "
            "gradient and than magnitude pruning",
            all(
                zeros > (0 if other is None else other.mean("zeros"))
                for other in others.values()
            ),
            "; ".join(
                [_told("lp_decay", sparsest)]
                + [_told(other, choice) for other, choice in others.items()]
            ),
        ),
    ]
    if case["dataset"] == _TASK:
        claim = f"{name}: at least {100 * _ZEROS:g} % zeros within {lost} of plain Adam"
        told_zeros = f"{_told('lp_decay', sparsest)}, plain {_quality(curves.plain)}"
        aims.append(Aim(claim, zeros >= _ZEROS, told_zeros))
    return aims


def _decays(curves: Curves) -> dict[str, float]:
    """The exponents by the names of their methods."""
    settings = {best.method: best.setting for best in curves.best}
    return {name: setting["p"] for name, setting in settings.items() if "p" in setting}


def _text(trials: Trials, size: Size, found: Sequence[Curves]) -> str:
    text = (
        f"Adam with a cosine to zero, {size.settings} settings of each method tried "
        "with one seed on held-out examples, at the learning rate that was the best of "
        "as many for plain Adam. The best by accuracy (text: by loss), and "
        "the one with most zeros of those within half a point (0.02 nats) of the best "
        f"plain Adam, were trained with {trials.seeds} seeds; ± is the standard "
        f"deviation over them. Weights below {_SNAP:g} are zero, those of the l1 "
        f"penalty below {_CUT:g} at the end; biases and norms are neither decayed nor "
        "counted."
    )
    for curves in found:
        sparsest = _sparsest(curves, list(_decays(curves)))
        if sparsest is not None:
            left = 1 / max(1 - sparsest.mean("zeros"), 1e-12)
            text += (
                f" On {_name(curves.plain.case)} one weight in {left:,.0f} is left by "
                f"{sparsest.method} with strength {sparsest.setting['strength']:g}."
            )
    return text


def _draw(figure: Figure, found: Sequence[Curves]) -> None:
    figure.set_size_inches(4.6 * len(found), 3.8)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, curves in zip(panels, found):
        case = curves.plain.case
        scale = 100 if _measure(case) == "accuracy" else -1
        decays = _decays(curves)
        shades = _shades(len(decays))
        for best in curves.best:
            rows = [row["figures"] for row in best.tried]
            rows = [row for row in rows if row["quality"] and row["zeros"] < 1]
            style = {"color": "black", "linestyle": ":" if best.method == _L1 else "--"}
            if best.method in decays:
                style = {"color": next(shades)}
            axes.plot(
                [100 - 100 * row["zeros"] for row in rows],
                [scale * row["quality"] for row in rows],
                marker="o",
                markersize=3,
                label=best.method,
                **style,
            )
        known = [row["value"] for row in curves.plain.tried if row["value"] is not None]
        if known:
            best = scale * max(known)
            axes.axhline(best, color=GREY, label=_PLAIN)
            low = max(known) - 10 * _LOST[_measure(case)]
            high = max(known) + 3 * _LOST[_measure(case)]
            axes.set_ylim(*sorted((scale * low, scale * high)))
        axes.set(title=_name(case), xlabel="weights left (%)", xscale="log")
        axes.invert_xaxis()
        axes.set_ylabel(f"held-out {_measure(case)}{' (%)' if scale > 0 else ''}")
        plain_axes(axes)
    panels[-1].legend(frameon=False, fontsize="small")


def _shades(count: int) -> Iterator[Any]:
    """Colours from dark to light for rising exponents."""
    from matplotlib import colormaps

    return iter(colormaps["plasma"](np.linspace(0, 0.85, count)))
