"""Rules of the user's own, for primitives that the tracer does not know."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

R = TypeVar("R", bound=Callable[..., Any])


def register_rule(*primitives: Any, params: str = "") -> Callable[[R], R]:
    """Teaches the tracer a primitive of your own, such as a kernel's.

    A primitive without a rule refuses all units that it touches. The rule is trusted:
    run :func:`volax.check_groups` on a program that uses the primitive, and on one in
    which units must be refused. A rule that raises an ordinary error, such as
    ``ValueError``, refuses what the equation touches.

    Args:
      *primitives: instances of ``jax.extend.core.Primitive``; a rule that was
        registered before is replaced.
      params: names of the primitives' parameters that the rule reads, or that change no
        value, in one text; an equation with any other parameter is refused.

    Returns:
      A decorator for ``rule(tape, eqn, *operands)``, which returns the traced result,
      or a list with one for each of several results. Most rules are one call of
      :func:`elementwise`; ``volax/pairs/README.md`` says how axes are moved.

    Raises:
      ValueError: something else than primitives, or one that is followed inside, such
        as ``jit`` and ``scan``.

    Example:
      >>> import jax, jax.numpy as jnp, volax
      >>> from jax.extend.core import Primitive
      >>> softsign_p = Primitive("softsign")
      >>> _ = softsign_p.def_abstract_eval(lambda x: x)
      >>> @volax.pairs.register_rule(softsign_p)
      ... def softsign(tape, eqn, x):
      ...     return volax.pairs.elementwise(tape, eqn, x, law="zero")
      >>> def mlp(params, x):
      ...     return softsign_p.bind(x @ params["w1"]) @ params["w2"]
      >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
      >>> volax.find_groups(mlp, params, jnp.ones((1, 3)))[0].note
      'softsign is not positively homogeneous; f(0) = 0'
    """
    # The tracer needs jax.extend, which costs a tenth of the import of Optax.
    from jax.extend.core import Primitive

    from volax.pairs._trace.jaxprs import FOLLOWED
    from volax.pairs._trace.rules import rule

    if not primitives:
        raise ValueError("register_rule: expected at least one primitive, got none")
    for primitive in primitives:
        if not isinstance(primitive, Primitive):
            raise ValueError(
                "register_rule: expected instances of jax.extend.core.Primitive, got "
                f"{primitive!r}; use it as @register_rule(primitive)"
            )
        if primitive in FOLLOWED:
            raise ValueError(
                f"register_rule: {primitive.name} is followed inside and takes no rule"
            )
    return rule(primitives, params=params)


def elementwise(
    tape: Any,
    eqn: Any,
    *operands: Any,
    law: Literal["equal", "sum", "drop", "zero"] = "equal",
    weights: Sequence[Any] = (),
    zero: Literal["all", "any", "lost"] = "all",
) -> Any:
    """The traced result of an operation on each entry, for :func:`register_rule`.

    Axes of the operands are lined up; operands of rank 0 and axes of size 1 stand for
    every index.

    Args:
      tape: what the rule was given.
      eqn: what the rule was given.
      *operands: all of what the rule was given.
      law: how the result scales when operands scale by a factor at each unit:
        ``"equal"`` (all alike, and so does the result: addition, ReLU), ``"sum"`` (as
        the product of the operands' factors to the powers ``weights``), ``"drop"``
        (all alike, and the result does not: a comparison), ``"zero"`` (no such rule:
        tanh).
      weights: powers of the operands' factors under ``law="sum"``, one for each.
      zero: when the result is zero at a unit: where ``"all"`` or ``"any"`` of the
        operands are, or ``"lost"`` where it need not be.

    Returns:
      The result.

    Raises:
      ValueError: an unknown ``law`` or ``zero``, or weights that do not fit; raised in
        a rule it refuses what the equation touches.

    Example:
      >>> def hypot(tape, eqn, x, y):
      ...     return volax.pairs.elementwise(tape, eqn, x, y)
      >>> def gated(tape, eqn, x, gate):  # x * sigmoid(gate)
      ...     gate = volax.pairs.elementwise(tape, eqn, gate, law="zero", zero="lost")
      ...     return volax.pairs.elementwise(
      ...         tape, eqn, x, gate, law="sum", weights=(1, 1), zero="any"
      ...     )
    """
    from volax.pairs._trace.rules.elementwise import elementwise as lined_up

    if law not in ("equal", "sum", "drop", "zero"):
        raise ValueError(
            f"elementwise: law must be 'equal', 'sum', 'drop' or 'zero', got {law!r}"
        )
    if zero not in ("all", "any", "lost"):
        raise ValueError(
            f"elementwise: zero must be 'all', 'any' or 'lost', got {zero!r}"
        )
    if len(weights) != (len(operands) if law == "sum" else 0):
        raise ValueError(
            f"elementwise: law {law!r} of {len(operands)} operands got "
            f"{len(weights)} weights; they go with 'sum', one for each operand"
        )
    return lined_up(tape, eqn, *operands, law=law, weights=tuple(weights), zero=zero)
