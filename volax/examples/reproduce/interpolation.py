"""Between weight decay and clipping: what a wall does to bias and variance.

Volumization interpolates L2 and L-infinity and controls the trade-off of bias and
variance (arXiv 2003.11243). The study compares single steps: those of `V = 0` with
weight decay, those of `alpha = 0` with clipping. Then it trains the same model on many
training sets and splits the error over them: bias^2 is that of the mean prediction,
variance the mean square distance from it. In the regression $y = x w + noise$ the right
answer is known; on images, of whose labels a share is wrong in the training sets, it is
the right label, and the square error of the probabilities is split.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from matplotlib.figure import Figure

import volax
from volax.examples._figures import BLUE, GREEN, RED, plain_axes
from volax.examples.data import CLASSES, Dataset
from volax.examples.loop import Loop
from volax.examples.models import MLP
from volax.examples.reproduce._study import (
    Aim,
    Chosen,
    Result,
    Row,
    Task,
    Trials,
    worst_if_nan,
)

VERSION = 1
_FEATURES, _EXAMPLES, _NOISE, _RATE = 32, 40, 1.0, 0.3  # of the regression
_BATCH, _IMAGE_RATE, _JUDGED, _WRONG = 50, 3e-3, 2000, 0.2  # of the images
_COMPARED, _WALL, _KEPT = 100, 0.05, 0.999  # steps, V and alpha of the comparison
_TOLERANCE = 1e-5  # of the largest weight, in float32

_OPEN = {"volume": 0.0, "alpha": 1.0}  # no wall and no decay
_CLIPPING = [
    {"volume": volume, "alpha": 0.0}
    for volume in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)
]
_DECAY = [
    {"volume": 0.0, "alpha": 1 - _RATE * strength}
    for strength in (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
]
_SOFT = [{"volume": 0.2, "alpha": alpha} for alpha in (0.0, 0.5, 0.9, 0.99, 0.999)]
_IMAGES = [
    {"scale": scale, "alpha": 0.0} for scale in (0.1, 0.3, 0.5, 0.7, 1.0, 2.0, 4.0)
]
_OPEN_IMAGES = {"scale": 1.0, "alpha": 1.0}


class Size(NamedTuple):
    """How much is measured."""

    sets: int  # training sets of the regression
    steps: int  # with each of them
    images: int  # training sets of images
    per_set: int  # images in each
    hidden: int
    epochs: int
    per_class: int  # images of which the sets are drawn; 0 is all
    every: int  # of the settings one in so many is measured


FULL = Size(500, 3000, 20, 1000, 256, 60, 0, 1)
QUICK = Size(100, 3000, 5, 500, 64, 60, 300, 2)


def run(trials: Trials, size: Size) -> Result:
    """Compare single steps, then measure bias and variance over V."""
    source = trials.source("mnist", size.per_class)
    known = {"sets": size.sets, "steps": size.steps}
    names = ("images", "per_set", "hidden", "epochs")
    images = source | {name: getattr(size, name) for name in names}
    images["noise"] = _WRONG
    few = slice(None, None, size.every)
    plan: dict[str, tuple[str, Mapping[str, Any], Sequence[Mapping[str, Any]]]] = {
        "steps": ("steps", source, [{"rule": rule} for rule in _RULES]),
        "clipping": ("regression", known, [*_CLIPPING[few], _OPEN]),
        "weight decay": ("regression", known, [*_DECAY[few], _OPEN]),
        "soft wall": ("regression", known, [*_SOFT[few], _OPEN]),
        "clipping, images": ("images", images, [*_IMAGES[few], _OPEN_IMAGES]),
    }
    trials.expect(trials.seeds * sum(len(settings) for _, _, settings in plan.values()))
    found = {
        name: [_point(trials, case, method, setting) for setting in settings]
        for name, (method, case, settings) in plan.items()
    }
    curves = {name: points for name, points in found.items() if name != "steps"}
    return Result(
        title="weight decay, clipping and what lies between",
        head=("", "V", "alpha", "bias²", "variance", "error"),
        rows=[
            [name, *_cells(point)]
            for name, points in curves.items()
            for point in points
        ],
        text=_text(size, source["dataset"], curves),
        aims=[*_same(found["steps"]), *_trade_offs(curves)],
        figures={k: [point._asdict() for point in v] for k, v in found.items()},
        draw=partial(_draw, curves=curves),
    )


def _point(
    trials: Trials, case: Mapping[str, Any], method: str, setting: Mapping[str, Any]
) -> Chosen:
    """A setting with every seed; nothing is chosen here."""
    train = partial(_TRAIN[method], trials)
    tasks = [Task(case, method, setting, seed, "test") for seed in range(trials.seeds)]
    return Chosen(
        case, method, setting, [], [trials.run(task, train) for task in tasks]
    )


# Step by step: the wall, and what Optax has for the same.


def _decayed_sgd(rate: float, decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))


def _decayed_adam(rate: float, decay: float) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=decay)


def _clipped(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    def clip(updates, params):
        return jax.tree.map(
            lambda p, u: jnp.clip(p + u, -_WALL, _WALL) - p, params, updates
        )

    return optax.chain(inner, optax.stateless(clip))


# Decay by the factor alpha after a step of rate eta is decoupled decay of the strength
# (1 - alpha) / (alpha eta) at the rate alpha eta: alpha (p - eta u) = p - alpha eta u -
# (1 - alpha) p.
_RULES: dict[str, Callable[[float], tuple[Any, Any]]] = {
    "V = 0, SGD": lambda rate: (
        optax.chain(optax.sgd(rate), volax.volumize(0.0, _KEPT, mask="all")),
        _decayed_sgd(_KEPT * rate, (1 - _KEPT) / (_KEPT * rate)),
    ),
    "V = 0, Adam": lambda rate: (
        optax.chain(optax.adam(rate), volax.volumize(0.0, _KEPT, mask="all")),
        _decayed_adam(_KEPT * rate, (1 - _KEPT) / (_KEPT * rate)),
    ),
    "alpha = 0, SGD": lambda rate: (
        optax.chain(optax.sgd(rate), volax.volumize(_WALL, mask="all")),
        _clipped(optax.sgd(rate)),
    ),
    "alpha = 0, Adam": lambda rate: (
        optax.chain(optax.adam(rate), volax.volumize(_WALL, mask="all")),
        _clipped(optax.adam(rate)),
    ),
}


def _compare(trials: Trials, task: Task) -> Row:
    """How far the steps of the wall and of Optax lie apart, on two problems."""
    keys = jax.random.split(jax.random.key(task.seed), 3)
    inputs, targets = _draw_examples(keys[0], keys[1])

    def squared(weights):
        return jnp.square(inputs @ weights - targets).mean() / 2

    data = trials.data(task).dataset
    model = _network(data, 32, task.seed)
    graph, params = nnx.split(model)
    images = jnp.asarray(data.train_inputs[:500])
    labels = jnp.asarray(data.train_labels[:500])

    def entropy(params):
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    start = 0.1 * jax.random.normal(keys[2], (_FEATURES, 1))
    own, other = _RULES[task.setting["rule"]](1e-2)
    return {
        "regression": _gap(own, other, start, squared),
        "images": _gap(own, other, params, entropy),
    }


def _gap(
    own: optax.GradientTransformation,
    other: optax.GradientTransformation,
    params: Any,
    loss: Callable[[Any], jax.Array],
) -> jax.Array:
    """The largest difference that a step makes, in the largest weight's.

    Each step is taken by both from the weights of the first: Adam divides gradients by
    their size, so that roundings of a weight whose gradient is next to nothing grow to
    whole steps, of two programs for the same formula too.
    """

    def step(carry, _):
        params, states = carry
        gradient = jax.grad(loss)(params)
        (a, first), (b, second) = (
            tx.update(gradient, state, params)
            for tx, state in zip((own, other), states)
        )
        a, b = (optax.apply_updates(params, updates) for updates in (a, b))
        gap = optax.tree.norm(optax.tree.sub(a, b), ord=jnp.inf)
        return (a, (first, second)), gap / optax.tree.norm(a, ord=jnp.inf)

    def train(params):
        first = params, (own.init(params), other.init(params))
        return jax.lax.scan(step, first, length=_COMPARED)[1].max()

    return jax.jit(train)(params)


# Bias and variance


def _draw_examples(where: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A training set of the regression: inputs [n, features], noise [n, 1]."""
    inputs = jax.random.normal(where, (_EXAMPLES, _FEATURES))
    return inputs, _NOISE * jax.random.normal(noise, (_EXAMPLES, 1))


@lru_cache
def _regression(sets: int, steps: int) -> Callable[..., dict[str, jax.Array]]:
    """Trains on all sets of a seed, compiled once for all walls."""

    @jax.jit
    def measure(seed, volume, alpha):
        where, noise, right, test = jax.random.split(jax.random.key(seed), 4)
        answer = jax.random.uniform(right, (_FEATURES, 1), minval=-0.5, maxval=0.5)
        tx = optax.chain(optax.sgd(_RATE), volax.volumize(volume, alpha))

        def trained(where, noise):
            inputs, added = _draw_examples(where, noise)
            targets = inputs @ answer + added

            def step(carry, _):
                weights, state = carry
                gradient = inputs.T @ (inputs @ weights - targets) / _EXAMPLES
                updates, state = tx.update(gradient, state, weights)
                return (optax.apply_updates(weights, updates), state), None

            weights = jnp.zeros((_FEATURES, 1))
            first = weights, tx.init(weights)
            return jax.lax.scan(step, first, length=steps)[0][0]

        keys = jax.random.split(where, sets), jax.random.split(noise, sets)
        weights: Any = jax.vmap(trained)(*keys)
        inputs = jax.random.normal(test, (_JUDGED, _FEATURES))
        return _split(inputs @ weights, inputs @ answer)

    return measure


def _measure_regression(trials: Trials, task: Task) -> Row:
    del trials
    measure = _regression(task.case["sets"], task.case["steps"])
    return measure(task.seed, task.setting["volume"], task.setting["alpha"])


def _measure_images(trials: Trials, task: Task) -> Row:
    """Trains on sets drawn anew of the same images; one network, one order."""
    case = task.case
    data = trials.data(task, label_noise=case["noise"]).dataset
    model = _network(data, case["hidden"], task.seed)
    wall = volax.relative_to_init(task.setting["scale"])
    rule = volax.volumize(wall, task.setting["alpha"])
    tx = optax.chain(optax.adam(_IMAGE_RATE), rule)
    loop = Loop(model, tx, _BATCH, task.seed)

    @jax.jit
    def predict(rows: jax.Array, data: Dataset) -> jax.Array:
        own = data._replace(
            train_inputs=data.train_inputs[rows], train_labels=data.train_labels[rows]
        )

        def epoch(state, number):
            return loop.epoch(state, number, own)

        state, _ = jax.lax.scan(epoch, loop.start(), jnp.arange(case["epochs"]))
        logits = loop.module(state.params, state.rest)(data.test_inputs[:_JUDGED])
        return jax.nn.softmax(logits)

    keys = jax.random.split(jax.random.key(task.seed), case["images"])
    count = len(data.train_labels)
    guesses = jnp.stack(
        [
            predict(jax.random.permutation(key, count)[: case["per_set"]], data)
            for key in keys
        ]
    )
    answer = jax.nn.one_hot(data.test_labels[:_JUDGED], CLASSES)
    right = guesses.argmax(-1) == data.test_labels[:_JUDGED]
    return {**_split(guesses, answer), "accuracy": right.mean()}


def _split(guesses: jax.Array, answer: jax.Array) -> dict[str, jax.Array]:
    """Square error [sets, n, k] against [n, k], summed over k, and its two parts."""
    mean = guesses.mean(0)

    def size(gap: jax.Array) -> jax.Array:
        return jnp.square(gap).sum(-1).mean()

    return {
        "bias": size(mean - answer),
        "variance": size(guesses - mean),
        "error": size(guesses - answer),
    }


def _network(data: Dataset, hidden: int, seed: int) -> MLP:
    return MLP(data.train_inputs.shape[1], (hidden,), CLASSES, rngs=nnx.Rngs(seed))


_TRAIN: dict[str, Callable[[Trials, Task], Row]] = {
    "steps": _compare,
    "regression": _measure_regression,
    "images": _measure_images,
}


# What is told of it


def _cells(point: Chosen) -> list[str]:
    setting = point.setting
    if setting in (_OPEN, _OPEN_IMAGES):
        volume = "none"
    elif "scale" in setting:
        volume = f"{setting['scale']:g} times initial"
    else:
        volume = f"{setting['volume']:g}"
    parts = [point.cell(name, 1, 4) for name in ("bias", "variance", "error")]
    return [volume, f"{setting['alpha']:g}", *parts]


def _same(steps: Sequence[Chosen]) -> list[Aim]:
    aims = []
    for rule, same in (("V = 0", "weight decay"), ("alpha = 0", "clipping")):
        points = [x for x in steps if x.setting["rule"].startswith(rule)]
        gaps = {
            f"{point.setting['rule'].partition(', ')[2]} on {problem}": max(
                point.values(problem)
            )
            for point in points
            for problem in ("regression", "images")
        }
        told = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
        aims.append(
            Aim(
                f"{rule} is {same}: each of {_COMPARED} steps leads to the same",
                all(gap <= _TOLERANCE for gap in gaps.values()),
                f"largest difference, in the largest weight's: {told}",
            )
        )
    return aims


def _trade_offs(curves: Mapping[str, Sequence[Chosen]]) -> list[Aim]:
    aims = []
    for name in ("clipping", "clipping, images"):
        bias, variance, error = _parts(curves[name])
        claim = f"{name}: from the smallest V on, bias falls and variance rises"
        falls, rises = bias[0] > bias[-1], variance[0] < variance[-1]
        told = (
            f"bias² {bias[0]:.3g} to {bias[-1]:.3g}, "
            f"variance {variance[0]:.3g} to {variance[-1]:.3g}"
        )
        aims.append(Aim(claim, falls and rises, told))
        best = max(curves[name], key=lambda x: worst_if_nan(-x.mean("error")))
        ends = min(error[0], error[-1])
        inside = best.mean("error") + best.spread("error") < ends
        told = (
            f"{best.cell('error', 1, 3)}, at the ends {error[0]:.3g} and "
            f"{error[-1]:.3g}"
        )
        claim = f"{name}: the error is smallest at a V in between, by over the spread"
        aims.append(Aim(claim, inside, told))
    _, variance, _ = _parts(curves["soft wall"])
    told = ", ".join(f"{x:.3g}" for x in variance)
    claim = "soft wall: the variance grows with alpha, from clipping to no wall"
    grows = all(a <= b for a, b in pairwise(variance))
    aims.append(Aim(claim, grows, told))
    return aims


def _parts(points: Sequence[Chosen]) -> list[list[float]]:
    names = ("bias", "variance", "error")
    return [[point.mean(name) for point in points] for name in names]


def _text(size: Size, dataset: str, curves: Mapping[str, Sequence[Chosen]]) -> str:
    best = {
        name: max(points, key=lambda x: worst_if_nan(-x.mean("error")))
        for name, points in curves.items()
    }
    told = "; ".join(
        f"{name} {point.mean('error'):.3g} (V {_cells(point)[0]}, "
        f"alpha {point.setting['alpha']:g})"
        for name, point in best.items()
    )
    return (
        f"A linear regression with {_FEATURES} weights of up to 0.5 and {_EXAMPLES} "
        f"examples with noise of deviation {_NOISE:g}, {size.sets} training sets; a "
        f"net with {size.hidden} hidden units on {size.images} sets of "
        f"{size.per_set:,} images of {dataset}, {100 * _WRONG:g} % of them with wrong "
        f"labels, {size.epochs} epochs of Adam. Bias² and variance are of the "
        "prediction, on images of the probabilities; ± is the standard deviation over "
        f"the seeds. The smallest errors: {told}."
    )


def _draw(figure: Figure, curves: Mapping[str, Sequence[Chosen]]) -> None:
    figure.set_size_inches(3.2 * len(curves), 3.2)
    panels = figure.subplots(1, len(curves))
    for axes, (name, points) in zip(panels, curves.items()):
        places = range(len(points))
        for part, values, color in zip(
            ("bias²", "variance", "error"), _parts(points), (BLUE, RED, GREEN)
        ):
            axes.plot(places, values, color=color, marker="o", linewidth=2, label=part)
        key = 0 if name.startswith("clipping") else 1
        axes.set_xticks(places, [_tick(point, key) for point in points], fontsize=7)
        unit = "V, times the initial maximum" if "images" in name else "V"
        axes.set(title=name, xlabel=(unit, "alpha")[key], ylim=(0, None))
        plain_axes(axes)
    panels[0].legend(frameon=False)


def _tick(point: Chosen, key: int) -> str:
    return "none" if point.setting == _OPEN else _cells(point)[key].partition(" ")[0]
