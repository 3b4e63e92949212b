"""The argument ``keep`` of ``compact``: units that stay even if they are dead."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from volax import masks
from volax._types import Leaf
from volax.pairs.records import Group

# Key paths of producers, a mask, or a dictionary from such a path to the units.
Keep = (
    str
    | Iterable[str]
    | Mapping[str, bool | Sequence[int] | Sequence[bool] | np.ndarray]
    | masks.Mask
    | None
)


def forced(keep: Keep, group: Group, leaves: Mapping[str, Leaf]) -> np.ndarray:
    """The units that the user wants to keep, bool of the group's ``sizes``."""
    chosen = np.zeros(group.sizes, bool)
    if keep is None:
        return chosen
    if isinstance(keep, masks.Mask):
        named = {m.path: keep.selects(m.path, leaves[m.path]) for m in group.producers}
    elif isinstance(keep, Mapping):
        named = keep
    else:
        named = dict.fromkeys((keep,) if isinstance(keep, str) else keep, True)
    for member in group.producers:
        which = named.get(member.path, False)
        if isinstance(which, bool | np.bool_):
            chosen |= which
            continue
        which = np.asarray(which, None if len(which) else int)
        if which.dtype == bool and which.shape == group.sizes:
            chosen |= which
        elif _are_units(which, group.size):
            chosen.reshape(-1)[which] = True
        else:
            raise ValueError(
                f"compact: keep: {member.path!r}: expected True, numbers of units "
                f"below {group.size}, or bools of shape {group.sizes}, got {which!r}"
            )
    return chosen


def _are_units(which: np.ndarray, count: int) -> bool:
    integers = np.issubdtype(which.dtype, np.integer) and which.ndim == 1
    return integers and bool(((which >= 0) & (which < count)).all())


def check(keep: Keep, groups: Sequence[Group], leaves: Mapping[str, Leaf]) -> None:
    """Refuses a choice that is none, or that names no producer."""
    makers = {m.path for g in groups for m in g.producers}
    if isinstance(keep, masks.Mask):
        if not any(keep.selects(path, leaves[path]) for path in makers):
            raise ValueError(
                f"compact: keep: {keep!r} selects none of {sorted(makers)}"
            )
        return
    if not isinstance(keep, str | Iterable):
        raise ValueError(
            "compact: keep must be key paths of producers, a mask of volax, or a "
            f"dictionary from such paths, got {keep!r}"
        )
    for path in (keep,) if isinstance(keep, str) else keep:
        if path not in makers:
            raise ValueError(
                f"compact: keep: {path!r} makes no units of these groups; "
                f"the producers are {', '.join(sorted(makers)[:5])}"
            )
