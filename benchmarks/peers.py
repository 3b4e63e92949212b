"""The same mathematics in PyTorch, in plain style, on the arrays of the bare setting.

Plain style: a loop over the parameters, one operation after the other, as a paper's
code does it. PyTorch gets the cores, or the GPU, that JAX has.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import volax
from benchmarks import trees
from benchmarks.timing import Arm, Line, measure, ratio
from benchmarks.update import RATE
from volax.examples import _machine

STRENGTH = {"decay": 0.1, "path": 1e-3, "volume": 0.05}
PAIRS = (0, 2, 4)  # the first leaf of each


class Peer(NamedTuple):
    """One step in both libraries."""

    torch: Callable[..., Arm]  # given the module, parameters and gradients
    volax: Callable[[Any], optax.GradientTransformation]  # given the pairs
    bytes: float  # floor: bytes moved a float32 weight


def compare(rounds: int, only: str, size: int = 20_000_000) -> Iterator[Line]:
    """PyTorch's update on given gradients beside optax.adam and, behind it, beside the
    same mathematics here.
    """
    torch = import_torch()
    params, pairs = trees.bare(size)
    grads = trees.gradients(params)

    def arm(tx):
        return trees.arm(trees.update_step(tx), tx, params, grads)

    plain = arm(optax.adam(RATE))
    for name, peer in ROWS.items():
        if only in name:
            tensors = (torch_tensors(torch, tree.values()) for tree in (params, grads))
            run = torch_waiting(torch, peer.torch(torch, *tensors))
            base, own, other = measure((plain, arm(peer.volax(pairs)), run), rounds).T
            to_adam, to_same = ratio(other, base), ratio(other, own)
            text = (
                f"{'torch':8} {name:24} {to_adam}, to the same here {to_same.spread}  "
                f"{peer.bytes:3g} bytes a weight"
            )
            same = {"same_median": to_same.median, "same_seconds": to_same.baseline}
            yield Line(f"torch {name}", text, vars(to_adam) | same)


def import_torch() -> Any:
    """The module, set to the cores or the GPU that JAX has."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise SystemExit(
            "error: PyTorch is not installed: --compare needs it"
        ) from None
    if _is_gpu() and not torch.cuda.is_available():
        raise SystemExit("error: JAX is on a GPU, and this PyTorch cannot use it")
    torch.set_num_threads(_machine.cores())
    return torch


def torch_tensors(torch: Any, arrays: Any) -> list[Any]:
    """Copies, on the kind of device that JAX is on."""
    device = "cuda" if _is_gpu() else "cpu"
    return [torch.from_numpy(np.array(x)).to(device) for x in arrays]


def torch_waiting(torch: Any, run: Arm) -> Arm:
    """A call that ends when PyTorch's device is done."""
    return (lambda: (run(), torch.cuda.synchronize())) if _is_gpu() else run


def _is_gpu() -> bool:
    return jax.default_backend() == "gpu"


def decayed(torch: Any, params: Any, step: Arm, strength: float, p: float) -> Arm:
    """pWD: the step, then w / (1 + rate strength |w_before|^(p - 2))."""

    @torch.no_grad()
    def run():
        before = [w.clone() for w in params]
        step()
        for w, b in zip(params, before):
            w.div_(1 + RATE * strength * b.abs().pow(p - 2))

    return run


def clipped(torch: Any, params: Any, step: Arm, volume: float) -> Arm:
    """The step, then every weight back into [-volume, volume]."""

    @torch.no_grad()
    def run():
        step()
        for w in params:
            w.clamp_(-volume, volume)

    return run


def proximal(
    torch: Any, pairs: Any, step: Arm, strength: float, *, balance: bool
) -> Arm:
    """PathProx: the step, then the unit sphere and the group soft threshold.

    A pair is [inputs, units] and [units, outputs]. Balancing first brings the pairs'
    path norms to their geometric mean.
    """

    @torch.no_grad()
    def run():
        step()
        if balance:
            totals = [(a.norm(dim=0) * v.norm(dim=1)).sum() for a, v in pairs]
            mean = torch.stack(totals).log().mean().exp()
            for (_, v), total in zip(pairs, totals):
                v.mul_(mean / total)
        for a, v in pairs:
            a.div_(a.norm(dim=0, keepdim=True))
            size = v.norm(dim=1, keepdim=True)
            v.mul_(torch.clamp(1 - RATE * strength / size, min=0))

    return run


def _adam(torch: Any, params: Any, grads: Any, **options: Any) -> Arm:
    for p, g in zip(params, grads):
        p.requires_grad_(True)
        p.grad = g
    return torch.optim.Adam(params, RATE, **options).step


def _decay(p: float) -> Peer:
    def make(torch, params, grads):
        step = _adam(torch, params, grads)
        return decayed(torch, params, step, STRENGTH["decay"], p)

    return Peer(make, _behind(volax.lp_decay(RATE, STRENGTH["decay"], p)), 28)


def _wall() -> Peer:
    def make(torch, params, grads):
        step = _adam(torch, params, grads)
        return clipped(torch, params, step, STRENGTH["volume"])

    return Peer(make, _behind(volax.volumize(STRENGTH["volume"])), 28)


def _prox(balance: bool) -> Peer:
    def make(torch, params, grads):
        step = _adam(torch, params, grads)
        pairs = [(params[i], params[i + 1]) for i in PAIRS]
        return proximal(torch, pairs, step, STRENGTH["path"], balance=balance)

    def same(pairs):
        last = volax.path_prox(
            RATE, STRENGTH["path"], pairs, normalize="project", balance=balance
        )
        return optax.chain(optax.adam(RATE), last)

    return Peer(make, same, 40)


def _behind(tx: optax.GradientTransformation) -> Any:
    return lambda pairs: optax.chain(optax.adam(RATE), tx)


ROWS = {
    "Adam": Peer(_adam, lambda pairs: optax.adam(RATE), 28),
    "Adam, fused": Peer(
        lambda *given: _adam(*given, fused=True), lambda pairs: optax.adam(RATE), 28
    ),
    "volumize": _wall(),
    "pWD p=0.5": _decay(0.5),
    "pWD p=1": _decay(1),
    "pWD p=0.8": _decay(0.8),
    "PathProx": _prox(balance=False),
    "PathProx, balance": _prox(balance=True),
}
