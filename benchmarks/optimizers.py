"""Which mode of path_prox suits which optimizer: accuracy against multiply-adds.

``python -m benchmarks.optimizers --nets digits-256`` trains a net behind every chosen
optimizer with every rule, with and without ``freeze_dead``, and judges it on held-out
images. No fine-tuning follows. Five trainings search the strength of a rule: the first
has one of the optimizer's own, the others come near to a half, a quarter and an eighth
of the multiply-adds. Nets trained small, with Adam and as many steps, are the line to
beat. Runs are appended to ``--results``, and what stands
there is not trained again.
"""

import argparse
import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import volax
from benchmarks.frontier import CNN
from volax import _paths, masks
from volax._numerics import wide
from volax.examples import _machine
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.models import MLP
from volax.pairs import _cost, _layout
from volax.pairs._path_norm import path_norms
from volax.transforms import _post_step
from volax.transforms._balance import UNBALANCED
from volax.transforms.path_prox import _frozen, _rescaled, _Step

BATCH = 64
SHARES = (0.5, 0.25, 0.125)  # of the multiply-adds, which the search looks for
_SMALL = (0.6, 0.4, 0.25, 0.125)  # of the widths, trained small
_SEARCH = 5  # trainings


class Setup(NamedTuple):
    """An optimizer, its peak learning rate, and the strength of the first training."""

    make: Any
    rate: float
    strength: float


OPTIMIZERS = {
    "sgd": Setup(optax.sgd, 0.2, 0.01),
    "momentum": Setup(functools.partial(optax.sgd, momentum=0.9), 0.05, 0.05),
    "adam": Setup(optax.adam, 3e-3, 1.0),
    "adamw": Setup(functools.partial(optax.adamw, weight_decay=0.01), 3e-3, 1.0),
    "lion": Setup(optax.lion, 5e-4, 3.0),
}


class Net(NamedTuple):
    """A network, its data and how long it is trained."""

    dataset: str
    build: Callable[..., nnx.Module]
    widths: tuple[int, ...]
    epochs: int


def _mlp(pixels: int, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
    return MLP(pixels, widths, CLASSES, rngs=rngs)


_KINDS = {"256": (_mlp, (256,)), "128x3": (_mlp, (128,) * 3), "cnn": (CNN, (8, 16, 64))}
NETS = {
    f"{data.removesuffix('_mnist')}-{kind}": Net(data, build, widths, epochs)
    for (data, epochs), (kind, (build, widths)) in itertools.product(
        (("digits", 40), ("mnist", 4), ("fashion_mnist", 4)), _KINDS.items()
    )
}


class Rule(NamedTuple):
    """What is put behind an optimizer."""

    make: Callable[..., optax.GradientTransformation]
    scale: float  # of the first strength, beside that of the optimizer


def _library(**options: Any) -> Callable[..., optax.GradientTransformation]:
    """An option of path_prox."""

    def make(optimizer: Any, rate: Any, strength: Any, pairs: Any, frozen: bool):
        if options.get("normalize") == "project":
            pairs = pairs.disjoint()
        prox = volax.path_prox(rate, strength, pairs, freeze_dead=frozen, **options)
        return optax.chain(optimizer(rate), prox)

    return make


class _Metric(NamedTuple):
    """State of the rule with its threshold in Adam's metric."""

    count: jax.Array  # int32, shape ()
    inner_state: optax.OptState


def _in_metric(p: float) -> Callable[..., optax.GradientTransformation]:
    """``rescale`` with both steps divided by the gradients of the outgoing weights.

    For this study alone; ``path_prox_adam`` divides that of a by those of the incoming
    ones, and knows no unit without gradients.
    """

    def make(optimizer: Any, rate: Any, strength: Any, pairs: Any, frozen: bool):
        inner = optimizer(rate)

        def init(params):
            return _Metric(jnp.zeros([], jnp.int32), inner.init(params))

        def update(updates, state, params=None):
            updates, inner_state = inner.update(updates, state.inner_state, params)
            count = state.count + 1
            moments = _paths.named_leaves(optax.tree.get(inner_state, "nu"))
            unbiased = 1 - 0.999 ** count.astype(jnp.float32)
            paths = frozenset(m.path for g in pairs for m in g.members)
            weights = _post_step.tentative_weights(
                "study", updates, params, masks.Only(paths)
            )
            now = {path: wide(leaf.after) for path, leaf in weights.items()}
            before = {path: wide(leaf.before) for path, leaf in weights.items()}
            steps = []
            for group in pairs:
                (member,) = group.consumers
                leaf = moments[member.path] / unbiased
                n = _layout.weights_of_unit(member, leaf.shape)
                size = jnp.sqrt(_layout.sums(member, group.sizes, leaf) / n) + 1e-8
                step = jnp.minimum(rate(state.count) * strength / size, 1e6)
                side = group.producers
                steps.append(_Step(group, side, step, step, p, UNBALANCED))
            now = _frozen(now, before, pairs) if frozen else now
            now = _rescaled(now, before, steps)
            targets = {k: _post_step.Target(t, keeps=False) for k, t in now.items()}
            state = _Metric(count, inner_state)
            return _post_step.deltas(updates, weights, targets), state

        return optax.GradientTransformation(init, update)

    return make


def _alias(optimizer: Any, rate: Any, strength: Any, pairs: Any, frozen: bool):
    """The library's own Adam, in Adam's metric on both sides of a unit."""
    del optimizer
    return volax.path_prox_adam(rate, strength, pairs, freeze_dead=frozen)


RULES = {
    "rescale": Rule(_library(), 1),
    "none": Rule(_library(normalize="none"), 1),
    "project": Rule(_library(normalize="project"), 1),
    "scaled": Rule(_library(scale_by_size=True), 0.2),
    "p=1/2": Rule(_library(p=0.5), 0.5),
    "scaled p=1/2": Rule(_library(p=0.5, scale_by_size=True), 0.05),
    "metric": Rule(_in_metric(1.0), 0.003),
    "metric p=1/2": Rule(_in_metric(0.5), 0.003),
    "path_prox_adam": Rule(_alias, 1e-4),
}


class Trainer:
    """One network on its data; the strength is traced, so that a rule compiles once."""

    def __init__(self, net: Net, data: Dataset, seed: int):
        self.net, self.seed = net, seed
        self.data = jax.device_put(tuple(data))
        self.count, self.pixels = self.data[0].shape

    def pairs(self, widths: tuple[int, ...]) -> volax.pairs.Groups:
        model = self.net.build(self.pixels, widths, rngs=nnx.Rngs(0))
        return volax.find_pairs(model, jnp.zeros((1, self.pixels)))

    def program(
        self, widths: tuple[int, ...], make: Callable[..., Any]
    ) -> Callable[[float], tuple[float, list[int], float]]:
        """Accuracy, units and share of the multiply-adds left, given a strength.

        ``make`` makes the optimizer of a schedule's steps, pairs and a strength.
        """
        model = self.net.build(self.pixels, widths, rngs=nnx.Rngs(self.seed))
        graph, state = nnx.split(model, nnx.Param)
        start = nnx.to_pure_dict(state)
        pairs = self.pairs(widths)
        numbered = dict(enumerate(pairs))
        cost = _cost.of_some(pairs, numbered, _paths.named_leaves(start))
        steps, epochs = self.count // BATCH, self.net.epochs

        def logits(params, images):
            return nnx.merge(graph, params)(images)

        def loss(params, images, labels):
            return optax.softmax_cross_entropy_with_integer_labels(
                logits(params, images), labels
            ).mean()

        @jax.jit
        def train(params, strength, key, data):
            images, labels, others, answers = data
            tx = make(epochs * steps, pairs, strength)

            def step(carry, rows):
                params, state = carry
                slopes = jax.grad(loss)(params, images[rows], labels[rows])
                updates, state = tx.update(slopes, state, params)
                return (optax.apply_updates(params, updates), state), None

            def epoch(carry, key):
                order = jax.random.permutation(key, self.count)[: steps * BATCH]
                return jax.lax.scan(step, carry, order.reshape(steps, BATCH))[0], None

            carry = params, tx.init(params)
            params = jax.lax.scan(epoch, carry, jax.random.split(key, epochs))[0][0]
            right = logits(params, others).argmax(-1) == answers
            alive = [path_norms(g, _paths.named_leaves(params)) > 0 for g in pairs]
            left = cost.share([_cost.units_left(a) for a in alive])
            return right.mean(), [a.sum() for a in alive], left

        def run(strength: float) -> tuple[float, list[int], float]:
            key = jax.random.key(self.seed)
            right, units, left = train(start, strength, key, self.data)
            return float(right), [int(n) for n in units], float(left)

        return run


def _behind(setup: Setup, rule: Rule, frozen: bool) -> Callable[..., Any]:
    """An optimizer on a cosine, with a rule."""

    def make(steps: int, pairs: Any, strength: Any) -> Any:
        rate = optax.cosine_decay_schedule(setup.rate, steps)
        return rule.make(setup.make, rate, strength, pairs, frozen)

    return make


def search(run: Callable[[float], tuple], first: float, count: int) -> list[dict]:
    """Trainings of strengths that come near to all shares.

    Outwards from the first by factors of four until all shares are enclosed, then
    between the two neighbours of the share that is met worst, on a logarithmic scale.
    """
    found: dict[float, tuple] = {}

    def left(strength: float) -> float:
        return math.log(max(found[strength][2], 1e-3))

    strength = first
    for _ in range(count):
        found[strength] = run(strength)
        low, high = min(found), max(found)
        if left(high) > math.log(min(SHARES)):
            strength = 4 * high
        elif left(low) < math.log(max(SHARES)):
            strength = low / 4
        else:
            goals = [math.log(share) for share in SHARES]
            goal = max(goals, key=lambda g: min(abs(left(s) - g) for s in found))
            below = max(s for s in found if left(s) >= goal)
            above = min([s for s in found if s > below], default=4 * below)
            strength = math.sqrt(below * above)
    return [
        {"strength": s, "accuracy": a, "units": units, "left": left}
        for s, (a, units, left) in sorted(found.items())
    ]


def at_share(runs: Iterable[dict], share: float) -> float:
    """Accuracy at a share of the multiply-adds, between runs; NaN beyond them."""
    points = sorted((math.log(max(r["left"], 1e-3)), r["accuracy"]) for r in runs)
    x, y = zip(*points)
    return float(np.interp(math.log(share), x, y, left=np.nan, right=np.nan))


def table(rows: list[dict]) -> str:
    """In Markdown: accuracy in per cent at each share of the multiply-adds."""
    nets = list(dict.fromkeys(row["net"] for row in rows))
    lines = [("optimizer", "rule", "frozen", *nets), ("---",) * (3 + len(nets))]
    keys = dict.fromkeys((r["optimizer"], r["rule"], r["frozen"]) for r in rows)
    for key in keys:
        cells = []
        for net in nets:
            runs = [
                r
                for r in rows
                if (r["optimizer"], r["rule"], r["frozen"]) == key and r["net"] == net
            ]
            found = [100 * at_share(runs, s) if runs else np.nan for s in SHARES]
            texts = ["-" if np.isnan(a) else f"{a:.1f}" for a in found]
            cells.append(", ".join(texts) if runs else "")
        lines.append((*key, *cells))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers", description=__doc__
    )
    parser.add_argument("--nets", default="digits-256", help=", ".join(NETS))
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--frozen", default="yes,no", help="freeze_dead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-class", type=int, default=500, help="training images")
    parser.add_argument("--search", type=int, default=_SEARCH, help="trainings a rule")
    parser.add_argument("--results", type=Path, default=Path("optimizers.jsonl"))
    given = parser.parse_args(argv)
    nets, optimizers, rules, frozen = (
        list(filter(None, text.split(",")))
        for text in (given.nets, given.optimizers, given.rules, given.frozen)
    )
    for kind, names, known in (
        ("net", nets, NETS),
        ("optimizer", optimizers, OPTIMIZERS),
        ("rule", rules, RULES),
        ("frozen", frozen, ("yes", "no")),
    ):
        if unknown := set(names) - set(known):
            parser.error(f"unknown {kind}s: {', '.join(sorted(unknown))}")
    rows: list[dict] = []
    if given.results.exists():
        rows = [json.loads(line) for line in given.results.read_text().splitlines()]
    print(_machine.header())

    def record(key: dict, runs: list[dict]) -> None:
        with given.results.open("a") as file:
            for run in runs:
                rows.append(key | run)
                file.write(json.dumps(rows[-1]) + "\n")

    def is_done(key: dict) -> bool:
        return any(key.items() <= row.items() for row in rows)

    for name in nets:
        trainer = Trainer(NETS[name], _data(NETS[name].dataset, given), given.seed)
        about = {"net": name, "seed": given.seed}
        key = about | {"optimizer": "adam", "rule": "trained small", "frozen": ""}
        if not is_done(key):
            record(key, _trained_small(trainer))
        for optimizer, rule, is_frozen in itertools.product(optimizers, rules, frozen):
            key = about | {"optimizer": optimizer, "rule": rule, "frozen": is_frozen}
            needs_adam = "metric" in rule or rule == "path_prox_adam"
            if is_done(key) or (needs_adam and not optimizer.startswith("adam")):
                continue
            setup = OPTIMIZERS[optimizer]
            make = _behind(setup, RULES[rule], is_frozen == "yes")
            run = trainer.program(trainer.net.widths, make)
            first = setup.strength * RULES[rule].scale
            record(key, search(run, first, given.search))
            print(*key.values(), flush=True)
    print(table([row for row in rows if row["net"] in nets]))


def _data(name: str, given: argparse.Namespace) -> Dataset:
    """Some training images, and held-out ones to judge on."""
    small = name == "digits"
    data = load_dataset(
        name,
        os.environ.get("VOLAX_DATA_DIR", ""),
        validation=0.3 if small else 1 / 6,
        per_class=0 if small else given.per_class,
        seed=given.seed,
    )
    images, labels, others, answers = data
    return Dataset(images, labels, others[:5000], answers[:5000])


def _trained_small(trainer: Trainer) -> list[dict]:
    """Plain Adam on nets of a part of the widths."""
    full = _cost.of_some(*_measured(trainer, trainer.net.widths)).total
    adam, runs = OPTIMIZERS["adam"], []

    def make(steps: int, pairs: Any, strength: Any) -> Any:
        del pairs, strength
        return optax.adam(optax.cosine_decay_schedule(adam.rate, steps))

    for part in (1, *_SMALL):
        widths = tuple(max(round(part * n), 1) for n in trainer.net.widths)
        right, units, _ = trainer.program(widths, make)(0.0)
        left = _cost.of_some(*_measured(trainer, widths)).total / full
        runs.append({"strength": 0, "accuracy": right, "units": units, "left": left})
    return runs


def _measured(trainer: Trainer, widths: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """What counting the multiply-adds of a net needs."""
    model = trainer.net.build(trainer.pixels, widths, rngs=nnx.Rngs(0))
    pairs = trainer.pairs(widths)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return pairs, dict(enumerate(pairs)), _paths.named_leaves(params)


if __name__ == "__main__":
    main()
