"""What ``compact`` did, as plain JSON values, and what it kept."""

import dataclasses
import math

import numpy as np

from volax import _nnx
from volax._types import Json
from volax.compress._cut import Cutting
from volax.compress._dead import Kept
from volax.compress._kinds import OTHER, PARAMETER, STATE
from volax.compress._plan import Plan
from volax.compress._proof import Difference


def manifest(
    planned: Plan,
    after: Cutting,
    kind: dict[str, str],
    shapes: _nnx.Shapes,
    gap: Difference | None,
) -> Json:
    """What was done as plain JSON values; ``kind`` is that of each array."""

    def counts(which: str) -> list[int]:
        """How many numbers of a kind there were, and are."""
        return [
            sum(math.prod(shape) for k, shape in tree.items() if kind[k] == which)
            for tree in (shapes, after.shapes)
        ]

    return {
        "parameters": counts(PARAMETER),
        "state": counts(STATE),
        "other": counts(OTHER),
        "shapes": {path: list(shape) for path, shape in after.shapes.items()},
        "groups": [
            {
                "name": name,
                "units": list(group.sizes),
                "left": left.shape[-1],
                "removed": np.setdiff1d(np.arange(group.size), left).tolist(),
            }
            for name, group, left in zip(planned.names, planned.groups, after.left)
        ],
        "kept": [
            {"group": k.group, "units": list(k.units), "reason": k.reason}
            for k in kept(planned, after)
        ],
        "difference": None if gap is None else dataclasses.asdict(gap),
    }


def kept(planned: Plan, after: Cutting) -> tuple[Kept, ...]:
    """What was kept, without the units that went along with those of another group.

    Heads and the channels in them are units of two groups over the same arrays: a dead
    channel that was to stay is gone where its whole head went.
    """
    left = {
        name: set(numbers.reshape(-1).tolist())
        for name, numbers in zip(planned.names, after.left)
    }
    found = (
        dataclasses.replace(k, units=tuple(u for u in k.units if u in left[k.group]))
        for k in planned.kept
    )
    return tuple(k for k in found if k.units)
