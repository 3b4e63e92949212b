"""Smaller networks: does removing units pay beside training a small one?

Units are removed on a ramp while a wide network trains (`keep_units`, `group_prox`),
`compact` cuts them out, and what is left trains on. The study does so for several
targets, sizes of a smaller network, beside that network trained from the start and
beside magnitude pruning with fine-tuning. All methods take the same number of steps;
each has its own best learning rate in each case.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from matplotlib.figure import Figure

from volax.examples._figures import BLUE, GREEN, GREY, RED, plain_axes
from volax.examples._timing import alternating, runner
from volax.examples.data import Loaded
from volax.examples.loop import fit, scores
from volax.examples.models import build
from volax.examples.reproduce import _pruning
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

VERSION = 1
_PLAIN, _SMALL, _HELD = "plain", "trained small", "trained small, rate held"
_MAGNITUDE, _KEEP, _GROUP = "magnitude, fine-tuned", "keep_units", "group_prox"
_METHODS: Mapping[str, Callable[[_pruning.Study, Any], Any]] = {
    _PLAIN: _pruning.plain,
    _SMALL: _pruning.small,
    _HELD: _pruning.small_held,
    _MAGNITUDE: _pruning.magnitude,
    _KEEP: _pruning.keep_units_of_all,
    _GROUP: _pruning.shrunk(_pruning.group_rule),
}
_OURS = (_KEEP, _GROUP)
_STYLES = {
    _SMALL: (GREY, "-"),
    _HELD: (GREY, "--"),
    _MAGNITUDE: (GREEN, "-"),
    _KEEP: (RED, "-"),
    _GROUP: (BLUE, "-"),
}
_TIMED = 100  # examples that are run together when a network is timed
_AIM = ("lenet", "fashion_mnist", 5, 0.005)  # so many times fewer, for such a loss


class Net(NamedTuple):
    """A model, its data, how it is trained, and the sizes to which it shrinks."""

    model: str
    dataset: str
    per_class: int  # training images; 0 is all
    epochs: int
    batch: int
    rate: float  # in the middle of those that are tried
    sizes: Mapping[str, Any]
    targets: Sequence[Mapping[str, Any]]


class Size(NamedTuple):
    """How much is measured."""

    nets: Sequence[Net]
    factors: Sequence[float]  # of the learning rate
    methods: Sequence[str] = tuple(_STYLES)


def _widths(*shares: float) -> list[dict[str, Any]]:
    """LeNet's widths, times these shares."""
    return [
        {"widths": [max(round(share * n), 1) for n in (6, 16, 120, 84)]}
        for share in shares
    ]


_GPT = {"width": 64, "layers": 2, "heads": 4}
FULL = Size(
    (
        Net(
            "mlp", "mnist", 0, 12, 128, 1e-3, {"hidden": [300, 100]},
            [{"hidden": [3 * n, n]} for n in (50, 25, 12, 6)],
        ),
        Net(
            "lenet", "fashion_mnist", 0, 12, 128, 1e-3, _widths(1)[0],
            _widths(0.6, 0.4, 0.3, 0.2),
        ),
        Net(
            "vgg19", "cifar10", 0, 16, 128, 1e-3, {"width": 0.125},
            [{"width": 0.0625}],
        ),
        Net(
            "gpt", "shakespeare", 0, 4, 32, 2e-3, {**_GPT, "hidden": 256},
            [{**_GPT, "hidden": 128}, {**_GPT, "hidden": 32}],
        ),
    ),
    (0.5, 1, 2, 4),
)  # fmt: skip
QUICK = Size(
    (
        Net(
            "mlp", "mnist", 300, 10, 128, 3e-3, {"hidden": [150, 50]},
            [{"hidden": [3 * n, n]} for n in (15, 5)],
        ),
    ),
    (1, 2),
    (_SMALL, _MAGNITUDE, _KEEP, _GROUP),
)  # fmt: skip


class _Network(_pruning.Study):
    """Training of a network of the examples."""

    def __init__(self, loaded: Loaded, task: Task):
        case, self.task, self.loaded = task.case, task, loaded
        steps = len(loaded.dataset.train_labels) // case["batch"]
        inputs = (loaded.dataset.test_inputs[:1],)
        rate = task.setting["learning_rate"]
        super().__init__(case["epochs"], steps, rate, case["sizes"], inputs)

    def model(self, target: Any) -> nnx.Module:
        rngs = nnx.Rngs(self.task.seed)
        model = build(self.task.case["model"], self.loaded, rngs=rngs, **target)
        model.eval()  # as units are looked for
        return model

    def fit(
        self,
        model: Any,
        tx: optax.GradientTransformation,
        epochs: Iterable[int],
        opt_state: Any = None,
    ) -> tuple[Any, Any]:
        return fit(
            model,
            tx,
            self.loaded.dataset,
            epochs,
            batch_size=self.task.case["batch"],
            seed=self.task.seed,
            opt_state=opt_state,
        )


def run(trials: Trials, size: Size) -> Result:
    """Shrink each net to each target, and compare."""
    train, found = partial(_train, trials), []
    for net in size.nets:
        case = {**net._asdict(), **trials.source(net.dataset, net.per_class)}
        del case["targets"], case["rate"]
        rates = [{"learning_rate": factor * net.rate} for factor in size.factors]
        whole = {**case, "target": net.sizes}
        found += trials.search([whole], [Method(_PLAIN, rates)], train, by="quality")
        cases = [{**case, "target": target} for target in net.targets]
        methods = [Method(name, rates) for name in size.methods]
        found += trials.search(cases, methods, train, by="quality")
    nets = _by_net(found)
    return Result(
        title="accuracy against multiply-adds",
        head=(
            "net",
            "method",
            "setting",
            "units",
            "multiply-adds",
            "fewer",
            "bytes",
            "ms (plain)",
            "accuracy, % (loss)",
        ),
        rows=[_cells(plain, best) for plain, rest in nets for best in (plain, *rest)],
        text=_text(trials, size, nets),
        aims=[aim for plain, rest in nets for aim in _aims(plain, rest)],
        figures={"chosen": [best._asdict() for best in found]},
        draw=partial(_draw, nets=nets),
    )


def _train(trials: Trials, task: Task) -> Row:
    """What is left of the network and how good it is; of `quality` more is better."""
    loaded = trials.data(task)
    study = _Network(loaded, task)
    model = _METHODS[task.method](study, task.case["target"])
    found = scores(model, loaded.dataset)
    loss, accuracy = found["test_loss"], found["test_accuracy"]
    quality = -loss if _is_text(task.case) else accuracy
    x = jnp.asarray(loaded.dataset.test_inputs[:_TIMED])
    whole = runner(study.model(study.whole))
    seconds, before = alternating(runner(model), whole, x, runs=20)
    weights = jax.tree.leaves(nnx.state(model, nnx.Param))
    return {
        "quality": quality if math.isfinite(loss) else math.nan,
        "accuracy": accuracy,
        "loss": loss,
        "units": [group.size for group in study.groups(model)],
        "multiply_adds": study.cost(model),
        "bytes": sum(leaf.nbytes for leaf in weights),
        "milliseconds": 1000 * seconds,
        "plain_milliseconds": 1000 * before,
    }


def _is_text(case: Mapping[str, Any]) -> bool:
    return case["model"] == "gpt"


def _by_net(found: Sequence[Chosen]) -> list[tuple[Chosen, list[Chosen]]]:
    """The plain choice of each net and the others."""
    nets: list[tuple[Chosen, list[Chosen]]] = []
    for best in found:
        if best.method == _PLAIN:
            nets.append((best, []))
        else:
            nets[-1][1].append(best)
    return nets


def _name(best: Chosen) -> str:
    return f"{best.case['model']}, {best.case['dataset']}"


def _fewer(plain: Chosen, best: Chosen) -> float:
    """How many times fewer multiply-adds there are."""
    return plain.mean("multiply_adds") / best.mean("multiply_adds")


def _quality(best: Chosen) -> str:
    """The accuracy, or the loss, in a cell."""
    if _is_text(best.case):
        return f"({best.cell('loss', 1, 3)})"
    return best.cell("accuracy")


def _cells(plain: Chosen, best: Chosen) -> list[str]:
    counts = zip(*(row["units"] for row in best.runs))
    means = [f"{sum(values) / len(values):.0f}" for values in counts]
    many = len(means) > 6
    return [
        _name(best),
        best.method,
        told(best.setting),
        " ".join([*means[:6], "..."] if many else means),
        f"{best.mean('multiply_adds'):,.0f}",
        f"{_fewer(plain, best):.1f} times",
        f"{best.mean('bytes'):,.0f}",
        f"{best.mean('milliseconds'):.2g} ({best.mean('plain_milliseconds'):.2g})",
        _quality(best),
    ]


def _by_target(rest: Sequence[Chosen]) -> list[list[Chosen]]:
    """The choices at each target."""
    found: dict[str, list[Chosen]] = {}
    for best in rest:
        found.setdefault(str(best.case["target"]), []).append(best)
    return list(found.values())


def _best(choices: Iterable[Chosen], names: Sequence[str]) -> Chosen | None:
    """The choice of the highest quality among those of some methods."""
    known = [best for best in choices if best.method in names]
    return max(known, key=lambda best: worst_if_nan(best.mean("quality")), default=None)


def _aims(plain: Chosen, rest: Sequence[Chosen]) -> list[Aim]:
    """What one net shows."""
    targets, aims = _by_target(rest), []
    for other in ((_SMALL, _HELD), (_MAGNITUDE,)):
        pairs = [(_best(found, _OURS), _best(found, other)) for found in targets]
        known = [(own, best) for own, best in pairs if own and best]
        if known:
            claim = f"{_name(plain)}: removing units on a ramp ends above "
            claim += "a net trained small" if _SMALL in other else "magnitude pruning"
            aims.append(
                Aim(
                    f"{claim} at every target",
                    all(own.mean("quality") > x.mean("quality") for own, x in known),
                    "; ".join(
                        f"{own.method} {_quality(own)} against {_quality(best)} at "
                        f"{_fewer(plain, own):.1f} and {_fewer(plain, best):.1f} "
                        "times fewer multiply-adds"
                        for own, best in known
                    ),
                )
            )
    model, dataset, times, lost = _AIM
    if (plain.case["model"], plain.case["dataset"]) == (model, dataset):
        few = [best for best in rest if _fewer(plain, best) >= times]
        best = _best(few, _OURS)
        reached = best.mean("quality") if best else -math.inf
        aims.append(
            Aim(
                f"{_name(plain)}: {times} times fewer multiply-adds for less than half "
                "a point",
                reached > plain.mean("quality") - lost,
                f"{best.method} {_quality(best)} at {_fewer(plain, best):.1f} times "
                f"fewer, plain {_quality(plain)}"
                if best
                else "no network that small",
            )
        )
    return aims


def _text(
    trials: Trials, size: Size, nets: Sequence[tuple[Chosen, list[Chosen]]]
) -> str:
    text = (
        f"{len(size.factors)} learning rates of each method in each case, tried with "
        "one seed on held-out examples; the best was trained with "
        f"{trials.seeds}, ± is the standard deviation over them. All take the same "
        "number of steps with Adam. "
        f"`{_KEEP}` and `{_GROUP}` choose among the units of all layers down to the "
        "multiply-adds of the target on a ramp over the first 40 %; the others have "
        f"the target's sizes. Milliseconds are those of {_TIMED} examples, beside the "
        "whole network in the same minute."
    )
    for plain, rest in nets:
        lost = 0.02 if _is_text(plain.case) else 0.005
        least = plain.mean("quality") - lost
        good = [best for best in rest if best.mean("quality") > least]
        best = max(good, key=lambda best: _fewer(plain, best), default=None)
        within = "0.02 nats" if _is_text(plain.case) else "half a point"
        if best is None:
            text += f" On {_name(plain)} no smaller net is within {within} of plain."
        else:
            text += (
                f" On {_name(plain)} the smallest net within {within} of plain has "
                f"{_fewer(plain, best):.1f} times fewer multiply-adds, by "
                f"{best.method}."
            )
    return text


def _draw(figure: Figure, nets: Sequence[tuple[Chosen, list[Chosen]]]) -> None:
    figure.set_size_inches(4.4 * len(nets), 3.6)
    panels = figure.subplots(1, len(nets), squeeze=False)[0]
    for axes, (plain, rest) in zip(panels, nets):
        key, scale = ("loss", 1) if _is_text(plain.case) else ("accuracy", 100)
        for method, (color, line) in _STYLES.items():
            own = [best for best in rest if best.method == method]
            if own:
                axes.errorbar(
                    [best.mean("multiply_adds") for best in own],
                    [scale * best.mean(key) for best in own],
                    [scale * best.spread(key) for best in own],
                    color=color,
                    linestyle=line,
                    marker="o",
                    markersize=4,
                    capsize=2,
                    label=method,
                )
        cost, value = plain.mean("multiply_adds"), scale * plain.mean(key)
        axes.plot([cost], [value], "ks", markersize=5, label=_PLAIN)
        axes.axhline(value, color="black", linewidth=0.6, linestyle=":")
        axes.set(title=_name(plain), xlabel="multiply-adds", xscale="log")
        axes.set_ylabel("test loss" if scale == 1 else "test accuracy (%)")
        plain_axes(axes)
    panels[-1].legend(frameon=False, fontsize="small")
