"""Parameters on a mesh, and what the compiled program sends between its devices."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import P
from jax.sharding import AxisType, NamedSharding

from tests.cases import CASES

UNITS = 32
SHAPES = {
    "l1": {"kernel": (16, UNITS), "bias": (UNITS,)},
    "l2": {"kernel": (UNITS, 24), "bias": (24,)},
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


class Layout(NamedTuple):
    """How the two layers of ``SHAPES`` lie on a mesh of 4 x 2 devices, "a" and "b"."""

    text: str
    kernel1: P = P()
    bias1: P = P()
    kernel2: P = P()
    bias2: P = P()


LAYOUTS = {
    "data": Layout("data parallel: all replicated"),
    "fsdp": Layout("fully sharded: rows", P("a"), P(), P("a"), P()),
    "fsdp-2": Layout(
        "fully sharded: rows over both axes", P(("a", "b")), P("a"), P(("a", "b")), P()
    ),
    "tensor": Layout("tensor parallel: units", P(None, "b"), P("b"), P("b"), P()),
    "tensor-fsdp": Layout(
        "both: units, and the other axes", P("a", "b"), P("b"), P("b", "a"), P("a")
    ),
    "apart": Layout(
        "units of either side on another axis", P(None, "a"), P("b"), P("b"), P()
    ),
    "one-side": Layout("units of one side alone", P("b", "a"), P(), P(), P("a")),
}


def mesh(kind):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(KINDS[kind],) * 2)


def tree(seed, dtype=jnp.float32):
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: type(x) is tuple)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        jax.random.normal(k, s, dtype) / math.sqrt(s[0]) for k, s in zip(keys, leaves)
    )


def put(params, layout, kind):
    """The parameters on a mesh."""
    on = mesh(kind)
    specs = {
        "l1": {"kernel": layout.kernel1, "bias": layout.bias1},
        "l2": {"kernel": layout.kernel2, "bias": layout.bias2},
    }
    return jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(on, spec)), params, specs
    )


def step_of(tx):
    """One step of training."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Collective(NamedTuple):
    """What the devices exchange in one operation."""

    name: str  # as XLA calls it
    numbers: int  # all that it gives each device, of whatever type


_CALL = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|"
    r"collective-broadcast|ragged-all-to-all)(?:-start)?\("
)


def collectives(compiled):
    """The collectives of a compiled program."""
    found = []
    for types, name in _CALL.findall(compiled.as_text()):
        sizes = re.findall(r"\w+\[([\d,]*)\]", types)
        numbers = sum(math.prod(map(int, filter(None, s.split(",")))) for s in sizes)
        found.append(Collective(name, numbers))
    return sorted(found)


def compiled_step(tx, kind, layout):
    """The step compiled for a mesh, and its arguments."""
    params, grads = (put(tree(seed), layout, kind) for seed in range(2))
    arguments = params, tx.init(params), grads
    return jax.jit(step_of(tx)).lower(*arguments).compile(), arguments


def table():
    """What ``path_prox`` adds to a step, as the README has it."""
    rows = ["| weights on the mesh | automatic axes | explicit axes |", "|---|---|---|"]
    for layout in LAYOUTS.values():
        cells = []
        for kind in KINDS:
            program, _ = compiled_step(CASES["path_prox"].optimizer(), kind, layout)
            words = [f"{c.name} of {c.numbers}" for c in collectives(program)]
            cells.append(", ".join(words) or "nothing")
        rows.append(f"| {layout.text} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    print(table())
