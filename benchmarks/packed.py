"""``x @ packed`` beside the dense product: seconds and bytes."""

from collections.abc import Iterator

import jax

from benchmarks.timing import Line, alternate, waiting
from volax.compress import binarize, pack, ternarize

SHAPES = ((1, 1024), (1, 4096), (64, 1024), (512, 2048))
KINDS = {"1 bit": (binarize, 1), "2 bit": (ternarize, 2)}


def _row(kind: str, batch: int, size: int) -> str:
    return f"{kind}, {batch} x {size} x {size}"


ROWS = [_row(kind, *shape) for shape in SHAPES for kind in KINDS]


def packed(rounds: int, only: str, shapes: tuple = SHAPES) -> Iterator[Line]:
    """``x @ packed`` beside the dense product; batch x inputs x outputs."""
    product = jax.jit(lambda x, w: x @ w)
    for batch, size in shapes:
        chosen = {k: v for k, v in KINDS.items() if only in _row(k, batch, size)}
        if not chosen:
            continue
        keys = jax.random.split(jax.random.key(0))
        dense = jax.random.normal(keys[0], (size, size))
        x = jax.random.normal(keys[1], (batch, size))
        for kind, (quantize, bits) in chosen.items():
            row = _row(kind, batch, size)
            weights = pack(quantize({"k": dense}), bits=bits)["k"]
            ratio = alternate(
                waiting(product, x, weights), waiting(product, x, dense), rounds
            )
            text = (
                f"{'packed':8} {row:24} {ratio}, dense {ratio.baseline * 1e3:.2f} "
                f"ms; {weights.nbytes:,} of {dense.nbytes:,} bytes"
            )
            yield Line(f"packed {row}", text, vars(ratio))
