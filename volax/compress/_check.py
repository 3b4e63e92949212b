"""The argument ``check`` of ``compact``: both models, run on the same inputs."""

import dataclasses

import jax

from volax import _modules, _paths
from volax._types import Function, Tree
from volax.compress._proof import Difference, difference


@dataclasses.dataclass
class Check:
    """Runs the two models on the same inputs.

    Attributes:
      fn: the model, ``fn(params, *inputs)``, or ``fn(params, state, *inputs)``.
      small_fn: the same for the smaller parameters.
      inputs: the inputs of both.
      is_module: whether ``params`` is a module, which a run may write to.
      with_state: whether statistics are given apart.
      written: key paths of a module's arrays that the last run wrote.
    """

    fn: Function
    small_fn: Function
    inputs: tuple[Tree, ...]
    is_module: bool
    with_state: bool
    written: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, check: Tree, is_module: bool, state: Tree) -> "Check":
        """Reads the argument ``check``, of one of the two forms that it may have."""
        check = tuple(check) if isinstance(check, tuple | list) else (check,)
        if len(check) == 3 and callable(check[0]):
            fn, small_fn, inputs = check
            fn = _modules.called if _modules.is_module(fn) else fn
        elif is_module and not any(callable(x) for x in check):
            fn, small_fn, inputs = _modules.called, None, check
        else:
            raise ValueError(
                "compact: check must be (fn, small_fn, inputs), or for an NNX or "
                f"Equinox module the tuple of its inputs, got {len(check)} entries"
            )
        inputs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        return cls(fn, small_fn or fn, inputs, is_module, state is not None)

    def full(self, params: Tree, state: Tree) -> Tree:
        """What the model returns."""
        return self._run(self.fn, params, state)

    def compare(
        self, before: Tree, params: Tree, state: Tree, limit: float
    ) -> tuple[Difference | None, str | None]:
        """How far the small model is off, and why it is not the same, if so.

        Args:
          before: what the full model returned.
          params: the smaller parameters or module.
          state: the smaller statistics, where they are given apart.
          limit: the largest relative difference that is accepted.

        Returns:
          The difference, where both ran, and the reason against the small model.
        """
        try:
            after = self._run(self.small_fn, params, state)
        except Exception as error:
            why = f"the small model does not run: {type(error).__name__}: {error}"
            return None, why
        try:
            gap = difference(before, after)
        except ValueError as error:
            return None, f"check: {error}"
        if gap.relative <= limit:
            return gap, None
        return gap, f"the small model differs by {gap}, more than {limit:.2g}"

    def hint(self) -> str:
        """What may stand behind a failure."""
        hints = ["; does the program hold a constant that depends on a width?"]
        if self.written:
            hints.append(
                f"The model draws random numbers or writes statistics "
                f"({', '.join(self.written[:3])}): give model.eval()"
            )
        if self.small_fn is self.fn and not self.is_module:
            hints.append(
                "A module whose widths are static (Linen, Haiku) needs small_fn, which "
                "builds it for the new shapes"
            )
        return " ".join(hints)

    def _run(self, fn: Function, params: Tree, state: Tree) -> Tree:
        """What a model returns; of a module a copy runs."""
        if self.is_module:
            # A run in training mode writes running statistics, which the user's module
            # must not get.
            tree, merge = _modules.split(params)
            params = merge(jax.tree.map(lambda leaf: leaf, tree))
            result = fn(params, *((state,) if self.with_state else ()), *self.inputs)
            new = _paths.named_leaves(_modules.split(params)[0])
            old = _paths.named_leaves(tree)
            self.written = [k for k in old if new.get(k) is not old[k]]
            return result
        return fn(params, *((state,) if self.with_state else ()), *self.inputs)
