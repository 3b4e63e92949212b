"""The jaxprs that lie in the parameters of equations."""

from collections.abc import Iterator, Sequence

from jax.extend import core

from volax._types import Leaf

Body = tuple[core.Jaxpr, Sequence[Leaf]]


def bodies(param: object) -> Iterator[Body]:
    """The jaxprs in a parameter, one or several of them, with their constants."""
    for part in param if isinstance(param, tuple | list) else (param,):
        body = getattr(part, "jaxpr", part)
        if isinstance(body, core.Jaxpr):
            yield body, getattr(part, "consts", ())


def all_eqns(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The equations of a jaxpr and of those inside, outer ones first."""
    for eqn in jaxpr.eqns:
        yield eqn
        for param in eqn.params.values():
            for body, _ in bodies(param):
                yield from all_eqns(body)
