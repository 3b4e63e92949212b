"""Which inputs are state: arrays that are no parameters, but are cut with the units.

State is written back, so its arrays have the same layout when they come in and when
they go out. Where both are known, each input array is tied to the output at the same
path. That also tells how an array lies that the program only writes, as Haiku's batch
norm does with its ``average`` in training.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from volax.pairs._trace import terms
from volax.pairs._trace.tape import Tape, Value

Tree = Sequence[tuple[str, Value]]  # paths and arrays

# The arrays of a haiku.ExponentialMovingAverage. An evaluation reads the average alone,
# and the hidden sum, from which it is made, has its shape and layout.
_AVERAGE, _HIDDEN, _COUNTER = "average", "hidden", "counter"


def tie_outputs(
    tape: Tape, inputs: Mapping[int, Tree], written: Sequence[Tree]
) -> set[int]:
    """Ties written-back arrays to the inputs that they are the next values of.

    Args:
      tape: where the axes are lined up.
      inputs: trees among the inputs by place.
      written: trees among the results that are declared to write state back.

    Returns:
      The places of the inputs that are state, since all of a written tree is found
      there, at the same paths and with the same shapes, and in no other input.
    """
    found = set()
    for tree in written:
        shapes = {path: value.shape for path, value in tree}
        homes = [
            k
            for k, given in inputs.items()
            if shapes and shapes.items() <= {p: v.shape for p, v in given}.items()
        ]
        if len(homes) != 1:
            continue
        found.add(homes[0])
        before = dict(inputs[homes[0]])
        for path, value in tree:
            _unify(tape, before[path], value)
    return found


def tie_averages(tape: Tape, tree: Tree) -> None:
    """Ties the hidden sums of Haiku's moving averages to the averages."""
    if "haiku" not in sys.modules:
        return
    beside: dict[str, dict[str, Value]] = defaultdict(dict)
    for path, value in tree:
        parent, _, name = path.rpartition("/")
        beside[parent][name] = value
    for arrays in beside.values():
        if set(arrays) == {_AVERAGE, _HIDDEN, _COUNTER}:
            average, hidden = arrays[_AVERAGE], arrays[_HIDDEN]
            if average.shape == hidden.shape and arrays[_COUNTER].shape == ():
                _unify(tape, hidden, average)


def _unify(tape: Tape, a: Value, b: Value) -> None:
    for one, other in zip(a.axes, b.axes):
        tape.unify(one, other, None)


def unit_trees(
    trees: Mapping[int, Tree], made: set[terms.Term], data: Sequence[Value]
) -> set[int]:
    """The trees among the inputs that are state, if the others hold the data.

    All arrays of such a tree carry nothing but axes of parameters. Some other input
    has to have an axis of its own: an example without a batch axis is no state.
    """
    alike = {k for k, tree in trees.items() if all(_of_units(v, made) for _, v in tree)}
    rest = [v for k, tree in trees.items() if k not in alike for _, v in tree]
    others = [v for v in (*data, *rest) if v.shape]
    return set() if all(_of_units(v, made) for v in others) else alike


def _of_units(value: Value, made: set[terms.Term]) -> bool:
    """Whether all axes carry units that parameters make."""
    return all(t is None or set(terms.leaves(t)) <= made for t in value.axes)


def unread_beside(states: Tree, unread: set[Value]) -> list[tuple[Value, Value]]:
    """State that the program does not read, with state of its shape beside it.

    How an array lies that is not read cannot be known from the program. Beside an
    array that is cut, and of its shape, it would have to be cut as well, or a program
    that reads both fails; so the array beside it, the second of a pair, is not cut.
    """
    return [
        (value, other)
        for path, value in states
        if value in unread and value.shape
        for beside, other in states
        if other not in unread and other.shape == value.shape
        if path.rpartition("/")[0] == beside.rpartition("/")[0]
    ]
