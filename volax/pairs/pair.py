"""Pairs written down by hand, by the key paths of their weights."""

import dataclasses
import sys
from collections.abc import Sequence

from volax.pairs.records import OPEN, Axis, Member, Written

# An axis that :func:`pair` chooses by the role of the member: no array has so many.
_BY_ROLE = sys.maxsize


def member(
    path: str,
    axis: int | None = None,
    *,
    offset: int = OPEN,
    positions: int = 1,
    stride: int = OPEN,
) -> Member:
    """Says where the units lie in a parameter, for :func:`pair`.

    Needed only where the default axis is wrong (Equinox keeps kernels as
    ``[out, in]``) or where the units share an axis with something else.

    Args:
      path: key path of the parameter, such as ``l2/kernel``.
      axis: the axis of the units; by default the last one for producers and biases,
        the last but one for consumers (dense ``[in, out]``, convolution
        ``[..., in, out]``).
      offset: index of the first unit, where the consumer reads a concatenation; -1
        says that the units fill the axis.
      positions: how often the units repeat along the axis, channel fastest, where the
        consumer stands behind a flatten.
      stride: distance between two positions; -1 is the number of units.

    Returns:
      A member whose role :func:`pair` sets.

    Raises:
      ValueError: a negative offset, fewer than one position, or a stride below one.

    Example:
      >>> member("head/kernel", positions=49).axes[0].sizes
      (49, -1)
    """
    if offset < OPEN or positions < 1 or stride == 0 or stride < OPEN:
        raise ValueError(
            f"member {path!r}: expected offset >= 0, positions >= 1 and stride >= 1, "
            f"got offset={offset}, positions={positions}, stride={stride}"
        )
    spread = positions > 1 or stride != OPEN
    layout = Axis(
        axis if axis is not None else _BY_ROLE,
        max(offset, 0) if stride != OPEN else offset,
        (positions, OPEN) if spread else (OPEN,),
        (stride, 1) if spread else (1,),
        (None, 0) if spread else (0,),
    )
    return Member(path, "", 0, (layout,))


def pair(
    producer: str | Member,
    consumers: str | Member | Sequence[str | Member],
    *,
    bias: str | Member | None = None,
    scale: str | Member | None = None,
    output_bias: str | Sequence[str] = (),
    layers: int = 0,
) -> Written:
    """Writes down a pair by hand: the incoming and outgoing weights of ReLU units.

    Args:
      producer: key path of the weights that make the units, dense ``[in, unit]`` or
        convolution ``[..., in, unit]``; a :func:`member` where the units lie elsewhere.
      consumers: key path (or several) of all weights that read the units, dense
        ``[unit, out]`` or convolution ``[..., unit, out]``.
      bias: key path of the units' bias, ``[unit]``.
      scale: key path of a per-unit factor that stays as it is (degree 0), ``[unit]``.
      output_bias: key paths of the biases behind the consumers, up to and including
        those of plain linear layers before the next pair; ``path_prox(balance=True)``
        scales them.
      layers: how many leading axes of every member stack layers, as ``nn.scan`` makes
        them; one unit is then one channel of one layer.

    Returns:
      A record with ``homogeneous=True``, whose sizes are read off the parameters where
      it is used; its ``fit`` makes a :class:`Group`, whose sizes are known.

    Raises:
      ValueError: no consumer, or one parameter on both sides.

    Example:
      >>> pair("l1/kernel", "l2/kernel", bias="l1/bias").name
      'l1/kernel -> l2/kernel'
    """
    listed = [consumers] if isinstance(consumers, (str, Member)) else list(consumers)
    outputs = [output_bias] if isinstance(output_bias, str) else list(output_bias)
    if not listed:
        raise ValueError(f"pair: {producer!r} needs at least one consumer, got none")

    def made(what: str | Member | None, role: str, degree: int) -> tuple[Member, ...]:
        return () if what is None else (_role(what, role, degree, layers),)

    group = Written(
        sizes=(OPEN,) * (layers + 1),
        producers=made(producer, "producer", 1),
        consumers=tuple(_role(c, "consumer", -1, layers) for c in listed),
        biases=made(bias, "bias", 1),
        scales=made(scale, "scale", 0),
        output_biases=tuple(Member(path, "output_bias", 0, ()) for path in outputs),
    )
    both = {group.producers[0].path} & {m.path for m in group.consumers}
    if both:
        raise ValueError(f"pair: {both.pop()!r} stands on both sides of one pair")
    return group


def _role(what: str | Member, role: str, degree: int, layers: int) -> Member:
    """Gives a member its role, its default axis and its leading layer axes."""
    given = member(what) if isinstance(what, str) else what
    (layout,) = given.axes
    if layout.axis == _BY_ROLE:
        layout = dataclasses.replace(layout, axis=-2 if role == "consumer" else -1)
    layout = dataclasses.replace(
        layout, units=tuple(None if u is None else layers for u in layout.units)
    )
    stacked = tuple(Axis(k, OPEN, units=(k,)) for k in range(layers))
    return Member(given.path, role, degree, (*stacked, layout))
