"""The same mathematics in PyTorch, in plain style, on the arrays of the bare setting.

Plain style: a loop over the parameters, one operation after the other, as a paper's
code does it. The baseline of every row is ``optax.adam``, in turns with it.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optax

from benchmarks import trees
from benchmarks.timing import Line, alternate
from benchmarks.update import RATE


def compare(rounds: int, only: str, size: int = 20_000_000) -> Iterator[Line]:
    torch = import_torch()
    params, _ = trees.bare(size)
    grads = trees.gradients(params)
    plain = trees.arm(trees.update_step(adam := optax.adam(RATE)), adam, params, grads)
    for name, make in _ROWS.items():
        if only in name:
            run = make(torch, *(_tensors(torch, tree) for tree in (params, grads)))
            ratio = alternate(run, plain, rounds)
            yield Line(f"torch {name}", f"{'torch':8} {name:24} {ratio}", vars(ratio))


def import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "error: PyTorch is not installed, and the comparison needs it"
        ) from None
    torch.set_num_threads(os.cpu_count() or 1)
    return torch


def _tensors(torch: Any, tree: Any) -> list[Any]:
    return [torch.from_numpy(np.array(leaf)) for leaf in tree.values()]


def _adam(torch: Any, params: Any, grads: Any, **options: Any) -> Callable[[], None]:
    for p, g in zip(params, grads):
        p.requires_grad_(True)
        p.grad = g
    return torch.optim.Adam(params, RATE, **options).step


def _decayed(p: float) -> Any:
    def make(torch: Any, params: Any, grads: Any) -> Callable[[], None]:
        step = _adam(torch, params, grads)

        @torch.no_grad()
        def run():
            before = [w.detach().clone() for w in params]
            step()
            for w, b in zip(params, before):
                kept = b.abs().pow(2 - p)
                w.mul_(kept / (kept + RATE * 0.1))

        return run

    return make


def _proximal(torch: Any, params: Any, grads: Any) -> Callable[[], None]:
    step = _adam(torch, params, grads)
    pairs = [(params[i], params[i + 1]) for i in (0, 2, 4)]

    @torch.no_grad()
    def run():
        step()
        totals = [(a.norm(dim=0) * v.norm(dim=1)).sum() for a, v in pairs]
        mean = torch.stack(totals).log().mean().exp()
        for (a, v), total in zip(pairs, totals):
            v.mul_(mean / total)
            a.div_(a.norm(dim=0, keepdim=True))
            size = v.norm(dim=1, keepdim=True)
            v.mul_(torch.clamp(1 - RATE * 1e-3 / size, min=0))

    return run


_ROWS = {
    "Adam": _adam,
    "Adam, fused": lambda *given: _adam(*given, fused=True),
    "pWD p=1": _decayed(1.0),
    "pWD p=0.8": _decayed(0.8),
    "PathProx, balance": _proximal,
}
