"""Jaxprs as they lie nested in one another: which equations matter, what a call runs.

Everything that walks a program goes through here, so that a kind of call that is new to
one walk is new to all.
"""

from collections.abc import Sequence

from jax.extend import core

from volax._types import Leaf
from volax.pairs._trace.bodies import all_eqns as all_eqns
from volax.pairs._trace.bodies import bodies as bodies
from volax.pairs._trace.compat import (
    has_effects,
    primitives,
    scan_counts,
    unlisted,
)
from volax.pairs._trace.rules.registry import unknown_params

CALLS = set(
    primitives(
        "jit", "remat", "custom_jvp_call", "custom_vjp_call", "closed_call", "call"
    )
)
CACHED = set(primitives("jit", "custom_jvp_call", "custom_vjp_call"))
SCANS = set(primitives("scan"))
MAPS = set(unlisted("shard_map"))
FOLLOWED = CALLS | SCANS | MAPS


def is_followed(eqn: core.JaxprEqn) -> bool:
    """Whether what an equation runs is walked through, where a rule would stand."""
    return eqn.primitive in FOLLOWED and not unknown_params(eqn)


_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def holds_jaxpr(eqn: core.JaxprEqn) -> bool:
    """Whether an equation runs a single jaxpr, as calls and scans do."""
    return any(eqn.params.get(key) is not None for key in _BODIES)


def sub_jaxpr(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence[Leaf]]:
    """The jaxpr that a call runs, and its constants."""
    for key in _BODIES:
        if (found := eqn.params.get(key)) is not None:
            return getattr(found, "jaxpr", found), getattr(found, "consts", ())
    raise NotImplementedError(f"{eqn.primitive.name} holds no jaxpr")


Live = tuple[list[tuple[core.JaxprEqn, tuple[bool, ...]]], tuple[bool, ...]]


def live_eqns(jaxpr: core.Jaxpr, wanted: tuple[bool, ...]) -> Live:
    """The equations that the wanted results need, and the arguments that they need.

    An equation with side effects is needed whether or not its results are.
    """
    live = {v for v, w in zip(jaxpr.outvars, wanted) if w and isinstance(v, core.Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        outs = tuple(v in live for v in eqn.outvars)
        if any(outs) or has_effects(eqn):
            kept.append((eqn, outs))
            for v, needed in zip(eqn.invars, _needs(eqn, outs)):
                if needed and isinstance(v, core.Var):
                    live.add(v)
    return kept[::-1], tuple(v in live for v in jaxpr.invars)


def _needs(eqn: core.JaxprEqn, outs: tuple[bool, ...]) -> Sequence[bool]:
    if not is_followed(eqn):
        return (True,) * len(eqn.invars)
    if eqn.primitive in SCANS:
        return scan_needs(eqn, outs)[1]
    return live_eqns(sub_jaxpr(eqn)[0], outs)[1]


def scan_needs(
    eqn: core.JaxprEqn, outs: tuple[bool, ...]
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """What a scan's body has to give and to get, over all steps."""
    n, m = scan_counts(eqn.params)
    jaxpr = sub_jaxpr(eqn)[0]
    while True:
        ins = live_eqns(jaxpr, outs)[1]
        more = tuple(a or b for a, b in zip(ins[n : n + m], outs[:m])) + outs[m:]
        if more == outs:
            return outs, ins[:n] + outs[:m] + ins[n + m :]
        outs = more
