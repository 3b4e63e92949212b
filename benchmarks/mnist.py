"""Epochs of MNIST from end to end: the example trainer beside a plain PyTorch loop.

The same network (784, 1024, 10), batch (128), optimizer and images; both shuffle, train
on every batch and classify the test images once an epoch. The trainer also counts
weights and units. Without the data set (``VOLAX_DATA_DIR``) noise of the same shape
takes its place.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import volax
from benchmarks.peers import (
    clipped,
    decayed,
    import_torch,
    torch_tensors,
    torch_waiting,
)
from benchmarks.timing import Arm, Line, alternate
from benchmarks.update import RATE
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.loop import Loop
from volax.examples.models import MLP
from volax.examples.train import build_epochs

BATCH = 128
DECAY, P, VOLUME = 0.0075, 0.5, 0.07


class Row(NamedTuple):
    """One optimizer in both libraries; a regularizer acts on the kernels."""

    volax: optax.GradientTransformation
    torch: str
    options: dict[str, Any]
    regularize: Any = None  # wraps PyTorch's step


_ADAM = optax.adam(RATE)
_LP = optax.chain(_ADAM, volax.lp_decay(RATE, DECAY, P))
_WALL = optax.chain(_ADAM, volax.volumize(VOLUME, mask="matrices"))
_FUSED = {"fused": True}


def _pwd(torch: Any, kernels: Any, step: Arm) -> Arm:
    return decayed(torch, kernels, step, DECAY, P)


def _clip(torch: Any, kernels: Any, step: Arm) -> Arm:
    return clipped(torch, kernels, step, VOLUME)


_W: dict[str, Any] = {"weight_decay": 0.1}
ROWS = {
    "adamw": Row(optax.adamw(RATE, **_W), "AdamW", _W),
    "adamw, fused": Row(optax.adamw(RATE, **_W), "AdamW", _W | _FUSED),
    "lp_decay p=0.5": Row(_LP, "Adam", {}, _pwd),
    "lp_decay p=0.5, fused": Row(_LP, "Adam", _FUSED, _pwd),
    "volumize": Row(_WALL, "Adam", {}, _clip),
}


def mnist(
    rounds: int, only: str, hidden: int = 1024, data: Dataset | None = None
) -> Iterator[Line]:
    """An epoch of the example trainer beside one of a plain PyTorch loop, whose
    optimizer may be fused; evaluation included in both.
    """
    torch = import_torch()
    data = data or _data()
    for name, row in ROWS.items():
        if only not in name:
            continue
        own, hits = _trainer(data, hidden, row.volax)
        peer, peer_hits = _loop(torch, data, hidden, row)
        ratio = alternate(own, torch_waiting(torch, peer), max(rounds // 6, 1), warm=1)
        text = (
            f"{'mnist':8} {name:24} {ratio}; {1 / ratio.seconds:.3g} epochs a second, "
            f"torch {1 / ratio.baseline:.3g}; {len(data.train_labels):,} images, "
            f"accuracy {hits[-1]:.2%}, torch {peer_hits[-1]:.2%}"
        )
        accuracy = {"accuracy": hits[-1], "torch_accuracy": peer_hits[-1]}
        yield Line(f"mnist {name}", text, vars(ratio) | accuracy)


def _data() -> Dataset:
    folder = os.environ.get("VOLAX_DATA_DIR")
    if folder:
        return load_dataset("mnist", folder)
    print("VOLAX_DATA_DIR is not set: noise in place of MNIST")
    return noise(60_000)


def noise(count: int) -> Dataset:
    """Images and labels without meaning, a sixth as many for testing."""
    rng = np.random.default_rng(0)

    def images(n):
        return rng.random((n, 784), np.float32), rng.integers(0, CLASSES, n, np.int32)

    return Dataset(*images(count), *images(count // 6))


def _trainer(
    data: Dataset, hidden: int, tx: optax.GradientTransformation
) -> tuple[Arm, list[float]]:
    """One epoch after the other, and a list that grows by each one's test accuracy."""
    model = MLP(784, (hidden,), CLASSES, rngs=nnx.Rngs(0))
    groups = volax.find_groups(model, jnp.asarray(data.test_inputs[:1]))
    loop = Loop(model, tx, BATCH)
    epochs = build_epochs(
        loop, jax.device_put(data), lambda state: volax.metrics(state.params, groups)
    )
    carry, hits = [loop.start()], []

    def run():
        carry[0], figures = epochs(carry[0], len(hits), 1)
        jax.block_until_ready(carry)
        hits.append(float(figures["test_accuracy"][0]))

    return run, hits


def _loop(torch: Any, data: Dataset, hidden: int, row: Row) -> tuple[Arm, list[float]]:
    """The same in PyTorch."""
    images, labels, others, answers = torch_tensors(torch, data)
    labels, answers = labels.long(), answers.long()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, CLASSES)
    ).to(images.device)
    optimizer = getattr(torch.optim, row.torch)(model.parameters(), RATE, **row.options)
    step, hits = optimizer.step, []
    if row.regularize:
        kernels = [p for p in model.parameters() if p.ndim > 1]
        step = row.regularize(torch, kernels, step)

    def run():
        order = torch.randperm(len(labels), device=images.device)
        for start in range(0, len(labels) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            step()
        with torch.no_grad():
            hits.append((model(others).argmax(-1) == answers).float().mean().item())

    return run, hits
