"""The interpreter: walks a jaxpr and applies one rule to each equation.

It sees a program, not a model: calls of every kind are walked through with an
environment of their own (two calls may share one jaxpr), the body of a scan is walked
once for all its steps, and code whose results nobody uses is not walked at all.
A primitive without a rule, one with side effects, and control flow that depends on
values refuse every unit they touch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from volax._types import Leaf
from volax.pairs._trace import jaxprs
from volax.pairs._trace.compat import (
    has_effects,
    in_library,
    primitives,
    scan_counts,
)
from volax.pairs._trace.rules import RULES
from volax.pairs._trace.rules.registry import PARAMS, same, shape_of, unknown_params
from volax.pairs._trace.tape import ACTIVATION, CONST, DATA, WEIGHT, Read, Tape, Value
from volax.pairs._trace.terms import Term
from volax.pairs.records import CAPTURED

# What to run, how to differentiate it, where and how fast it runs. The function's value
# depends on the first alone.
_CALL_PARAMS = (
    "jaxpr call_jaxpr fun_jaxpr name num_consts jvp_jaxpr_fun fwd_jaxpr_thunk bwd "
    "out_trees symbolic_zeros prevent_cse differentiated policy inline keep_unused "
    "donated_invars in_shardings out_shardings in_layouts out_layouts ctx_mesh "
    "compiler_options_kvs"
)
# Reversed, the steps are the same set, so that one walk still stands for all of them.
_SCAN_PARAMS = (
    "jaxpr length num_consts num_carry ft_in ft_out reverse unroll linear "
    "_split_transpose"
)
_MAP_PARAMS = "jaxpr mesh in_specs out_specs check_vma newly_manual_axes"
PARAMS.update(dict.fromkeys(jaxprs.MAPS, frozenset(_MAP_PARAMS.split())))
PARAMS.update(dict.fromkeys(jaxprs.CALLS, frozenset(_CALL_PARAMS.split())))
PARAMS.update(dict.fromkeys(jaxprs.SCANS, frozenset(_SCAN_PARAMS.split())))
_CONTRACTIONS = {
    *primitives("dot_general", "conv_general_dilated", "while", "cond"),
    *jaxprs.SCANS,
}


def interpret(
    tape: Tape,
    jaxpr: core.Jaxpr,
    consts: Sequence[Leaf],
    args: Sequence[Value | None],
    wanted: Sequence[bool] | None = None,
) -> list[Value | None]:
    """Follows one jaxpr; results that are not wanted are None."""
    env: dict[core.Var, Value | None] = {}

    def read(atom: core.Var | core.Literal) -> Value:
        if isinstance(atom, core.Literal):
            return constant(tape, atom.val)
        found = env[atom]
        assert found is not None, "liveness left out a value that is read"
        return found

    for var, const in zip(jaxpr.constvars, consts):
        env[var] = const if isinstance(const, Value) else constant(tape, const, True)
    env.update(zip(jaxpr.invars, args))
    every = tuple(wanted or [True] * len(jaxpr.outvars))
    for eqn, outs in jaxprs.live_eqns(jaxpr, every)[0]:
        if jaxprs.is_followed(eqn):
            walk = _shard_map if eqn.primitive in jaxprs.MAPS else _call
            walk = _scan if eqn.primitive in jaxprs.SCANS else walk
            ins = [_peek(env, v, tape) for v in eqn.invars]
            results = walk(tape, eqn, ins, outs)
        elif has_effects(eqn):
            ins = [read(v) for v in eqn.invars]
            why = f"{eqn.primitive.name} has side effects, which are not followed"
            results = _refuse(tape, eqn, ins, why, True)
        else:
            ins = [read(v) for v in eqn.invars]
            results = _applied(tape, eqn, ins)
        tape.reads.append(Read(eqn, ins, results))
        env.update(zip(eqn.outvars, results))
    return [read(v) if w else None for v, w in zip(jaxpr.outvars, every)]


def _peek(
    env: Mapping[core.Var, Value | None], atom: core.Var | core.Literal, tape: Tape
) -> Value | None:
    """An operand of a call, None where the call does not need it."""
    return constant(tape, atom.val) if isinstance(atom, core.Literal) else env.get(atom)


def constant(tape: Tape, value: Leaf, captured: bool = False) -> Value:
    """A literal number is known; a captured array is data, whatever it holds."""
    shape = tuple(getattr(value, "shape", ()))
    if shape or captured:
        made = tape.value(shape, DATA)
        made.name = CAPTURED
        return made
    try:
        exact = np.asarray(value, getattr(value, "dtype", None))
        return tape.value((), CONST, known=float(exact))
    except (TypeError, ValueError):
        return tape.value((), CONST)


def _applied(tape: Tape, eqn: core.JaxprEqn, ins: Sequence[Value]) -> list[Value]:
    """The rule's results; a rule that does not know what it sees refuses as well."""
    rule, name = RULES.get(eqn.primitive), eqn.primitive.name
    if unknown := unknown_params(eqn):
        why = f"the rule for {name} does not know its parameter {min(unknown)}"
        return _refuse(tape, eqn, ins, why)
    if rule is None:
        return _refuse(tape, eqn, ins)
    try:
        made = rule(tape, eqn, *ins)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        return _refuse(tape, eqn, ins, f"the rule for {name}: {e!r}")
    made = made if isinstance(made, list) else [made]
    if [v.shape for v in made] != [shape_of(eqn, k) for k in range(len(eqn.outvars))]:
        return _refuse(tape, eqn, ins, f"the rule for {name} gives other shapes")
    return made


def _refuse(
    tape: Tape,
    eqn: core.JaxprEqn,
    ins: Sequence[Value],
    failed: str = "",
    effects: bool = False,
) -> list[Value]:
    """An operation without a rule: nothing that it touches is followed further.

    What comes out of one with side effects may depend on all that was written before.
    """
    kind = ACTIVATION if effects else max((v.kind for v in ins), default=CONST)
    quiet = kind < WEIGHT
    name = eqn.primitive.name
    why = f"used in {name}" if name in ("cond", "while") else f"no rule for {name}"
    why = failed or why
    if quiet:
        why = "computed from the inputs"
    outs = [
        tape.value(
            getattr(v.aval, "shape", ()), max(kind, DATA) if quiet else ACTIVATION
        )
        for v in eqn.outvars
    ]
    tape.read.update(ins)
    for v in (*ins, *outs):
        for term in v.axes:
            tape.poison(term, why, eqn, quiet)
    return outs


def _call(
    tape: Tape, eqn: core.JaxprEqn, args: Sequence[Value | None], outs: Sequence[bool]
) -> list[Value | None]:
    jaxpr, consts = jaxprs.sub_jaxpr(eqn)
    name = str(eqn.params.get("name", "")).strip("_")
    labelled = bool(name.isidentifier() and not tape.labels and _is_activation(jaxpr))
    if labelled:
        tape.labels.append(name)
    foreign = eqn.primitive in jaxprs.CACHED and in_library(jaxpr)
    if foreign:
        tape.sites.append(eqn)
    results = interpret(tape, jaxpr, consts, args, outs)
    if labelled:
        tape.labels.pop()
    if foreign:
        tape.sites.pop()
    return results


def _shard_map(
    tape: Tape, eqn: core.JaxprEqn, args: Sequence[Value | None], outs: Sequence[bool]
) -> list[Value | None]:
    """Walks what one device does, if the units are whole on every device."""
    jaxpr, consts = jaxprs.sub_jaxpr(eqn)
    local = [
        v and _placed(tape, eqn, v, getattr(var.aval, "shape", ()))
        for v, var in zip(args, jaxpr.invars)
    ]
    made = interpret(tape, jaxpr, consts, local, outs)
    return [v and _placed(tape, eqn, v, shape_of(eqn, k)) for k, v in enumerate(made)]


def _placed(
    tape: Tape, eqn: core.JaxprEqn, value: Value, shape: Sequence[int]
) -> Value:
    """A device's part of an array, or the array put together from all parts."""
    if value.shape == tuple(shape):
        return value
    split = [k for k, (a, b) in enumerate(zip(value.shape, shape)) if a != b]
    axes = [None if k in split else t for k, t in enumerate(value.axes)]
    why = "shard_map splits the units over devices, and each sees a part of them"
    out = tape.op(
        eqn,
        [value],
        axes,
        [same(value, *split)],
        shape=shape,
        known=value.known,
        mixed=tuple((0, k) for k in split),
        why=why,
    )
    for k in split:
        tape.poison(out.axes[k], why, eqn)
    return out


def _is_activation(jaxpr: core.Jaxpr, limit: int = 30) -> bool:
    """Whether a called function is small and elementwise, so that its name says it."""
    if len(jaxpr.eqns) > limit or len(jaxpr.outvars) != 1:
        return False
    for eqn in jaxpr.eqns:
        if eqn.primitive in _CONTRACTIONS:
            return False
        is_call = eqn.primitive in jaxprs.CALLS
        if is_call and not _is_activation(jaxprs.sub_jaxpr(eqn)[0], limit):
            return False
    return True


def _scan(
    tape: Tape, eqn: core.JaxprEqn, args: Sequence[Value | None], outs: Sequence[bool]
) -> list[Value | None]:
    """Walks a scan's body once, for all its steps.

    What the scan slices carries the scanned axis on as ``loops``. A carry has degrees
    of its own, equal at the start, at every step, and at the end.
    """
    jaxpr, consts = jaxprs.sub_jaxpr(eqn)
    n, m = scan_counts(eqn.params)
    steps = Term(eqn.params["length"])
    tape.poison(steps, "the steps of a scan", eqn, quiet=True)
    inner: list[Value | None] = list(args[:n])
    trained = any(v is not None and v.kind >= WEIGHT for v in args)
    for init in args[n : n + m]:
        if init is None:
            inner.append(None)
            continue
        links = {k: (k, 0) for k, t in enumerate(init.axes) if t is not None}
        carried = tape.op(
            eqn,
            [init],
            init.axes,
            [links],
            shape=init.shape,
            law="carry",
            kind=ACTIVATION if trained else DATA,
            role="bias",
            loops=init.loops | {steps},
        )
        # The entries may be alike at the first step only.
        carried.varies = (True,) * len(carried.varies)
        carried.carried = steps
        inner.append(carried)
    for x in args[n + m :]:
        if x is None:
            inner.append(None)
            continue
        tape.unify(x.axes[0], steps, eqn)
        links = {k - 1: (k, 0) for k, t in enumerate(x.axes) if t is not None}
        inner.append(
            tape.op(
                eqn,
                [x],
                x.axes[1:],
                [links],
                shape=x.shape[1:],
                loops=x.loops | {steps},
            )
        )
    body = jaxprs.scan_needs(eqn, tuple(outs))[0]
    made = interpret(tape, jaxpr, consts, inner, body)
    results: list[Value | None] = []
    for k, (value, wanted) in enumerate(zip(made, outs)):
        if not wanted or value is None:
            if k < m and value is not None:
                _tie(tape, eqn, args[n + k], inner[n + k], value, steps)
            results.append(None)
        elif k < m:
            results.append(_tie(tape, eqn, args[n + k], inner[n + k], value, steps))
        else:
            links = {i + 1: (i, 0) for i, t in enumerate(value.axes) if t is not None}
            axes = [steps if steps.size > 1 else None, *value.axes]
            results.append(
                tape.op(
                    eqn,
                    [value],
                    axes,
                    [links],
                    shape=shape_of(eqn, k),
                    loops=value.loops - {steps},
                )
            )
    return results


def _tie(
    tape: Tape,
    eqn: core.JaxprEqn,
    init: Any,
    start: Any,
    end: Value,
    steps: Term,
) -> Value:
    """A carry's final value, which scales as it did at the start and at every step."""
    links = []
    for v in (init, start, end):
        links.append({k: (k, 0) for k, t in enumerate(v.axes) if t is not None})
        for a, b in zip(v.axes, end.axes):
            tape.unify(a, b, eqn)
    return tape.op(
        eqn,
        [init, start, end],
        end.axes,
        links,
        shape=end.shape,
        role="bias",
        zero="again",
        loops=end.loops - {steps},
    )
