"""Equal total path norms for all pairs of a net, without changing its function.

Each pair's outgoing weights are multiplied by a factor, and the biases along the
network by the product of the factors in front of them; the product over all is one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from volax.pairs._path_norm import path_norms
from volax.pairs.records import Group
from volax.prox._path_shrinkage import is_usable

Factors = float | jax.Array


class Scales(NamedTuple):
    """What balancing multiplies a pair by, and leaves that it multiplies as a whole."""

    biases: Factors
    consumers: Factors
    leaves: dict[str, jax.Array]


UNBALANCED = Scales(1, 1, {})


def balanced(now: dict[str, jax.Array], groups: tuple[Group, ...]) -> list[Scales]:
    """The scales after which all pairs have the same total path norm.

    Each pair's output is then scaled by a known product of factors, and so are the
    biases along the network; the product over all pairs is one.
    """
    sides = [
        {m.path for m in side} for g in groups for side in (g.producers, g.consumers)
    ]
    if sum(map(len, sides)) != len(set().union(*sides)):
        raise ValueError(
            "path_prox: balance needs pairs that share no parameter, got "
            + "; ".join(g.name for g in groups)
        )
    unknown = [
        g.name + (f" ({g.unbalanced})" if g.unbalanced else "")
        for g in groups
        if g.downstream is None and g.output_biases is None
    ]
    if unknown:
        raise ValueError(
            "path_prox: balance has to scale the biases behind the consumers, which "
            f"are not known for {'; '.join(unknown)}; where they can be scaled, write "
            "the pairs down with volax.pair(..., output_bias=...)"
        )
    totals = jnp.stack([jnp.sum(path_norms(g, now)) for g in groups])
    # A pair that is dead as a whole, or not finite, keeps its scale.
    live = is_usable(totals)
    logs = jnp.log(jnp.where(live, totals, 1))
    mean = jnp.sum(logs) / jnp.maximum(jnp.sum(live, dtype=logs.dtype), 1)
    logs = jnp.where(live, mean - logs, 0)
    # A pair written by hand names the biases up to the next one, and the biases of that
    # one follow; a search names all of them, in whatever order the pairs are.
    biases = [jnp.zeros((), logs.dtype)] * len(groups)
    leaves: dict[str, Factors] = {}
    for k, group in enumerate(groups):
        reached = [*behind(group)]
        if group.downstream is None:
            for j in range(k + 1, len(groups)):
                biases[j] = biases[j] + logs[k]
                reached += behind(groups[j])
        for path in dict.fromkeys(reached):
            leaves[path] = leaves.get(path, 0) + logs[k]
    missing = [path for path in leaves if path not in now]
    if missing:
        raise ValueError(
            "path_prox: balance has to scale the biases behind the consumers, and "
            f"{', '.join(missing)} is masked out"
        )
    scales = [Scales(jnp.exp(b), jnp.exp(c), {}) for b, c in zip(biases, logs)]
    scales[0] = scales[0]._replace(
        leaves={path: jnp.exp(total) for path, total in leaves.items()}
    )
    return scales


def behind(group: Group) -> tuple[str, ...]:
    """Key paths of the biases behind a pair, those that the record names."""
    if group.downstream is not None:
        return group.downstream
    return tuple(m.path for m in group.output_biases or ())
