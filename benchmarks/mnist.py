"""Epochs of MNIST from end to end: the example trainer beside a plain PyTorch loop.

The same network (784, 1024, 10), batch (128), Adam and images; both shuffle, train on
every batch and classify the test images once an epoch. Without the data set
(``VOLAX_DATA_DIR``) noise of the same shape takes its place.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import volax
from benchmarks.peers import import_torch
from benchmarks.timing import Line, alternate
from benchmarks.update import RATE
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.models import MLP
from volax.examples.train import build_epochs

BATCH = 128


def mnist(rounds: int, only: str, hidden: int = 1024) -> Iterator[Line]:
    torch = import_torch()
    data = _data()
    count = len(data.train_labels)
    peer = _torch(torch, data, hidden, fused=False)
    for name, run in {
        "torch, fused Adam": _torch(torch, data, hidden, fused=True),
        "volax, adam": _volax(data, hidden),
        "volax, lp_decay": _volax(data, hidden, volax.lp_decay(RATE, 0.0075, 0.5)),
        "volax, volumize": _volax(data, hidden, volax.volumize(0.07)),
    }.items():
        if only in name:
            ratio = alternate(run, peer, max(rounds // 6, 1))
            text = (
                f"{'mnist':8} {name:24} {1 / ratio.seconds:.3f} epochs a second, torch "
                f"{1 / ratio.baseline:.3f} ({count:,} images), time {ratio}"
            )
            yield Line(f"mnist {name}", text, vars(ratio))


def _data() -> Dataset:
    folder = os.environ.get("VOLAX_DATA_DIR")
    if folder:
        return load_dataset("mnist", folder)
    rng = np.random.default_rng(0)

    def images(n):
        return rng.random((n, 784), np.float32), rng.integers(0, CLASSES, n, np.int32)

    return Dataset(*images(10_000), *images(2_000))


def _volax(data: Dataset, hidden: int, *more: Any) -> Callable[[], None]:
    model = MLP(784, (hidden,), CLASSES, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.adam(RATE), *more)
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    epochs = build_epochs(model, tx, jax.device_put(data), BATCH, 0, float("inf"))
    carry, done = [(params, tx.init(params))], [0]

    def run():
        carry[0], row = epochs(carry[0], done[0], 1)
        done[0] += 1
        jax.block_until_ready((carry, row))

    return run


def _torch(
    torch: Any, data: Dataset, hidden: int, *, fused: bool
) -> Callable[[], None]:
    images, labels, others, answers = (
        torch.from_numpy(np.array(array)) for array in data
    )
    labels, answers = labels.long(), answers.long()
    model = torch.nn.Sequential(
        torch.nn.Linear(784, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, CLASSES)
    )
    cross_entropy = torch.nn.functional.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=fused)

    def run():
        order = torch.randperm(len(labels))
        for start in range(0, len(labels) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            (model(others).argmax(-1) == answers).float().mean().item()

    return run
