"""``x @ packed`` beside the dense product: seconds and bytes."""

from collections.abc import Iterator

import jax

from benchmarks.timing import Line, alternate, waiting
from volax.compress import binarize, pack, ternarize

SHAPES = ((1, 1024), (1, 4096), (64, 1024), (512, 2048))


def packed(rounds: int, only: str, shapes: tuple = SHAPES) -> Iterator[Line]:
    product = jax.jit(lambda x, w: x @ w)
    for batch, size in shapes:
        keys = jax.random.split(jax.random.key(0))
        dense = jax.random.normal(keys[0], (size, size))
        x = jax.random.normal(keys[1], (batch, size))
        kinds = {
            "1 bit": pack(binarize({"k": dense}), bits=1)["k"],
            "2 bit": pack(ternarize({"k": dense}), bits=2)["k"],
        }
        for kind, weights in kinds.items():
            row = f"{kind}, {batch} x {size} x {size}"
            if only in row:
                ratio = alternate(
                    waiting(product, x, weights), waiting(product, x, dense), rounds
                )
                text = (
                    f"{'packed':8} {row:24} {ratio}, dense {ratio.baseline * 1e3:.2f} "
                    f"ms; {weights.nbytes:,} of {dense.nbytes:,} bytes"
                )
                yield Line(f"packed {row}", text, vars(ratio))
