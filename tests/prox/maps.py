"""One table of every proximal map, with its penalty written out in NumPy float64."""

import functools
from typing import Any, NamedTuple

import numpy as np

from volax import prox

KNEE, BENT, LIMIT, RATIO = 0.7, 3.7, 1.5, 0.3


def power(p):
    return lambda z: np.where(z == 0, 0.0, np.abs(z) ** p)


def elastic(z):
    return RATIO * np.abs(z) + (1 - RATIO) / 2 * z**2


def scad(z):
    z = np.abs(z)
    bent = (2 * BENT * KNEE * z - z**2 - KNEE**2) / (2 * (BENT - 1) * KNEE)
    flat = (BENT + 1) / 2 * KNEE
    return np.where(z <= KNEE, z, np.where(z <= BENT * KNEE, bent, flat))


def mcp(z):
    z = np.abs(z)
    return np.where(z <= KNEE, z - z**2 / (2 * KNEE), KNEE / 2)


def inside(low, high):
    return lambda z: np.where((z >= low) & (z <= high), 0.0, np.inf)


def columns(z):
    return np.sqrt((z**2).sum(-2))


class Map(NamedTuple):
    """A map with its options closed, and its penalty of arrays ``[..., 3, 2]``."""

    call: Any
    penalty: Any  # the same by volax.prox, a scalar
    entries: Any = None  # of single weights, elementwise
    whole: Any = None  # of a matrix, [..., 3, 2] -> [...]

    def of(self, z):
        """The penalty of each matrix, from its definition."""
        return self.whole(z) if self.whole else self.entries(z).sum((-1, -2))


part = functools.partial
MAPS = {
    "soft": Map(prox.soft_threshold, prox.l1_norm, np.abs),
    "hard": Map(prox.hard_threshold, prox.l0_norm, lambda z: 1.0 * (z != 0)),
    "half": Map(prox.half_threshold, part(prox.lp_norm, p=0.5), power(0.5)),
    "two-thirds": Map(
        prox.two_thirds_threshold, part(prox.lp_norm, p=2 / 3), power(2 / 3)
    ),
    **{
        f"lp-{p}": Map(part(prox.lp, p=p), part(prox.lp_norm, p=p), power(p))
        for p in (0.1, 0.8, 1.0, 1.2, 1.9)
    },
    "elastic_net": Map(
        part(prox.elastic_net, ratio=RATIO),
        part(prox.elastic_net_penalty, ratio=RATIO),
        elastic,
    ),
    "scad": Map(part(prox.scad, knee=KNEE), part(prox.scad_penalty, knee=KNEE), scad),
    "mcp": Map(part(prox.mcp, knee=KNEE), part(prox.mcp_penalty, knee=KNEE), mcp),
    "box": Map(
        part(prox.box, low=-0.5, high=1.0),
        part(prox.box_indicator, low=-0.5, high=1.0),
        inside(-0.5, 1.0),
    ),
    "nonnegative": Map(
        prox.nonnegative, prox.nonnegative_indicator, inside(0.0, np.inf)
    ),
    "group": Map(
        part(prox.group_soft_threshold, axis=0),
        part(prox.group_norm, axis=0),
        whole=lambda z: columns(z).sum(-1),
    ),
    "sparse_group": Map(
        part(prox.sparse_group, axis=0, ratio=RATIO),
        part(prox.sparse_group_norm, axis=0, ratio=RATIO),
        whole=lambda z: (
            RATIO * np.abs(z).sum((-1, -2)) + (1 - RATIO) * columns(z).sum(-1)
        ),
    ),
    "max_norm": Map(
        part(prox.max_norm, axis=0, limit=LIMIT),
        part(prox.max_norm_indicator, axis=0, limit=LIMIT),
        whole=lambda z: np.where(
            (columns(z) <= LIMIT * (1 + 1e-12)).all(-1), 0.0, np.inf
        ),
    ),
    "nuclear": Map(
        prox.nuclear,
        prox.nuclear_norm,
        whole=lambda z: np.linalg.svd(z, compute_uv=False).sum(-1),
    ),
}
SEPARABLE = {name: m for name, m in MAPS.items() if m.entries}
CONSTRAINTS = ("box", "nonnegative", "max_norm")
BOUNDED = ("scad", "mcp", "hard")  # finite for any weight, so zero only in the limit
