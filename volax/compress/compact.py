"""Makes a model physically smaller: ``compact``."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from volax import _modules, _nnx
from volax._text import aligned
from volax._types import Json, Leaf, Tree
from volax.compress import _manifest, _proof
from volax.compress._check import Check
from volax.compress._cut import Cuts, Cutting, cut, cut_state, cutting
from volax.compress._dead import Kept
from volax.compress._fitted import fitted
from volax.compress._keep import Keep
from volax.compress._kinds import PARAMETER
from volax.compress._plan import Plan, lively, plan
from volax.compress._proof import Difference
from volax.compress._source import Source, in_state, out_of_state
from volax.pairs.records import Written
from volax.pairs.result import Groups


@dataclasses.dataclass(frozen=True)
class Compacted:
    """A smaller model and how it came about.

    Attributes:
      params: what was given, smaller: a tree of the same structure, or a new module.
      state: the running statistics, if they were given apart.
      opt_state: the optimizer's state, if it was given.
      sizes: the new shape of every array by key path.
      groups: the groups as they fit the smaller model, for the optimizer that goes on
        training it, for ``report``, or to be compacted again.
      kept: units that could have gone but stay, and why.
      difference: of the two models on the inputs of ``check``, or ``None``.
      manifest: all of this as plain JSON values; ``parameters``, ``state`` (running
        statistics and the like) and ``other`` (random keys, counters, integers) are
        how many numbers there were and are.
    """

    params: Tree
    state: Tree
    opt_state: Tree
    sizes: dict[str, tuple[int, ...]]
    groups: Groups
    kept: tuple[Kept, ...]
    difference: Difference | None
    manifest: Json

    def __str__(self) -> str:
        rows = [["units", "left", "group"]]
        for group in self.manifest["groups"]:
            units = " x ".join(map(str, group["units"]))
            rows.append([units, str(group["left"]), group["name"]])
        lines = aligned(rows, "rrl", ruled=True)
        lines.append("")
        for kind in ("parameters", "state", "other"):
            before, after = self.manifest[kind]
            if before or kind == "parameters":
                lines.append(f"{kind}: {before:,} -> {after:,}")
        proof = "not known; check=(fn, small_fn, inputs) runs both models"
        lines += [f"difference: {self.difference or proof}"]
        return "\n".join([*lines, *map(str, self.kept)])


def compact(
    params: Tree,
    groups: Written | Iterable[Written],
    *,
    state: Tree = None,
    opt_state: Tree = None,
    round_to: int = 1,
    keep: Keep = None,
    check: tuple[Any, ...] | list[Any] | Leaf = None,
    tolerance: float | None = None,
) -> Compacted:
    r"""Removes dead units, so that the same function needs a smaller model.

    A unit goes if nothing reads it (all outgoing weights are zero) or nothing feeds it
    (all incoming weights and biases are zero, and zero stays zero up to where it is
    read). It goes from every array that carries it: kernels, biases, the scales,
    shifts and statistics of a norm, depthwise filters, flattened consumers, the
    moments of the optimizer. With ``check``, a ReLU unit that has nothing but its bias
    is folded into the next bias, $b' = b + \max(b_u, 0) \sum v_u$, where the consumer
    does not pad.

    Sizes that the program itself holds do not shrink with the parameters: a
    ``split`` at a fixed place, a factor of $1/\sqrt{width}$. Traced groups know: the
    program was traced again with fewer units, and what differs or does not trace is in
    ``Group.constants``; such groups are cut only with ``check``. A hand-written group
    says nothing of the program: give ``check``. An NNX attention keeps its heads, which
    must be of equal size. Arrays keep their sharding; an axis whose new size the mesh
    does not divide is whole on every device (``round_to`` keeps sizes that divide).

    Training goes on with what comes back: ``params``, ``opt_state``, and a
    transformation made anew with the pairs of ``groups``, for those given here are
    numbered for the larger arrays.

    Args:
      params: a tree of parameters, Linen variables with all collections, or an NNX
        or Equinox module.
      groups: from ``find_groups``, or written by hand with :func:`volax.pair`. Group
        records must be complete: a use of the units that they do not list is lost.
      state: running statistics, where they are no part of ``params``.
      opt_state: the state of the optimizer, or an ``nnx.Optimizer``: every array of
        the shape of a parameter, at a key path that ends with the parameter's, is cut
        alike.
      round_to: unit counts are rounded up to a multiple of this, by keeping dead
        units; 8 or 128 suit matrix hardware.
      keep: units that stay even if dead: key paths of producers, a mask such as
        :func:`volax.path_matches`, or a dictionary from such a path to ``True``, unit
        numbers, or bools.
      check: ``(fn, small_fn, inputs)``. ``fn(params, *inputs)`` is the model (with
        ``state``, ``fn(params, state, *inputs)``), ``small_fn`` the same for the small
        parameters: the same function, or for Linen one that builds the module from
        the shapes it is given. ``None`` for ``small_fn`` means ``fn``. Both run once
        more with random numbers for parameters that are all zero, behind which no unit
        would show. Groups with which the models differ stay, in ``kept``. For an NNX or
        Equinox module the tuple of inputs is enough.
      tolerance: largest relative difference; by default 1e-5 for float32 and the like
        of it for other dtypes.

    Returns:
      The smaller model as :class:`Compacted`. What was given is left alone.

    Raises:
      ValueError: a group does not fit the tree; the optimizer's state cannot be cut;
        the models differ by more than the tolerance, whichever groups are cut.

    Example:
      >>> import jax.numpy as jnp, volax
      >>> params = {"w1": jnp.ones((3, 4)), "w2": jnp.array([[1.0], [0], [2], [0]])}
      >>> fn = lambda p, x: jnp.maximum(x @ p["w1"], 0) @ p["w2"]
      >>> small = compact(
      ...     params, volax.pair("w1", "w2"), check=(fn, fn, (jnp.ones((5, 3)),))
      ... )
      >>> small.sizes, small.difference.absolute
      ({'w1': (3, 2), 'w2': (2, 1)}, 0.0)
      >>> tx = volax.path_prox_sgd(0.1, 0.01, small.groups.pairs)

    References:
      Dead units after a group threshold: Yang et al., `A Better Way to Decay
      <https://arxiv.org/abs/2210.03069>`_, 2022.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(
            f"compact: round_to must be an integer of 1 or more, got {round_to!r}"
        )
    if tolerance is not None and check is None:
        raise ValueError(
            "compact: tolerance is the limit of check, and check was not given"
        )
    source = Source.of(params, state)
    shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in source.leaves.items()}
    listed = groups
    if state is not None:
        every = (groups,) if isinstance(groups, Written) else groups
        listed = [in_state(group) for group in every]
    found = fitted(listed, source.leaves, "compact", source.apart)
    run = None if check is None else Check.of(check, source.is_module, state)
    limit = tolerance
    before = None if run is None else run.full(params, state)
    owners = _nnx.owners(params)
    if run is not None and limit is None:
        carried = [source.leaves[m.path] for g in found for m in g.carriers]
        limit = _proof.tolerance(carried, before)

    def planned(folding: str | None, leave: dict[int, str]) -> Plan:
        return plan(
            found,
            source.leaves,
            round_to=round_to,
            keep=keep,
            proven=run is not None,
            folding=folding,
            owners=owners,
            leave=leave,
        )

    def attempt(folding: str | None, leave: dict[int, str]) -> _Attempt:
        """Cuts all groups but ``leave`` and runs both models, where there are two."""
        made = planned(folding, leave)
        after = cutting(found, made.stay, shapes)

        def smaller(new: dict[str, Leaf]) -> tuple[Tree, Tree]:
            for path, gathers in after.cuts.items():
                new[path] = cut(new.get(path, source.leaves[path]), gathers)
            return source.rebuilt(new)

        folded = {k: source.like(k, v) for k, v in made.folded.items()}
        small, small_state = smaller(dict(folded))
        gap, why = None, None
        if run is not None and limit is not None:
            gap, why = run.compare(before, small, small_state, limit)
            # Behind weights that are all zero no unit shows in the outputs. So the
            # models have to agree with random numbers in the place of such weights too.
            names = [k for k, kind in source.kinds.items() if kind == PARAMETER]
            drawn = {} if why else lively(made, source.leaves | folded, names)
            if drawn:
                drawn = folded | {k: source.like(k, v) for k, v in drawn.items()}
                vivid = run.full(*source.rebuilt(drawn))
                if _proof.is_finite(vivid):
                    _, why = run.compare(vivid, *smaller(dict(drawn)), limit)
                why = why and f"with random numbers in place of zeros, {why}"
        return _Attempt(folding, made, after, small, small_state, gap, why)

    def best(leave: dict[int, str]) -> _Attempt:
        """An attempt with constants folded, or without where folding fails."""
        trial = attempt(None, leave)
        if trial.why and trial.planned.folded:
            return attempt(f"folding it changed the outputs: {trial.why}", leave)
        return trial

    if run is None:
        done = attempt("only check can prove a fold", {})
    else:
        done = best({})
        if done.why:
            done, leave = _without_failing(done, best)
            kept = planned(done.folding, leave).kept
            done.planned = dataclasses.replace(done.planned, kept=kept)
        if done.why:
            raise ValueError(
                f"compact: {done.why}{run.hint()}; keep=... leaves groups as they are; "
                f"cut were {_cut_names(done.planned)}"
            )
    made, after = done.planned, done.after
    left = tuple(map(out_of_state, after.groups))
    if isinstance(groups, Groups):
        smaller = groups.resized(left, shapes, after.shapes)
    else:
        smaller = Groups(left)
    return Compacted(
        params=done.small,
        state=done.state,
        opt_state=_optimizer(opt_state, after.cuts, shapes),
        sizes=after.shapes,
        groups=smaller,
        kept=_manifest.kept(made, after),
        difference=done.gap,
        manifest=_manifest.manifest(made, after, source.kinds, shapes, done.gap),
    )


_NAMED = 5  # how many of the groups that were cut an error names


@dataclasses.dataclass
class _Attempt:
    """A smaller model, and why it is not the same function, if so.

    Attributes:
      folding: why constants were not folded, or ``None`` where they were.
      planned: which units of which group stay.
      after: what was cut, and the groups that fit the smaller model.
      small: the smaller parameters or module.
      state: the smaller statistics, where they were given apart.
      gap: how far the two models are apart, where both ran.
      why: why the smaller one is refused.
    """

    folding: str | None
    planned: Plan
    after: Cutting
    small: Tree
    state: Tree
    gap: Difference | None
    why: str | None


def _without_failing(
    whole: _Attempt, best: Callable[[dict[int, str]], _Attempt]
) -> tuple[_Attempt, dict[int, str]]:
    """The model in which the groups that cannot be cut stay, and these with the reason.

    At first all groups stay. Half of them is cut; where the models agree it remains cut
    while the other half is tried on top of it, and where they differ it is halved
    again, down to single groups. The ``k`` that fail of ``n`` cost about
    ``2 k log2(n)`` attempts.

    Args:
      whole: the attempt that cuts all groups, which failed.
      best: makes an attempt that leaves groups as they are, by number and reason.

    Returns:
      The attempt that cuts as much as holds, and the groups that it leaves; ``whole``
      again where nothing holds.
    """
    cut = [k for k, stay in enumerate(whole.planned.stay) if not stay.all()]
    leave = dict.fromkeys(cut, "not tried yet")
    found, waiting = whole, [cut[len(cut) // 2 :], cut[: len(cut) // 2]]
    while waiting and len(cut) > 1:
        some = waiting.pop()
        trial = best({k: why for k, why in leave.items() if k not in some})
        if not trial.why:
            found = trial
            for k in some:
                del leave[k]
        elif len(some) == 1:
            leave[some[0]] = trial.why
        else:
            waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
    return (found, leave) if found.after.cuts and not found.why else (whole, {})


def _optimizer(opt_state: Tree, gone: Cuts, shapes: _nnx.Shapes) -> Tree:
    """The optimizer's state, or an ``nnx.Optimizer``, for the smaller parameters."""
    tree, merge = _modules.split(opt_state)
    return merge(cut_state(tree, gone, shapes))


def _cut_names(planned: Plan) -> str:
    """The names of the first groups that lose units, in one line."""
    names = [name for name, s in zip(planned.names, planned.stay) if not s.all()]
    more = [f"and {len(names) - _NAMED} more"] * (len(names) > _NAMED)
    return "; ".join(names[:_NAMED] + more)
