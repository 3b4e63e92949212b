"""Contractions: where units are made and where they are consumed."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

from jax.extend.core import JaxprEqn

from volax.pairs._trace import terms
from volax.pairs._trace.compat import primitives
from volax.pairs._trace.rules.elementwise import is_narrow
from volax.pairs._trace.rules.registry import rule, shape_of
from volax.pairs._trace.tape import (
    ACTIVATION,
    CONST,
    DATA,
    WEIGHT,
    Links,
    Tape,
    Value,
    dtype_of,
)
from volax.pairs._trace.terms import Term


def _refuse_contracted(
    tape: Tape, eqn: JaxprEqn, x: Value, y: Value, term: Term | None
) -> None:
    """Units are consumed by a weight; any other contraction only mixes them."""
    weights = [v for v in (x, y) if v.kind == WEIGHT]
    if _blank(x, y):
        return
    if len(weights) == 1 and CONST not in (x.kind, y.kind):
        return
    if len(weights) == 2:
        why = "contracted between two parameters: which one makes them is ambiguous"
    elif weights:
        why = "contracted with a constant"
    else:
        why = "contracted between two computed values"
    tape.poison(term, why, eqn, alone=True)


def _blank(x: Value, y: Value) -> bool:
    """Whether a weight meets zeros: the first step of a recurrent cell."""
    return WEIGHT in (x.kind, y.kind) and 0 in (x.known, y.known)


def _check_width(eqn: JaxprEqn) -> None:
    """Refuses a result that is rounded to fewer bits than its operands have."""
    given, made = map(dtype_of, eqn.invars), dtype_of(eqn.outvars[0])
    if is_narrow(made) and not all(map(is_narrow, given)):
        raise ValueError(f"a result in {made}")


@rule(
    primitives("dot_general"),
    params="dimension_numbers precision preferred_element_type out_sharding",
)
def dot_general(tape: Tape, eqn: JaxprEqn, x: Value, y: Value) -> Value:
    """Contracts pairs of axes; batch axes are aligned, the others are free."""
    _check_width(eqn)
    (lhs, rhs), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for k, j in zip(lhs, rhs):
        tape.unify(x.axes[k], y.axes[j], eqn)
        _refuse_contracted(tape, eqn, x, y, x.axes[k])
    axes: list[Term | None] = []
    links: tuple[dict, dict] = ({}, {})
    for k, j in zip(lhs_batch, rhs_batch):
        tape.unify(x.axes[k], y.axes[j], eqn)
        if x.axes[k] is not None:
            links[0][len(axes)], links[1][len(axes)] = (k, 0), (j, 0)
        axes.append(x.axes[k])
    for v, used, link in (
        (x, (*lhs, *lhs_batch), links[0]),
        (y, (*rhs, *rhs_batch), links[1]),
    ):
        for k in range(len(v.shape)):
            if k not in used:
                if v.axes[k] is not None:
                    link[len(axes)] = (k, 0)
                axes.append(v.axes[k])
    return _contraction(
        tape,
        eqn,
        x,
        y,
        axes,
        links,
        contracted=tuple(zip(lhs, rhs)),
        batch=(frozenset(lhs_batch), frozenset(rhs_batch)),
    )


class _Layout(TypedDict, total=False):
    """Of the arguments of :meth:`Tape.op` those that say how axes lie."""

    shape: Sequence[int]
    contracted: tuple[tuple[int, int], ...]
    batch: tuple[frozenset[int], ...]
    mixed: tuple[tuple[int, int], ...]
    why: str
    quiet: bool


def _contraction(
    tape: Tape,
    eqn: JaxprEqn,
    x: Value,
    y: Value,
    axes: Sequence[Term | None],
    links: Sequence[Links],
    **rest: Unpack[_Layout],
) -> Value:
    """A sum of products; a weight contracted with data has made units."""
    return tape.op(
        eqn,
        [x, y],
        axes,
        links,
        law="sum",
        weights=(1, 1),
        zero="any",
        role="producer",
        kind=ACTIVATION if {x.kind, y.kind} == {DATA, WEIGHT} or _blank(x, y) else None,
        known=0.0 if _blank(x, y) else None,
        **rest,
    )


@rule(
    primitives("conv_general_dilated"),
    params="window_strides padding lhs_dilation rhs_dilation dimension_numbers "
    "feature_group_count batch_group_count precision preferred_element_type "
    "out_sharding",
)
def convolution(tape: Tape, eqn: JaxprEqn, x: Value, kernel: Value) -> Value:
    """Contracts input channels; positions slide; groups are a factor of both sides."""
    _check_width(eqn)
    p = eqn.params
    spec, groups = p["dimension_numbers"], p["feature_group_count"]
    (lb, lf, *lpos), (ko, ki, *kpos) = spec.lhs_spec, spec.rhs_spec
    (ob, of, *opos) = spec.out_spec
    axes: list[Term | None] = [None] * len(x.shape)
    links: tuple[dict, dict] = ({}, {})
    axes[ob] = x.axes[lb]
    if x.axes[lb] is not None:
        links[0][ob] = (lb, 0)
    mixed, contracted, batch = [], [], (frozenset(), frozenset())
    for i, (k, j, o) in enumerate(zip(lpos, kpos, opos)):
        plain = (
            kernel.shape[j] == 1
            and p["window_strides"][i] == 1
            and p["lhs_dilation"][i] == 1
            and tuple(p["padding"][i]) == (0, 0)
        )
        if plain and x.axes[k] is not None:
            axes[o], links[0][o] = x.axes[k], (k, 0)
        else:
            mixed += [(0, k), (1, j)]
    if p["batch_group_count"] != 1:
        mixed += [(0, lb), (0, lf), (1, ko), (1, ki)]
        axes[ob], links = None, ({}, {})
    elif groups == 1:
        tape.unify(x.axes[lf], kernel.axes[ki], eqn)
        _refuse_contracted(tape, eqn, x, kernel, x.axes[lf])
        contracted.append((lf, ki))
        axes[of] = kernel.axes[ko]
        if kernel.axes[ko] is not None:
            links[1][of] = (ko, 0)
    elif x.shape[lf] == groups == kernel.shape[ko]:  # depthwise: channel by channel
        tape.unify(x.axes[lf], kernel.axes[ko], eqn)
        axes[of] = kernel.axes[ko]
        links[0][of], links[1][of] = (lf, 0), (ko, 0)
        batch = (frozenset({lf}), frozenset({ko}))
    else:
        return _grouped(tape, eqn, x, kernel, axes, links, mixed)
    return _contraction(
        tape,
        eqn,
        x,
        kernel,
        _slid(tape, eqn, axes, opos, shape_of(eqn)),
        links,
        contracted=tuple(contracted),
        batch=batch,
        mixed=tuple(mixed),
        why=_WINDOW,
        quiet=p["batch_group_count"] == 1,
    )


_WINDOW = "positions of a window"


def _slid(
    tape: Tape,
    eqn: JaxprEqn,
    axes: Sequence[Term | None],
    positions: Sequence[int],
    shape: Sequence[int],
) -> list[Term | None]:
    """Fresh positions, which are data: no parameter decides how many there are."""
    axes = list(axes)
    for o in positions:
        if axes[o] is None and shape[o] != 1:
            axes[o] = Term(shape[o])
            tape.poison(axes[o], _WINDOW, eqn, quiet=True)
    return axes


def _grouped(
    tape: Tape,
    eqn: JaxprEqn,
    x: Value,
    kernel: Value,
    axes: list[Term | None],
    links: tuple[Links, Links],
    mixed: Sequence[tuple[int, int]],
) -> Value:
    """A grouped convolution as a contraction over the channels of each group.

    The channels on both sides are products of the group and the channel within it.
    Both are first taken apart into axes of their own, as a reshape would.
    """
    p = eqn.params
    spec, groups = p["dimension_numbers"], p["feature_group_count"]
    lf, (ko, ki, *_) = spec.lhs_spec[1], spec.rhs_spec
    of = spec.out_spec[1]
    apart = []
    for v, k in ((x, lf), (kernel, ko)):
        group, inner = Term(groups), Term(v.shape[k] // groups)
        ok = terms.unify(v.axes[k], terms.product([group, inner]))  # pyright: ignore
        shape = (*v.shape[:k], groups, v.shape[k] // groups, *v.shape[k + 1 :])
        new = [*v.axes[:k], group, inner, *v.axes[k + 1 :]]
        link = {i + (i > k): (i, 0) for i, t in enumerate(v.axes) if t and i != k}
        merge = (((k,), (k, k + 1)),) if ok else ()
        why = "the groups of a convolution cut across the units"
        bad = () if ok else ((0, k),)
        apart.append(
            tape.op(
                eqn, [v], new, [link], shape=shape, merges=merge, mixed=bad, why=why
            )
        )
    a, b = apart
    ki += ki > ko
    tape.unify(a.axes[lf], b.axes[ko], eqn)
    tape.unify(a.axes[lf + 1], b.axes[ki], eqn)
    _refuse_contracted(tape, eqn, a, b, b.axes[ki])
    shape = list(shape_of(eqn))
    positions = [o + (o > of) for o in spec.out_spec[2:]]
    shape[of : of + 1] = [groups, shape[of] // groups]
    wide = [*axes[:of], b.axes[ko], b.axes[ko + 1], *axes[of + 1 :]]
    shifted = ({}, {of: (ko, 0)})
    for o, (k, shift) in links[0].items():
        shifted[0][o + (o > of)] = (k + (k > lf), shift)
    shifted[0][of] = (lf, 0)
    if b.axes[ko + 1] is not None:
        shifted[1][of + 1] = (ko + 1, 0)
    moved = tuple((i, k + (k > (lf if i == 0 else ko))) for i, k in mixed)
    out = _contraction(
        tape,
        eqn,
        a,
        b,
        _slid(tape, eqn, wide, positions, shape),
        shifted,
        shape=shape,
        contracted=((lf + 1, ki),),
        batch=(frozenset({lf}), frozenset({ko})),
        mixed=moved,
        why=_WINDOW,
        quiet=True,
    )
    final = terms.product([t for t in out.axes[of : of + 2] if t is not None])
    link = {
        o - (o > of): (o, 0)
        for o, t in enumerate(out.axes)
        if t and o not in (of, of + 1)
    }
    axes = [*out.axes[:of], final, *out.axes[of + 2 :]]
    return tape.op(eqn, [out], axes, [link], merges=(((of, of + 1), (of,)),))
