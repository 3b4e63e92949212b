"""One form for models of all libraries: a function, trained parameters, and inputs.

Nothing is imported that the user has not imported: a library is looked up only among
the modules that are already loaded.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Traceable:
    """A model ready to be traced.

    Attributes:
      fn: called as ``fn(params, *inputs)``.
      params: what the optimizer trains.
      inputs: everything else that is an array.
      states: the places among ``inputs`` that hold state, not data.
      state_outputs: the places among the results that only write state back.
    """

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    states: tuple[int, ...] = ()
    state_outputs: tuple[int, ...] = ()


def traceable(
    fn: Any, args: tuple[Any, ...], state_args: Any, state_outputs: Any, what: str
) -> Traceable:
    """Splits what the user gave into a function, parameters and inputs.

    Args:
      fn: a function of parameters and inputs, an ``nnx.Module``, a Linen module or
        its ``apply``, or an Equinox module.
      args: the parameters and inputs, or for a module that holds its parameters the
        inputs alone.
      state_args: places of the state among the inputs.
      state_outputs: places of the written-back state among the results.
      what: who asks, for errors.

    Returns:
      The model in one form.

    Raises:
      ValueError: no parameters were given, or ``fn`` is not callable.
    """
    states, written = _places(state_args), _places(state_outputs)
    nnx, linen = _loaded("flax.nnx"), _loaded("flax.linen")
    equinox = _loaded("equinox")
    if nnx is not None and isinstance(fn, nnx.Module):
        return _from_nnx(nnx, fn, args)
    if linen is not None and isinstance(fn, linen.Module):
        if not args or not isinstance(args[0], Mapping):
            raise ValueError(
                f"{what}: a Linen module holds no parameters; give its variables too, "
                f"as in {what}(module, variables, x)"
            )
        fn = fn.apply
    if equinox is not None and isinstance(fn, equinox.Module) and callable(fn):
        return _from_equinox(fn, args)
    if not callable(fn) or not args:
        raise ValueError(
            f"{what}: expected fn(params, *inputs), an nnx, Linen or Equinox module, "
            f"got {type(fn).__name__} with {len(args)} further arguments"
        )
    params, *inputs = args
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        return _from_collections(fn, params, tuple(inputs), states, written)
    return Traceable(fn, params, tuple(inputs), states, written)


def _places(given: int | tuple[int, ...]) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)


def _loaded(name: str) -> Any:
    return sys.modules.get(name)


def _from_nnx(nnx: Any, model: Any, args: tuple[Any, ...]) -> Traceable:
    """Everything that is no ``nnx.Param`` has to be traced: closing over it fails."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def fn(params: Any, rest: Any, *inputs: Any) -> Any:
        whole = nnx.merge(graph, params, rest)
        result = whole(*inputs)
        return result, nnx.split(whole, nnx.Param, ...)[2]

    return Traceable(fn, params, (rest, *args), (0,), (1,))


def _from_equinox(model: Any, args: tuple[Any, ...]) -> Traceable:
    """Floating-point arrays are trained, as ``eqx.filter_grad`` has it."""

    def trained(x: Any) -> bool:
        array = isinstance(x, jax.Array | jax.ShapeDtypeStruct) or hasattr(
            x, "__array__"
        )
        return array and jnp.issubdtype(x.dtype, jnp.floating)

    params = jax.tree.map(lambda x: x if trained(x) else None, model)
    rest = jax.tree.map(lambda x: None if trained(x) else x, model)

    def fn(params: Any, *inputs: Any) -> Any:
        whole = jax.tree.map(
            lambda a, b: b if a is None else a,
            params,
            rest,
            is_leaf=lambda x: x is None,
        )
        return whole(*inputs)

    return Traceable(fn, params, args)


def _from_collections(
    fn: Callable[..., Any],
    variables: Any,
    inputs: tuple[Any, ...],
    states: tuple[int, ...],
    written: tuple[int, ...],
) -> Traceable:
    """Linen variables: every collection but ``params`` is state."""
    rest = {k: v for k, v in variables.items() if k != "params"}

    def apply(params: Any, rest: Any, *inputs: Any) -> Any:
        return fn({**params, **rest}, *inputs)

    shifted = (0, *(k + 1 for k in states))
    return Traceable(
        apply, {"params": variables["params"]}, (rest, *inputs), shifted, written
    )
