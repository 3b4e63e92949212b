"""The table of rules: one for each primitive, keyed by the primitive itself."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from jax.extend.core import JaxprEqn, Primitive

from volax.pairs._trace.tape import Links, Value
from volax.pairs._trace.tape import shape_of as shape_of

Rule = Callable[..., Value | list[Value]]
R = TypeVar("R", bound=Rule)
RULES: dict[Primitive, Rule] = {}
PARAMS: dict[Primitive, frozenset[str]] = {}


def rule(*groups: Iterable[Primitive], params: str = "") -> Callable[[R], R]:
    """Registers a function ``rule(tape, eqn, *operands)`` for primitives.

    Args:
      *groups: the primitives.
      params: names of the equations' parameters that the rule reads, or that change no
        value, such as a sharding. An equation with any other parameter is refused.

    Returns:
      A decorator.
    """

    def register(fn: R) -> R:
        for group in groups:
            for primitive in group:
                RULES[primitive] = fn
                PARAMS[primitive] = frozenset(params.split())
        return fn

    return register


def unknown_params(eqn: JaxprEqn) -> set[str]:
    """The parameters of an equation that its primitive's rule does not know."""
    known = PARAMS.get(eqn.primitive)
    return set() if known is None else set(eqn.params) - known


def same(value: Value, *but: int) -> Links:
    """Links every axis of an operand to the same axis of the result."""
    return {
        k: (k, 0)
        for k, term in enumerate(value.axes)
        if term is not None and k not in but
    }
