"""Decides, before anything is cut, which units of which group stay."""

import dataclasses
import types
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from volax._types import Leaf
from volax.compress import _dead, _keep
from volax.compress._dead import Kept
from volax.compress._fitted import names_of
from volax.compress._fold import fold
from volax.pairs import _cuts, _judge
from volax.pairs.records import Group, Member


@dataclasses.dataclass
class Plan:
    """What will be cut.

    Attributes:
      groups: the fitted groups.
      names: of the groups, no two alike.
      stay: for each group the units that stay, bool of its ``sizes``.
      gone: for each group the units that nothing needs, a few of which may stay.
      unread: those of them that went because nothing reads them.
      kept: units that could have gone but stay, and why.
      folded: parameters that were changed because a constant unit was folded.
    """

    groups: tuple[Group, ...]
    names: tuple[str, ...]
    stay: tuple[np.ndarray, ...]
    gone: tuple[np.ndarray, ...]
    unread: tuple[np.ndarray, ...]
    kept: tuple[Kept, ...]
    folded: dict[str, np.ndarray]


def plan(
    groups: Sequence[Group],
    leaves: Mapping[str, Leaf],
    *,
    round_to: int,
    keep: _keep.Keep,
    proven: bool,
    folding: str | None = None,
    owners: Mapping[str, str],
    leave: Mapping[int, str] = types.MappingProxyType({}),
) -> Plan:
    """Judges all units until nothing more changes.

    Args:
      groups: fitted groups.
      leaves: arrays by key path.
      round_to: counts are multiples of this.
      keep: the user's choice of units that stay.
      proven: whether the result will be checked by running both models.
      folding: why constants are not folded, or ``None`` where they are.
      owners: producers whose size a module around them holds, and its name.
      leave: numbers of groups that stay as they are, and why.

    Returns:
      The plan.
    """
    paths = {m.path for g in groups for m in g.carriers}
    held = {path: np.asarray(leaves[path]) for path in paths}
    shapes = {path: leaf.shape for path, leaf in held.items()}
    # Biases beside a consumer may take a constant over.
    beside = {k: np.asarray(v) for k, v in leaves.items() if _is_vector(v)}
    work, folded = {**beside, **held}, {}
    if keep is not None:
        _keep.check(keep, groups, leaves)
    forced = [_keep.forced(keep, g, leaves) for g in groups]
    unsafe = [
        _cuts.uncuttable(g, owners, shapes)
        or (None if proven else _dead.unsafe(g, held))
        for g in groups
    ]
    unsafe = [leave.get(k) or why for k, why in enumerate(unsafe)]
    gone = [np.zeros(g.sizes, bool) for g in groups]
    unread = [np.zeros(g.sizes, bool) for g in groups]
    idle = [np.zeros(g.sizes, bool) for g in groups]
    reasons: dict[int, str] = {}
    changed = True
    while changed:
        changed = False
        for k, group in enumerate(groups):
            judged = _judge.judge(group, work)
            if unsafe[k] is not None:
                # The units stay, but what they alone read or feed may go.
                new = judged.dead(group) & ~idle[k] & ~forced[k]
                for member in group.carriers if new.any() else ():
                    if _cuts.carries_all(member, group):
                        work[member.path] = _zeroed(work[member.path], member, new)
                idle[k] |= new
                changed |= bool(new.any())
                continue
            new = judged.dead(group) & ~gone[k] & ~forced[k]
            constant = judged.constant & ~new & ~gone[k] & ~forced[k]
            if constant.any():
                moved = folding or fold(group, constant, groups, work)
                if isinstance(moved, str):
                    reasons[k] = moved
                else:
                    for path, bias in moved.items():
                        work[path] = folded[path] = bias
                    for member in group.consumers:
                        # Should the unit stay to round the count, it is read no more.
                        base = folded.get(member.path, held[member.path])
                        folded[member.path] = _zeroed(base, member, constant)
                    new |= constant
            if new.any():
                for member in group.carriers:
                    leaf = work[member.path]
                    work[member.path] = _zeroed(leaf, member, new)
                gone[k] |= new
                unread[k] |= new & judged.unread
                changed = True
    names = names_of(groups)
    stay, kept = [], []
    for k, group in enumerate(groups):
        judged = _judge.judge(group, work)
        said = [*_unchanged(group, judged, gone[k], reasons.get(k), unsafe[k])]
        stay.append(_dead.rounded(~gone[k], round_to))
        if (extra := stay[-1] & gone[k]).any():
            said.append((extra, _why_rounded(gone[k], round_to)))
        if (dead := judged.dead(group) & forced[k] & ~gone[k]).any():
            said.append((dead, "named in keep"))
        kept += [
            Kept(names[k], tuple(np.flatnonzero(which).tolist()), why)
            for which, why in said
            if which.any()
        ]
    return Plan(
        groups=tuple(groups),
        names=names,
        stay=tuple(stay),
        gone=tuple(gone),
        unread=tuple(unread),
        kept=tuple(kept),
        folded=folded,
    )


def lively(
    planned: Plan, leaves: Mapping[str, Leaf], names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Random numbers for weights that are all zero, such as those of a fresh head.

    Behind zeros the outputs depend on no unit, and comparing them proves nothing. What
    the plan removes stays unread, or unfed, so both models have to agree here as well.

    Args:
      planned: the plan.
      leaves: the parameters by key path, folded ones included.
      names: those that may be replaced.

    Returns:
      The parameters that change, none where no parameter is all zero.
    """
    rng = np.random.default_rng(0)
    work = {k: np.asarray(leaves[k]) for g in planned.groups for k in _member_paths(g)}
    new = {}
    for path in names:
        leaf = np.asarray(leaves[path])
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.floating) and not leaf.any():
            fan_in = max(leaf.size // leaf.shape[-1], 1) if leaf.ndim else 1
            drawn = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
            new[path] = work[path] = drawn.astype(leaf.dtype)
    if not new:
        return {}
    for group, stay, unread in zip(planned.groups, planned.stay, planned.unread):
        fed = (group.producers + group.biases, ~stay & ~unread)
        for members, dead in ((group.consumers, ~stay & unread), fed):
            for member in members if dead.any() else ():
                leaf = _zeroed(work[member.path], member, dead)
                new[member.path] = work[member.path] = leaf
    return new


def _member_paths(group: Group) -> Iterable[str]:
    return (member.path for member in group.carriers)


def _zeroed(leaf: np.ndarray, member: Member, which: np.ndarray) -> np.ndarray:
    inside = _dead.positions(member, which, leaf.shape)
    return np.where(inside, np.zeros((), leaf.dtype), leaf)


def _is_vector(leaf: Leaf) -> bool:
    key = jnp.issubdtype(getattr(leaf, "dtype", np.int32), jax.dtypes.prng_key)
    return not key and getattr(leaf, "ndim", 0) == 1


def _unchanged(
    group: Group,
    judged: _judge.Judgement,
    gone: np.ndarray,
    reason: str | None,
    unsafe: str | None,
) -> Iterable[tuple[np.ndarray, str]]:
    """Units that look dead and stay, with the reason."""
    if unsafe is not None:
        yield judged.dead(group), unsafe
        return
    if not _judge.keeps_zero(group):
        yield judged.unfed & ~judged.unread & ~gone, _dead.UNFED
    if reason is not None:
        yield judged.constant & ~gone, f"{_dead.CONSTANT}; {reason}"


def _why_rounded(gone: np.ndarray, round_to: int) -> str:
    counts = (~gone).sum(axis=-1)
    why = []
    if counts.max() == 0:
        why.append("at least one unit stays")
    if counts.min() != counts.max():
        why.append("all layers keep the same count")
    if max(counts.max(), 1) % round_to:
        why.append(f"the count is a multiple of {round_to}")
    return " and ".join(why)
