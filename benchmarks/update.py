"""What a regularizer adds to the update of plain Adam."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import volax
from benchmarks import trees
from benchmarks.timing import Line, alternate, forget

RATE = 1e-3


class Row(NamedTuple):
    """One line of the table: what is added to Adam, and how it may be measured."""

    name: str
    make: Any  # the whole optimizer, given the tree's pairs
    bytes: float  # floor: bytes moved a float32 weight, Adam's 28 included
    bare: float | None  # the ratio to stay under
    step: float | None


def _behind(*make: Any) -> Any:
    return lambda pairs: optax.chain(optax.adam(RATE), *(m(pairs) for m in make))


def _decay(p: Any) -> Any:
    return lambda pairs: volax.lp_decay(RATE, 0.1, p)


def _wall(*alpha: float) -> Any:
    return lambda pairs: volax.volumize(0.05, *alpha)


def _prox(**options: Any) -> Any:
    return _behind(lambda pairs: volax.path_prox(RATE, 1e-3, pairs, **options))


def _group(**options: Any) -> Any:
    return _behind(lambda pairs: volax.group_prox(RATE, 1e-3, pairs, **options))


def _kept(**options: Any) -> Any:
    share = volax.cubic_ramp(1.0, 0.25, 0, 1000)
    return _behind(lambda pairs: volax.keep_units(share, pairs, **options))


def _proximal(prox: Any) -> Any:
    return _behind(lambda pairs: volax.proximal(RATE, 0.1, prox))


def _adams(prox: Any) -> Any:
    return volax.proximal_adam(RATE, 0.1, prox)


def _tuned(measure: str, rule: Any) -> Any:
    """A rule, given strength and pairs, behind a target that is never met."""

    def make(pairs: Any) -> Any:
        return volax.tune_strength(
            lambda strength: rule(strength, pairs),
            0.5,
            measure=measure,
            groups=None if measure == "weights" else pairs,
            initial=1e-6,
            steps=10**6,
        )

    return _behind(make)


def _tuned_decay(strength: Any, pairs: Any) -> Any:
    del pairs
    return volax.lp_decay(RATE, strength, 1, snap_below=1e-12)


def _tuned_prox(strength: Any, pairs: Any) -> Any:
    return volax.path_prox(RATE, strength, pairs)


def _injected(pairs: Any) -> Any:
    return optax.inject_hyperparams(volax.lp_decay)(RATE, 0.1, 0.8, mask="matrices")


_SCAD = functools.partial(volax.prox.scad, knee=0.05)
_MCP = functools.partial(volax.prox.mcp, knee=0.05)
_LP = functools.partial(volax.prox.lp, p=0.7)
_GROUPS = functools.partial(volax.prox.group_soft_threshold, axis=0)
_SCHEDULE = optax.linear_schedule(2.0, 0.5, 10**6)
ADAM = Row("adam (against itself)", lambda pairs: optax.adam(RATE), 28, None, None)
ROWS = (
    ADAM,
    Row("volumize", _behind(_wall()), 28, 1.06, 1.03),
    Row("volumize alpha=-0.5", _behind(_wall(-0.5)), 28, 1.06, 1.03),
    Row("volumized", lambda pairs: volax.volumized_adam(RATE, 0.05), 36, 1.40, 1.10),
    Row("volumized alpha=-0.5",
        lambda pairs: volax.volumized_adam(RATE, 0.05, -0.5), 36, None, None),
    *(Row(f"lp_decay p={p}", _behind(_decay(p)), 28, 1.10, 1.04)
      for p in (0.5, 1, 1.5, 2)),
    Row("lp_decay p=2/3", _behind(_decay(2 / 3)), 28, 1.35, 1.10),
    Row("lp_decay p=4/3", _behind(_decay(4 / 3)), 28, 1.35, 1.10),
    Row("lp_decay p=0.8", _behind(_decay(0.8)), 28, 1.35, 1.10),
    Row("lp_decay p scheduled", _behind(_decay(_SCHEDULE)), 28, 1.55, 1.15),
    Row("lp_decay p injected", _behind(_injected), 28, 1.55, 1.15),
    Row("lp_decay p=1, volumize", _behind(_decay(1), _wall()), 28, None, None),
    Row("proximal l1", _proximal(volax.prox.soft_threshold), 28, 1.10, 1.04),
    Row("proximal l0", _proximal(volax.prox.hard_threshold), 28, 1.10, 1.04),
    Row("proximal elastic net", _proximal(volax.prox.elastic_net), 28, 1.10, 1.04),
    Row("proximal scad", _proximal(_SCAD), 28, 1.10, 1.04),
    Row("proximal mcp", _proximal(_MCP), 28, 1.10, 1.04),
    Row("proximal l1/2", _proximal(volax.prox.half_threshold), 28, None, None),
    Row("proximal lp p=0.7", _proximal(_LP), 28, None, None),
    Row("proximal groups", _proximal(_GROUPS), 32, None, None),
    Row("proximal_adam l1", lambda pairs: _adams(volax.prox.soft_threshold), 28, None,
        None),
    Row("proximal_adam groups", lambda pairs: _adams(_GROUPS), 32, None, None),
    Row("path_prox", _prox(), 40, 1.90, 1.25),
    Row("path_prox balance", _prox(balance=True), 40, 1.90, 1.25),
    Row("path_prox none", _prox(normalize="none"), 40, 1.90, 1.25),
    Row("path_prox project", _prox(normalize="project"), 40, 1.90, 1.25),
    Row("path_prox freeze_dead", _prox(freeze_dead=True), 40, 1.90, 1.25),
    Row("path_prox p=0.5", _prox(p=0.5), 40, 1.90, 1.25),
    Row("path_prox_adam", lambda pairs: volax.path_prox_adam(RATE, 1e-4, pairs), 60,
        1.90, 1.25),
    Row("group_prox", _group(), 40, 1.90, 1.25),
    Row("group_prox all", _group(over="all"), 40, 1.90, 1.25),
    Row("group_prox all p=0.5", _group(over="all", p=0.5), 40, 1.90, 1.25),
    Row("group_prox all frozen", _group(over="all", freeze_dead=True), 44, None, None),
    Row("keep_units", _kept(), 32, 1.90, 1.25),
    Row("keep_units every 100", _kept(every=100), 28, 1.90, 1.25),
    Row("keep_units global", _kept(scope="global", every=100), 28, 1.90, 1.25),
    Row("tune_strength lp_decay", _tuned("weights", _tuned_decay), 32, None, None),
    Row("tune_strength path_prox", _tuned("units", _tuned_prox), 44, None, None),
)  # fmt: skip
VGG = (
    ADAM,
    Row("path_prox", _prox(), 40, 1.90, 1.10),
    Row("path_prox balance", _prox(balance=True), 40, 1.90, 1.10),
)
SEPARABLE = ("volumize", "lp_decay p=1", "lp_decay p=0.8")
SWEPT = ("volumize", "volumized", "lp_decay p=1", "lp_decay p=0.8", "path_prox")


def chosen(only: str, rows: Any = ROWS) -> list[Row]:
    """The rows whose name contains a text."""
    return [row for row in rows if only in row.name]


def bare(rounds: int, only: str, size: int = 20_000_000) -> Iterator[Line]:
    """Update and apply beside optax.adam's, on given gradients, 20 M weights in 8
    leaves.
    """
    params, pairs = trees.bare(size)
    return _measured("bare", chosen(only), params, pairs, None, None, rounds)


def step(rounds: int, only: str, width: int = 2048) -> Iterator[Line]:
    """The same with the gradient made inside the jitted step by six layers of 2048,
    batch 128.
    """
    params, pairs = trees.dense(width)
    x = jax.random.normal(jax.random.key(9), (128, 784))
    rows = chosen(only)
    return _measured("step", rows, params, pairs, trees.dense_loss, x, rounds)


def vgg(rounds: int, only: str, scale: int = 1) -> Iterator[Line]:
    """Both on a VGG19 for images of 32 x 32, batch 16."""
    params, pairs = trees.vgg(scale)
    rows = chosen(only, VGG)
    yield from _measured("vgg bare", rows, params, pairs, None, None, rounds)
    x = jax.random.normal(jax.random.key(9), (16, 32, 32, 3))
    # A step takes a second, so fewer of them.
    few, loss = max(rounds // 3, 1), trees.vgg_loss
    yield from _measured("vgg step", rows, params, pairs, loss, x, few)


def _measured(
    setting: str, rows: Any, params: Any, pairs: Any, loss: Any, x: Any, rounds: int
) -> Iterator[Line]:
    data = trees.gradients(params) if loss is None else x

    def arm(tx):
        step = trees.update_step(tx) if loss is None else trees.train_step(tx, loss)
        return trees.arm(step, tx, params, data)

    plain = arm(optax.adam(RATE))
    for row in rows:
        ratio = alternate(arm(row.make(pairs)), plain, rounds)
        limit = getattr(row, "bare" if loss is None else "step")
        aim = f"  aim {limit:.2f}" if limit else ""
        text = f"{setting:8} {row.name:24} {ratio}  {row.bytes:3g} bytes a weight{aim}"
        yield Line(f"{setting} {row.name}", text, vars(ratio) | {"bytes": row.bytes})


def many(rounds: int, only: str, count: int = 1000) -> Iterator[Line]:
    """A bare step of a thousand leaves of a thousand weights beside optax.adam's, and
    what it takes to trace and compile.
    """
    params, pairs = trees.many(count)
    grads = trees.gradients(params)

    def compiling(tx):
        state = tx.init(params)
        return lambda: trees.update_step(tx).lower(params, state, grads).compile()

    def arm(tx):
        return trees.arm(trees.update_step(tx), tx, params, grads)

    adam = optax.adam(RATE)
    for row in chosen(only):
        if row.name in SEPARABLE:
            tx = row.make(pairs)
            compiled = alternate(
                compiling(tx), compiling(adam), max(rounds // 10, 1), warm=0,
                before=forget,
            )  # fmt: skip
            ratio = alternate(arm(tx), arm(adam), rounds)
            text = (
                f"{'many':8} {row.name:24} {ratio}  {row.bytes:3g} bytes a weight  aim "
                f"1.25; compiled {compiled.spread} {compiled.seconds:.1f} s  aim 1.25"
            )
            figures = {f"compile_{k}": v for k, v in vars(compiled).items()}
            yield Line(f"many {row.name}", text, vars(ratio) | figures)


def memory(rounds: int, only: str, width: int = 2048) -> Iterator[Line]:
    """Temporary memory of a step over optax.adam's, in largest leaves, from the
    compiler; parameters and state donated.
    """
    del rounds
    params, pairs = trees.dense(width)
    x = jnp.zeros((128, 784))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))

    def temporary(tx):
        step = trees.train_step(tx, trees.dense_loss)
        compiled = step.lower(params, tx.init(params), x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temporary(optax.adam(RATE))
    for row in chosen(only):
        more = (temporary(row.make(pairs)) - plain) / largest
        text = f"{'memory':8} {row.name:24} {more:+5.2f} largest leaves  aim +1"
        yield Line(f"memory {row.name}", text, {"largest_leaves": more})


def sweep(rounds: int, only: str, sizes: Any = None) -> Iterator[Line]:
    """The bare update beside optax.adam's from 10^5 weights upward."""
    if sizes is None:
        sizes = [10**k for k in range(5, 10 if jax.default_backend() == "gpu" else 9)]
    for size in sizes:
        params, pairs = trees.bare(size)
        rows = [row for row in chosen(only) if row.name in SWEPT]
        lines = _measured("bare", rows, params, pairs, None, None, rounds)
        for row, line in zip(rows, lines):
            per = line.figures["seconds"] / size * 1e9
            ratio = line.figures["median"]
            adam = line.figures["baseline"] / size * 1e9
            text = f"{'sweep':8} {row.name:24} {size:8.0e} weights {ratio:5.2f}, "
            text += f"{per:.2f} ns a weight, Adam {adam:.2f}  {row.bytes:3g} bytes"
            yield Line(f"sweep {row.name} {size}", text, line.figures)
