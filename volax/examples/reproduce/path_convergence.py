"""Path penalty or weight decay: which reaches their common minimum in fewer steps?

The minimum of weight decay is that of a sum of products of norms, one for each ReLU
unit, and the proximal step of that sum is to reach it sooner (arXiv 2210.03069). The
study trains the authors' two nets of three pairs of dense layers by SGD at a constant
rate, and follows loss + strength * path norm on all training images, and the units that
are left. The best rate of each method is the one at which that objective ends lowest.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import volax
from volax.examples._figures import BLUE, GREEN, GREY, RED, plain_axes
from volax.examples.data import CLASSES, Dataset
from volax.examples.loop import Loop, State
from volax.examples.reproduce._study import (
    Aim,
    Chosen,
    Method,
    Result,
    Row,
    Task,
    Trials,
    by_case,
    told,
)

VERSION = 1
_DECAY, _PROJECT, _BALANCE = "decay", "project", "balance"
_RESCALE, _NONE = "rescale", "none"
_COLORS = {
    _DECAY: GREY,
    _PROJECT: RED,
    _BALANCE: BLUE,
    _RESCALE: GREEN,
    _NONE: "black",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    _PROJECT: {"normalize": "project"},
    _BALANCE: {"normalize": "project", "balance": True},
    _RESCALE: {"normalize": "rescale"},
    _NONE: {"normalize": "none"},
}
_SUBSET, _WHOLE = "MNIST subset", "MNIST"  # the names of the authors' recipes
_PUBLISHED = {_SUBSET: 0.3, _WHOLE: 0.1}  # the rates of the authors' scripts
_UNITS_LEFT = 0.13  # read off the authors' plot of the subset


class Recipe(NamedTuple):
    """A net and how long it is trained."""

    name: str
    per_class: int  # training images; 0 is all
    steps: int


class Size(NamedTuple):
    """How much is measured."""

    recipes: Sequence[Recipe]
    hidden: int
    strength: float
    batch: int
    points: int  # of a curve
    rates: Sequence[float]
    methods: Sequence[str] = tuple(_COLORS)  # of which decay is one


FULL = Size(
    (Recipe(_SUBSET, 100, 40_000), Recipe(_WHOLE, 0, 20_000)),
    400,
    1e-4,
    200,
    40,
    (0.3, 0.2, 0.1),
)
# A larger strength makes up for fewer steps.
QUICK = Size((Recipe(_SUBSET, 100, 2000),), 64, 2e-3, 200, 20, (0.3, 0.2, 0.1))


class _Net(nnx.Module):
    """Six dense layers in three pairs, as the authors begin them: uniform weights.

    A ReLU stands inside each pair; between two pairs only where `is_deep`.
    """

    def __init__(self, images: np.ndarray, hidden: int, is_deep: bool, seed: int):
        rngs = nnx.Rngs(seed)
        self.mean, self.spread = images.mean().item(), images.std().item()
        self.is_deep = is_deep
        widths = pairwise((images.shape[1], *(hidden,) * 5, CLASSES))
        self.layers = nnx.List(_dense(*width, rngs) for width in widths)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images [batch, pixels] to logits [batch, classes]."""
        x = (x - self.mean) / self.spread
        for number, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.is_deep or number % 2 == 0:
                x = nnx.relu(x)
        return self.layers[-1](x)


def _dense(inside: int, outside: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A layer whose weights and biases begin uniform in 1/sqrt(fan-in)."""
    bound = inside**-0.5

    def draw(key: Any, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(inside, outside, kernel_init=draw, bias_init=draw, rngs=rngs)


def run(trials: Trials, size: Size) -> Result:
    """Train each recipe with weight decay and with the path penalty's steps."""
    cases = [
        {
            **trials.source("mnist", recipe.per_class),
            "recipe": recipe.name,
            "steps": recipe.steps,
            "hidden": size.hidden,
            "strength": size.strength,
            "batch": size.batch,
            "points": size.points,
        }
        for recipe in size.recipes
    ]
    grid = [{"learning_rate": rate} for rate in size.rates]
    methods = [Method(name, grid) for name in size.methods]
    chosen = trials.search(cases, methods, partial(_train, trials), by="score")
    return Result(
        title="loss + strength * path norm, and the units left",
        head=(
            "recipe",
            "method",
            "setting",
            "objective at the end, 1/1000",
            "units active, %",
            "test accuracy, %",
            "training images all right after steps",
            "where decay ends after steps",
        ),
        rows=[_cells(best, with_it[_DECAY]) for with_it, best in _each(chosen)],
        text=_text(trials, size, chosen),
        aims=[
            aim for found in by_case(chosen, "recipe").values() for aim in _aims(found)
        ],
        figures={"chosen": [best._asdict() for best in chosen]},
        draw=partial(_draw, chosen=chosen),
    )


def _train(trials: Trials, task: Task) -> Row:
    """The curves of a run, and where they end; `score` is the objective's negative."""
    case, data = task.case, trials.data(task).dataset
    is_deep = case["recipe"] == _WHOLE
    model = _Net(data.train_inputs, case["hidden"], is_deep, task.seed)
    pairs = volax.find_pairs(model, data.train_inputs[:1]).disjoint()
    tx = _optimizer(task.method, pairs, case["strength"], **task.setting)
    loop = Loop(model, tx, case["batch"], task.seed)
    epochs = math.ceil(case["steps"] / (len(data.train_labels) // case["batch"]))
    rows = list(_curve(loop, data, pairs, case, epochs))
    last = rows[-1]
    return {
        "curve": {key: [row[key] for row in rows] for key in last},
        "score": -last["objective"],
        **last,
    }


def _curve(
    loop: Loop, data: Dataset, pairs: volax.pairs.Groups, case: Any, epochs: int
) -> Iterator[Row]:
    """Figures at points of the training, evenly spaced; the last are of its end."""
    swapped = data._replace(
        test_inputs=data.train_inputs, test_labels=data.train_labels
    )

    @jax.jit
    def measure(state: State, data: Dataset, swapped: Dataset) -> dict[str, jax.Array]:
        norms = jnp.concatenate(volax.path_norm(state.params, pairs))
        trained = loop.scores(state.params, state.rest, swapped)
        tested = loop.scores(state.params, state.rest, data)
        return {
            "loss": trained["test_loss"],
            "objective": trained["test_loss"] + case["strength"] * norms.sum(),
            "train_accuracy": trained["test_accuracy"],
            "active": (norms > 0).mean(),
            "test_accuracy": tested["test_accuracy"],
        }

    per_epoch = len(data.train_labels) // case["batch"]
    epoch, state = loop.compile(data), loop.start()
    points = {math.ceil(epochs * k / case["points"]) for k in range(case["points"] + 1)}
    for number in range(epochs + 1):
        if number in points:
            found = jax.device_get(measure(state, data, swapped))
            yield {"step": number * per_epoch, **found}
        if number < epochs:
            state, _ = epoch(state, number)


def _optimizer(
    method: str, pairs: volax.pairs.Groups, strength: float, *, learning_rate: float
) -> optax.GradientTransformation:
    sgd = optax.sgd(learning_rate)
    if method == _DECAY:
        mask = volax.masks.paired(pairs).tree
        return optax.chain(optax.add_decayed_weights(strength, mask), sgd)
    step = volax.path_prox(learning_rate, strength, pairs, **_OPTIONS[method])
    return optax.chain(sgd, step)


def _each(chosen: Sequence[Chosen]) -> Iterator[tuple[dict[str, Chosen], Chosen]]:
    """Each choice, with all of its recipe."""
    for found in by_case(chosen, "recipe").values():
        for best in found.values():
            yield found, best


def _means(best: Chosen, figure: str) -> list[float]:
    """A curve's mean over the seeds; NaN where one was not finite."""
    curves = [row["curve"][figure] for row in best.runs]
    return [
        statistics.fmean(math.nan if value is None else value for value in values)
        for values in zip(*curves)
    ]


def _first(best: Chosen, figure: str, reached: Any) -> int | None:
    """The first step measured at which a figure's mean is as wanted."""
    steps = best.runs[0]["curve"]["step"]
    pairs = zip(steps, _means(best, figure))
    return next((step for step, value in pairs if reached(value)), None)


def _fitted(best: Chosen) -> int | None:
    """The first step measured at which every training image is named right."""
    return _first(best, "train_accuracy", lambda value: value == 1)


def _arrived(best: Chosen, decay: Chosen) -> int | None:
    """The first step measured at which the objective is where decay's ends."""
    end = decay.mean("objective")
    return _first(best, "objective", lambda value: value <= end)


def _cells(best: Chosen, decay: Chosen) -> list[str]:
    fitted, arrived = _fitted(best), _arrived(best, decay)
    return [
        best.case["recipe"],
        best.method,
        told(best.setting),
        best.cell("objective", 1000),
        best.cell("active", digits=1),
        best.cell("test_accuracy"),
        "never" if fitted is None else f"{fitted:,}",
        "never" if arrived is None else f"{arrived:,}",
    ]


def _aims(found: dict[str, Chosen]) -> list[Aim]:
    """What one recipe shows."""
    decay = found[_DECAY]
    recipe, steps = decay.case["recipe"], decay.runs[0]["step"]
    others = {name: best for name, best in found.items() if name != _DECAY}
    arrived = {name: _arrived(best, decay) for name, best in others.items()}
    known = [step for step in arrived.values() if step is not None]
    active = {name: best.mean("active") for name, best in found.items()}
    left = min(active[name] for name in others)
    told_active = ", ".join(f"{n} {100 * share:.1f} %" for n, share in active.items())
    aims = [
        Aim(
            f"{recipe}: a path penalty's step reaches the objective at which decay "
            "ends in half as many steps or less",
            bool(known) and min(known) <= steps / 2,
            ", ".join(
                f"{name} {'never' if step is None else f'after {step:,}'}"
                for name, step in arrived.items()
            )
            + f" of {steps:,}",
        ),
        Aim(
            f"{recipe}: it removes units while decay keeps all",
            left < 1 and active[_DECAY] == 1,
            told_active,
        ),
    ]
    if recipe == _SUBSET:
        claim = f"{recipe}: at most {100 * _UNITS_LEFT:g} % of the units are left"
        aims.append(Aim(claim, left <= _UNITS_LEFT, told_active))
    return aims


def _text(trials: Trials, size: Size, chosen: Sequence[Chosen]) -> str:
    first = chosen[0]
    told_rates = ", ".join(f"{rate:g}" for rate in size.rates)
    parts = [
        f"Six dense layers with {size.hidden} units on {first.case['dataset']}, SGD "
        f"with batches of {size.batch}, strength {size.strength:g}. Rates tried: "
        f"{told_rates}, each with one seed; the one with the lowest objective at the "
        f"end was trained with {trials.seeds}, ± is the standard deviation over them. "
        f"`{_PROJECT}` is the paper's step, `{_BALANCE}` the same with the pairs' path "
        f"norms made equal before it, `{_RESCALE}` keeps the function when it "
        f"normalizes, `{_NONE}` does not normalize."
    ]
    for recipe, found in by_case(chosen, "recipe").items():
        ends = {
            name: {row["setting"]["learning_rate"]: row["value"] for row in best.tried}
            for name, best in found.items()
        }
        for rate in size.rates:
            is_published = rate == _PUBLISHED[recipe]
            now = {name: by_rate[rate] for name, by_rate in ends.items()}
            if is_published or None in now.values():
                cells = ", ".join(
                    f"{name} {'not finite' if end is None else f'{-1000 * end:.2f}'}"
                    for name, end in now.items()
                )
                parts.append(
                    f"{recipe} at rate {rate:g}{' (published)' * is_published}: the "
                    f"objective of the search ended at {cells} (1/1000)."
                )
        for name, by_rate in ends.items():
            finite = [f"{rate:g}" for rate, end in by_rate.items() if end is not None]
            if len(finite) < len(by_rate):
                where = f"at {', '.join(finite)}" if finite else "at none of the rates"
                parts.append(f"There {name} stays finite {where}.")
    return " ".join(parts)


def _draw(figure: Figure, chosen: Sequence[Chosen]) -> None:
    found = by_case(chosen, "recipe")
    figure.set_size_inches(8, 3.2 * len(found))
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (objective, active), (recipe, methods) in zip(panels, found.items()):
        for method, best in methods.items():
            steps = best.runs[0]["curve"]["step"]
            drawn = {"color": _COLORS[method], "linewidth": 2, "label": method}
            objective.plot(steps, _means(best, "objective"), **drawn)
            shares = [100 * share for share in _means(best, "active")]
            active.plot(steps, shares, **drawn)
        objective.set(title=recipe, ylabel="loss + strength * path norm", yscale="log")
        active.set(title=recipe, ylabel="units active (%)", ylim=(0, 105))
        for axes in (objective, active):
            axes.set_xlabel("step")
            plain_axes(axes)
    panels[0][0].legend(frameon=False)
