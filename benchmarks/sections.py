"""All that can be measured, section by section."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from benchmarks import (
    inference,
    mnist,
    packed,
    peers,
    subnormal,
    trace,
    transformer,
    update,
)
from benchmarks.timing import Line


class Section(NamedTuple):
    """A part of the table; its function's docstring says what it measures."""

    measure: Callable[[int, str], Iterator[Line]]  # given rounds and a part of a name
    rows: Sequence[str]
    by_default: bool = True
    needs_torch: bool = False

    @property
    def about(self) -> str:
        return " ".join((self.measure.__doc__ or "").split())

    def chosen(self, only: str) -> list[str]:
        return [row for row in self.rows if only in row]


_ALL = [row.name for row in update.ROWS]
_VGG = [row.name for row in update.VGG]

SECTIONS = {
    "bare": Section(update.bare, _ALL),
    "step": Section(update.step, _ALL),
    "many": Section(update.many, update.SEPARABLE),
    "memory": Section(update.memory, _ALL),
    "packed": Section(packed.packed, packed.ROWS),
    "compact": Section(inference.inference, inference.ROWS),
    "vgg": Section(update.vgg, _VGG, by_default=False),
    "trace": Section(trace.tracing, trace.ROWS, by_default=False),
    "sweep": Section(update.sweep, update.SWEPT, by_default=False),
    "subnormal": Section(subnormal.subnormal, list(subnormal.ROWS), by_default=False),
    "transformer": Section(transformer.transformer, list(transformer.ROWS), False),
    "torch": Section(peers.compare, list(peers.ROWS), False, needs_torch=True),
    "mnist": Section(mnist.mnist, list(mnist.ROWS), False, needs_torch=True),
}
