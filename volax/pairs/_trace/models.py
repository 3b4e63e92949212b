"""One form for models of all libraries: a function, trained parameters, and inputs.

Nothing is imported that the user has not imported: a library is looked up only among
the modules that are already loaded.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from volax import _equinox, _modules, _nnx
from volax._types import Function, Leaf, Library, Model, Module, Tree


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

    fn: Function
    params: Tree
    inputs: tuple[Tree, ...]
    states: tuple[int, ...] = ()
    state_outputs: tuple[int, ...] = ()


def traceable(
    fn: Model,
    args: tuple[Tree, ...],
    state_args: int | tuple[int, ...],
    state_outputs: int | tuple[int, ...],
    what: str,
    keywords: Mapping[str, object] | None = None,
) -> Traceable:
    """Splits what the user gave into a function, parameters and inputs.

    Args:
      fn: a function of parameters and inputs, an ``nnx.Module``, a Linen module or
        its ``apply``, or an Equinox module; or a ``functools.partial`` of one.
      args: the parameters and inputs, or for a module that holds its parameters the
        inputs alone.
      state_args: places of the state among the inputs.
      state_outputs: places of the written-back state among the results.
      what: who asks, for errors.
      keywords: further arguments of ``fn``; they are not traced.

    Returns:
      The model in one form.

    Raises:
      ValueError: no parameters were given, ``fn`` is not callable, or it hides the
        module that holds its parameters.
    """
    keywords = dict(keywords or {})
    while isinstance(fn, functools.partial):
        fn, args, keywords = fn.func, (*fn.args, *args), {**fn.keywords, **keywords}
    if _modules.is_module(getattr(fn, "__self__", None)) and hasattr(fn, "__func__"):
        fn, args = fn.__func__, (fn.__self__, *args)
    elif _modules.is_module(fn) and not _equinox.is_wrapper(fn) and callable(fn):
        fn, args = _called, (fn, *args)
    _check_visible(fn, what)
    linen = _loaded("flax.linen")
    if linen is not None and isinstance(fn, linen.Module):
        if not args or not isinstance(args[0], Mapping):
            raise ValueError(
                f"{what}: a Linen module holds no parameters; give its variables too, "
                f"as in {what}(module, variables, x)"
            )
        fn = fn.apply
    if not callable(fn) or not args:
        raise ValueError(
            f"{what}: expected fn(params, *inputs), an nnx, Linen or Equinox module, "
            f"got {type(fn).__name__} with {len(args)} further arguments"
            + (f"; {as_parameters(what)}" if callable(fn) else "")
        )
    while isinstance(fn, jax.stages.Wrapped) and hasattr(fn, "__wrapped__"):
        # A jitted function returns the trace that it kept of arrays of these shapes,
        # even if the sizes that the model's layers hold have changed since.
        fn = getattr(fn, "__wrapped__")  # noqa: B009, the type does not name it
    fn = functools.partial(fn, **keywords) if keywords else fn
    params, *inputs = args
    states = _places(state_args, len(inputs), f"{what}: state_args")
    written = _places(state_outputs, None, f"{what}: state_outputs")
    given = Traceable(fn, params, tuple(inputs), states, written)
    if _nnx.is_module(params):
        return _from_nnx(given)
    if _equinox.holds_module(params):
        return _from_equinox(given)
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        return _from_collections(given)
    return given


def as_parameters(what: str, call: str = "model(x)") -> str:
    """The hint that ends an error about a model whose parameters nobody gave."""
    shown = f"{what}(lambda model, x: {call}, model, x)"
    return f"give the model as the parameters, as in {shown}"


def _called(model: Model, *inputs: Tree, **keywords: object) -> Tree:
    """A module as a function of itself and its inputs."""
    return model(*inputs, **keywords)


def _places(
    given: int | tuple[int, ...], count: int | None, what: str
) -> tuple[int, ...]:
    """Places in a tuple of ``count``; those counted from the end may be negative."""
    places = (given,) if isinstance(given, int) else tuple(given)
    if count is None:
        return places
    for place in places:
        if not -count <= place < count:
            raise ValueError(f"{what}: {place} is no place among {count} inputs")
    return tuple(place % count for place in places)


def _check_visible(fn: Model, what: str) -> None:
    """Refuses a wrapped module, whose arrays the trace would take for constants."""
    module = _wrapped_module(fn) if callable(fn) else None
    if module is not None and jax.tree.leaves(_modules.split(module)[0]):
        raise ValueError(
            f"{what}: the function wraps a module ({type(module).__name__}) and hides "
            f"its arrays; {as_parameters(what, 'jax.vmap(model)(x)')}"
        )


def _wrapped_module(fn: Model) -> Module:
    """The module around which ``jax.vmap`` and the like made this function."""
    if fn is None or _modules.is_module(fn):
        return fn
    inside = [getattr(fn, "__wrapped__", None)]
    if inspect.isfunction(fn) and fn.__code__.co_filename.startswith(_JAX):
        # JAX does not set ``__wrapped__`` where the module has attributes of its own;
        # the function that it made then holds the module in its closure alone.
        cells = (cell.cell_contents for cell in fn.__closure__ or ())
        inside += [x for x in cells if _modules.is_module(x) or inspect.isfunction(x)]
    return next((x for x in map(_wrapped_module, inside) if x is not None), None)


_JAX = os.path.dirname(jax.__file__)


def _loaded(name: str) -> Library:
    """A library, if the user has imported it."""
    return sys.modules.get(name)


def _from_nnx(given: Traceable) -> Traceable:
    """An NNX module as a function of its parameters and of all else that it holds.

    Statistics, keys and counters are an input, for NNX refuses to write to variables
    that a traced function closes over. What they are after the call is one result more,
    the last one, which only writes state back.
    """
    from flax import nnx

    graph, params, rest = nnx.split(given.params, nnx.Param, ...)
    written = given.state_outputs

    def fn(params: Tree, rest: Tree, *inputs: Tree) -> Tree:
        whole = nnx.merge(graph, params, rest)
        # Nothing happens here unless arrays of other shapes are traced.
        _nnx.resize(whole, given.params)
        result = given.fn(whole, *inputs)
        after = nnx.split(whole, nnx.Param, ...)[2]
        return (*result, after) if written else (result, after)

    states = (0, *(k + 1 for k in given.states))
    # Places counted from the end move by the one result that stands there now.
    places = (*(k if k >= 0 else k - 1 for k in written), -1)
    return Traceable(fn, params, (rest, *given.inputs), states, places)


def _from_equinox(given: Traceable) -> Traceable:
    """Floating-point arrays are trained, as ``eqx.filter_grad`` has it."""

    def trained(x: Leaf) -> bool:
        return _equinox.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)

    params, merge = _equinox.split(given.params, trained)

    def fn(params: Tree, *inputs: Tree) -> Tree:
        return given.fn(merge(params), *inputs)

    return dataclasses.replace(given, fn=fn, params=params)


def _from_collections(given: Traceable) -> Traceable:
    """Linen variables: every collection but ``params`` is state."""
    rest = {k: v for k, v in given.params.items() if k != "params"}

    def apply(params: Tree, rest: Tree, *inputs: Tree) -> Tree:
        return given.fn({**params, **rest}, *inputs)

    return Traceable(
        apply,
        {"params": given.params["params"]},
        (rest, *given.inputs),
        (0, *(k + 1 for k in given.states)),
        given.state_outputs,
    )


@contextlib.contextmanager
def sizes_from_arrays(fields: Mapping[int, int]) -> Iterator[list[set[int]]]:
    """Lets Linen and Haiku layers run on arrays of other sizes than they declare.

    Only calls in this thread and under this context are changed, by the interceptors
    that both libraries offer.

    Args:
      fields: numbers that the fields of the user's own layers hold, and what they are
        to hold instead.

    Yields:
      A list that gets the numbers in the fields of each layer that is called.
    """
    called: list[set[int]] = []
    with contextlib.ExitStack() as stack:
        if (linen := _loaded("flax.linen")) is not None:
            layers = functools.partial(_linen_layer, linen, called, fields)
            stack.enter_context(linen.intercept_methods(layers))
        if (haiku := _loaded("haiku")) is not None:
            layers = functools.partial(_haiku_layer, haiku, called, fields)
            stack.enter_context(haiku.intercept_methods(layers))
        yield called


def _linen_layer(
    linen: Library,
    called: list[set[int]],
    fields: Mapping[int, int],
    call: Function,
    args: tuple[Tree, ...],
    kwargs: dict[str, Tree],
    context: Library,
) -> Tree:
    """Calls a method of a Linen module with parameters of whatever shapes they have.

    A layer that asks for a parameter gets the stored one, and its fields hold the sizes
    of ``fields``. A convolution's kernel is ``[*window, in / groups, out]``, so that
    the channels of its input tell how many groups there are.
    """
    layer = context.module
    called.append(_numbers(layer))

    def param(name: str, init: Function, *init_args: Tree, **more: Tree) -> Tree:
        if layer.has_variable("params", name):
            # Linen compares the stored array with the shape of what ``init`` returns,
            # which follows the sizes in the layer's fields. An ``init`` that returns
            # the stored array itself agrees with every shape.
            stored = layer.get_variable("params", name)
            boxed = {k: v for k, v in more.items() if k == "unbox"}
            return type(layer).param(layer, name, lambda *_: stored, **boxed)
        return type(layer).param(layer, name, init, *init_args, **more)

    new: dict[str, object] = {"param": param}
    # Where ``param`` is replaced already, one method of the layer calls another, and
    # its fields hold the new sizes; to map them again would change them twice.
    if "param" not in vars(layer):
        new |= _other_sizes(layer, fields)
    conv = isinstance(layer, linen.Conv) and context.method_name == "__call__"
    if conv and layer.has_variable("params", "kernel"):
        kernel = linen.meta.unbox(layer.get_variable("params", "kernel"))
        new["feature_group_count"] = args[0].shape[-1] // kernel.shape[-2]
    with _attributes(layer, new):
        return call(*args, **kwargs)


def _haiku_layer(
    haiku: Library,
    called: list[set[int]],
    fields: Mapping[int, int],
    call: Function,
    args: tuple[Tree, ...],
    kwargs: dict[str, Tree],
    context: Library,
) -> Tree:
    """Calls a method of a Haiku module, whose sizes become those of its kernel ``w``.

    That is ``[in, out]`` in a linear layer, ``[*window, in / groups, out]`` in a
    convolution and ``[*window, out, in]`` in a transposed one.
    """
    layer = context.module
    called.append(_numbers(layer))
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    new = _other_sizes(layer, fields)
    kernel = haiku.get_params().get(layer.module_name, {}).get("w")
    if kernel is not None:
        if isinstance(layer, haiku.Linear):
            new["output_size"] = kernel.shape[-1]
        elif isinstance(layer, haiku.ConvND):
            new["output_channels"] = kernel.shape[-1]
            channels = args[0].shape[layer.channel_index]
            new["feature_group_count"] = channels // kernel.shape[-2]
        elif isinstance(layer, haiku.ConvNDTranspose):
            new["output_channels"] = kernel.shape[-2]
    with _attributes(layer, new):
        return call(*args, **kwargs)


def _numbers(layer: Module) -> set[int]:
    """The numbers that the fields of a user's layer hold, alone and in tuples."""

    def inside(held: object) -> Iterator[int]:
        if isinstance(held, tuple):
            for part in held:
                yield from inside(part)
        elif type(held) is int:
            yield held

    return {n for held in _fields(layer).values() for n in inside(held)}


def _other_sizes(layer: Module, sizes: Mapping[int, int]) -> dict[str, object]:
    """The fields of a user's layer that hold one of these sizes, with the others."""

    def other(held: object) -> object:
        if isinstance(held, tuple):
            return tuple(map(other, held))
        return sizes.get(held, held) if type(held) is int else held

    return {k: other(v) for k, v in _fields(layer).items()}


def _fields(layer: Module) -> dict[str, object]:
    """The fields of a user's layer that hold integers or tuples."""
    if type(layer).__module__.startswith(("flax.", "haiku.")):
        return {}  # the layers of both libraries get theirs from their arrays
    plain = {k: v for k, v in vars(layer).items() if isinstance(v, int | tuple)}
    return {k: v for k, v in plain.items() if not k.startswith("_")}


@contextlib.contextmanager
def _attributes(layer: Module, new: Mapping[str, object]) -> Iterator[None]:
    """Sets attributes of a frozen or other object, and puts the old ones back."""
    before = {name: vars(layer)[name] for name in new if name in vars(layer)}
    for name, value in new.items():
        object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        for name in new:
            if name in before:
                object.__setattr__(layer, name, before[name])
            else:
                object.__delattr__(layer, name)
