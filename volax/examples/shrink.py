"""From training to a small file: `python -m volax.examples.shrink --workdir=DIR`.

Trains a network on the digits while `keep_units` leaves it fewer and fewer units, until
a given share of its multiply-adds is left, reports, removes the dead units, goes on
training the smaller network where the optimizer stood, trains it inside walls while it
is made ternary every few epochs, and saves the packed result. Each step is checked on
the test images.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import volax
from volax._text import aligned
from volax.examples._errors import UserError
from volax.examples._files import replace_file, write_json
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.models import MLP

_BATCH = 64
_SIDE = 8  # pixels along an edge of a digit
_RATE = 3e-3
_RAMP = 0.4  # of the steps, after which the target is met
_KINDS = ("mlp", "cnn")


class CNN(nnx.Module):
    """Two convolutions, the second of half resolution, and two dense layers."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv0 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv1 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(32 * (_SIDE // 2) ** 2, 128, rngs=rngs)
        self.out = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images [batch, pixels] to logits [batch, classes]."""
        x = x.reshape(-1, _SIDE, _SIDE, 1)
        x = nnx.relu(self.conv1(nnx.relu(self.conv0(x))))
        return self.out(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


def shrink(
    kind: str, workdir: Path, *, keep: float, epochs: int, every: int, seed: int
) -> dict[str, Any]:
    """Run the whole path on the digits.

    Args:
      kind: `mlp` or `cnn`.
      workdir: receives `report.png`, `small.safetensors`, `ternary.safetensors` and
        `shrink.json`.
      keep: the share of the multiply-adds that is left.
      epochs: of the training with `keep_units`; a sixth as many follow with the smaller
        network, and half as many inside the walls.
      every: epochs between two quantizations.
      seed: of the weights and the order of the images.

    Returns:
      The content of `shrink.json`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    data = load_dataset("digits")
    rngs = nnx.Rngs(seed)
    hidden = (512, 256)
    pixels = data.train_inputs.shape[1]
    model = MLP(pixels, hidden, CLASSES, rngs=rngs) if kind == "mlp" else CNN(rngs=rngs)
    images = jnp.asarray(data.test_inputs)
    groups = volax.find_groups(model, images[:1])

    steps = epochs * (len(data.train_labels) // _BATCH)
    share = volax.cubic_ramp(1.0, keep, 0, max(round(_RAMP * steps), 1))
    tx = optax.chain(
        optax.adam(optax.cosine_decay_schedule(_RATE, steps)),
        volax.keep_units(share, groups, scope="global"),
    )
    model, (state, _) = _trained(model, tx, data, epochs, seed)
    full = volax.report(model, groups, inputs=(images[:1],))
    print(full)
    figure = full.figure()
    replace_file(
        workdir / "report.png", lambda path: figure.savefig(path, format="png")
    )

    small = volax.compact(model, groups, opt_state=state, check=(images,))
    print(f"\n{small}\n")
    after = volax.report(small.params, small.groups, inputs=(images[:1],))
    seconds = _alternating(_runner(model), _runner(small.params), images)
    sizes = [
        volax.save(workdir / "full.safetensors", model),
        volax.save(workdir / "small.safetensors", small),
    ]
    again = volax.load(workdir / "small.safetensors", into=model).params
    rows = {
        "right of the test images": [_right(m, data) for m in (model, small.params)],
        "units": [full.total["alive"], after.total["alive"]],
        "parameters": [full.total["size"], after.total["size"]],
        "bytes on disk": sizes,
        "multiply-adds an image": [full.multiply_adds, after.multiply_adds],
        f"ms for {len(images)} images": [1e3 * s for s in seconds],
    }
    rows["units"][0] = full.total["units"]
    _print(("", "full", "small"), rows)
    assert _right(again, data) == rows["right of the test images"][1]

    more = max(epochs // 6, 1)  # Adam's state was cut along
    tx = optax.adam(optax.constant_schedule(_RATE / 10))
    tuned, _ = _trained(small.params, tx, data, more, seed + 1, small.opt_state)
    onward = {"epochs": more, "right of the test images": _right(tuned, data)}
    print(f"\n{more} epochs on: {onward['right of the test images']} right\n")

    ternary, history = _quantized(tuned, data, max(epochs // 2, 1), every, seed)
    graph, params = nnx.split(ternary)
    packed = volax.pack(params, bits=2)
    size = volax.save(workdir / "ternary.safetensors", packed)
    loaded = volax.load(workdir / "ternary.safetensors", into=packed).params
    bits = {
        "right of the test images": [
            _right(ternary, data), _right(nnx.merge(graph, volax.unpack(loaded)), data),
        ],
        "bytes on disk": [volax.save(workdir / "unpacked.safetensors", ternary), size],
        f"ms for {len(images)} images": [
            1e3 * s for s in _alternating(
                _runner(ternary), _packed_runner(graph, loaded), images
            )
        ],
    }  # fmt: skip
    print()
    _print(("ternary", "float", "packed"), bits)
    found = {
        "compact": rows,
        "onward": onward,
        "ternary": bits,
        "history": history,
        "images": len(images),
    }
    write_json(workdir / "shrink.json", found)
    return found


def _trained(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    data: Dataset,
    epochs: int,
    seed: int,
    state: optax.OptState | None = None,
) -> tuple[nnx.Module, Any]:
    """A copy of the model after some epochs, and the optimizer's state."""
    graph, params = nnx.split(model)
    state = tx.init(params) if state is None else state
    step = _epoch(graph, tx)
    for number in range(epochs):
        params, state = step(
            params, state, data, jax.random.key(seed * 10_000 + number)
        )
    return nnx.merge(graph, params), state


def _epoch(
    graph: nnx.GraphDef, tx: optax.GradientTransformation, batch: int = _BATCH
) -> Callable[..., Any]:
    """One compiled epoch."""

    def loss(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def epoch(params, state, data, key):
        count = len(data.train_labels) // batch * batch
        order = jax.random.permutation(key, len(data.train_labels))[:count]

        def step(carry, rows):
            params, state = carry
            grads = jax.grad(loss)(
                params, data.train_inputs[rows], data.train_labels[rows]
            )
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), order.reshape(-1, batch))[0]

    return lambda params, state, data, key: epoch(
        params, state, jax.tree.map(jnp.asarray, data), key
    )


def _quantized(
    model: nnx.Module, data: Dataset, epochs: int, every: int, seed: int
) -> tuple[nnx.Module, list[dict[str, float]]]:
    """Trains on inside walls; every few epochs the weights jump to the grid."""
    graph, params = nnx.split(model)
    # The wall where three quarters of a leaf's weights lie inside.
    walls = jax.tree.map(
        lambda p: float(jnp.quantile(jnp.abs(p), 0.75)) if p.ndim > 1 else jnp.inf,
        params,
    )
    tx = volax.volumized(optax.adam(1e-3), walls, 0.0)
    epoch, state, history = _epoch(graph, tx), tx.init(params), []
    quantized = params
    for number in range(1, epochs + 1):
        key = jax.random.key(seed * 10_000 + 5_000 + number)
        params, state = epoch(params, state, data, key)
        if number % every == 0 or number == epochs:
            quantized = volax.ternarize(params, channel_axis=None)
            before, after = (
                _right(nnx.merge(graph, p), data) for p in (params, quantized)
            )
            history.append({"epoch": number, "float": before, "ternary": after})
            print(f"epoch {number}: {before} right, ternary {after}")
            params = quantized
    return nnx.merge(graph, quantized), history


def _right(model: Callable[[jax.Array], jax.Array], data: Dataset) -> int:
    """How many test images a model gets right."""
    logits = model(jnp.asarray(data.test_inputs))
    return int((np.asarray(logits).argmax(-1) == data.test_labels).sum())


def _runner(model: nnx.Module) -> Callable[[jax.Array], jax.Array]:
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    return functools.partial(run, params)


def _packed_runner(
    graph: nnx.GraphDef, packed: Any
) -> Callable[[jax.Array], jax.Array]:
    run = jax.jit(lambda packed, x: nnx.merge(graph, volax.unpack(packed))(x))
    return functools.partial(run, packed)


def _alternating(
    first: Callable[..., Any], second: Callable[..., Any], x: jax.Array, runs: int = 40
) -> list[float]:
    """Median seconds of two functions, run in turns."""
    times: list[list[float]] = [[], []]
    for _ in range(runs):
        for fn, taken in zip((first, second), times):
            start = time.perf_counter()
            jax.block_until_ready(fn(x))
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def _print(head: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    """Print a table of numbers, one row a name."""
    lines = [head]
    for name, values in rows.items():
        cells = (f"{v:,.3f}" if isinstance(v, float) else f"{v:,}" for v in values)
        lines.append([name, *cells])
    print("\n".join(aligned(lines, "lr")))


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=_KINDS, default="mlp")
    parser.add_argument("--keep", type=_share, default=0.15)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--epochs", type=_positive, default=60)
    parser.add_argument("--every", type=_positive, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        return shrink(
            given.model,
            given.workdir,
            keep=given.keep,
            epochs=given.epochs,
            every=given.every,
            seed=given.seed,
        )
    except (OSError, UserError) as error:
        parser.exit(1, f"error: {error}\n")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in (0, 1], got {text!r}")
    return share


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run()
