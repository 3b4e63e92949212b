"""The search for units in a program: ``find_groups`` and ``find_pairs``."""

from volax._types import Model, Selection, Tree
from volax.pairs._trace.models import Traceable, traceable
from volax.pairs.records import Group
from volax.pairs.result import Groups


def find_groups(
    fn: Model,
    *args: Tree,
    state_args: int | tuple[int, ...] = (),
    state_outputs: int | tuple[int, ...] = (),
    ignore: Selection = (),
    **keywords: object,
) -> Groups[Group]:
    """Finds every set of parameter axes that share their units.

    The function is traced, not run, and no array is allocated: ``params`` and
    ``inputs`` may be ``jax.ShapeDtypeStruct``. Pass the forward pass, not the loss: a
    penalty reads every weight. Only what is proven is reported; the rest is listed in
    ``refused``, with the reason and the line of your code.

    Args:
      fn: ``fn(params, *inputs)``; or an ``nnx.Module`` or Equinox module (then only
        the inputs follow), or a Linen module or its ``apply`` (then the variables and
        the inputs follow). The parameters of a function may be such a module, as in
        ``find_groups(lambda model, x: jax.vmap(model)(x), model, x)``.
      *args: the parameters and the inputs. Arrays that are not trained (running
        statistics) should be inputs too: what ``fn`` closes over cannot be cut.
      state_args: places among the inputs that hold state, which may be cut together
        with the parameters. Trees whose arrays carry nothing but units are found
        without it.
      state_outputs: places in the returned tuple that only write state back.
      ignore: parameters that stay as they are, such as a frozen backbone or a table
        that a library keeps among its parameters: key paths (of leaves or of what
        stands above them) or a mask such as :func:`volax.path_matches`. They are
        data to the search: nothing that lies along one of them is reported.
      **keywords: given to ``fn`` (for a Linen module, to its ``apply``) as they are,
        not traced, such as ``train=False``.

    Returns:
      The groups, pairs among them, in the order of the parameters.

    Raises:
      ValueError: ``fn`` cannot be traced, uses none of the parameters, or hides them,
        as ``jax.vmap(module)`` and ``lambda x: module(x)`` do; the parameters hold no
        floating-point array; ``ignore`` names no parameter.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.gelu(x @ params["w1"]) @ params["w2"]
      >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
      >>> groups = find_groups(mlp, params, jnp.ones((1, 3)))
      >>> groups[0].name, groups[0].homogeneous
      ('w1 -> w2', False)
    """
    given = traceable(fn, args, state_args, state_outputs, "find_groups", keywords)
    return _search(given, ignore, "find_groups")


def find_pairs(
    fn: Model,
    *args: Tree,
    state_args: int | tuple[int, ...] = (),
    state_outputs: int | tuple[int, ...] = (),
    ignore: Selection = (),
    **keywords: object,
) -> Groups[Group]:
    """Finds the pairs: groups whose units can be rescaled for free.

    Args:
      fn: as in :func:`find_groups`.
      *args: as in :func:`find_groups`.
      state_args: as in :func:`find_groups`.
      state_outputs: as in :func:`find_groups`.
      ignore: as in :func:`find_groups`.
      **keywords: as in :func:`find_groups`.

    Returns:
      The pairs, ready for ``path_prox``; ``refused`` also lists the groups that are no
      pairs.

    Raises:
      ValueError: as for :func:`find_groups`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]
      >>> params = {"w1": jnp.ones((3, 8)), "b1": jnp.ones(8), "w2": jnp.ones((8, 2))}
      >>> print(find_pairs(mlp, params, jnp.ones((1, 3))))
      units  producer  consumers  through
      8      w1        w2         add relu
      <BLANKLINE>
      refused:
        w2 axis 1: the units reach the output (...)
    """
    given = traceable(fn, args, state_args, state_outputs, "find_pairs", keywords)
    return _search(given, ignore, "find_pairs").pairs


def _search(given: Traceable, ignore: Selection, what: str) -> Groups[Group]:
    # The tracer needs jax.extend, which costs a tenth of the import of Optax.
    from volax.pairs._trace.search import search

    return search(given, what, ignore)
