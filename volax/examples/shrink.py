"""From training to a small file: `python -m volax.examples.shrink --workdir=DIR`.

Trains a network on the digits while `keep_units` leaves it fewer and fewer units, until
a given share of its multiply-adds is left, reports, removes the dead units, goes on
training the smaller network where the optimizer stood, trains it inside walls while it
is made ternary every few epochs, and saves the packed result. Each step is checked on
the test images.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import volax
from volax.examples._errors import UserError
from volax.examples._figures import numbers
from volax.examples._files import replace_file, write_json
from volax.examples._settings import positive
from volax.examples._timing import alternating, runner
from volax.examples.data import CLASSES, Dataset, load_dataset
from volax.examples.loop import Loop, fit, right
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
    trained = functools.partial(fit, data=data, batch_size=_BATCH)
    model, (state, _) = trained(model, tx, epochs=range(epochs), seed=seed)
    full = volax.report(model, groups, inputs=(images[:1],))
    print(full)
    figure = full.figure()
    replace_file(
        workdir / "report.png", lambda path: figure.savefig(path, format="png")
    )

    small = volax.compact(model, groups, opt_state=state, check=(images,))
    print(f"\n{small}\n")
    after = volax.report(small.params, small.groups, inputs=(images[:1],))
    seconds = alternating(runner(model), runner(small.params), images)
    sizes = [
        volax.save(workdir / "full.safetensors", model),
        volax.save(workdir / "small.safetensors", small),
    ]
    again = volax.load(workdir / "small.safetensors", into=model).params
    rows = {
        "right of the test images": [right(m, data) for m in (model, small.params)],
        "units": [full.total["alive"], after.total["alive"]],
        "parameters": [full.total["size"], after.total["size"]],
        "bytes on disk": sizes,
        "multiply-adds an image": [full.multiply_adds, after.multiply_adds],
        f"ms for {len(images)} images": [1e3 * s for s in seconds],
    }
    rows["units"][0] = full.total["units"]
    print(numbers(("", "full", "small"), rows))
    assert right(again, data) == rows["right of the test images"][1]

    more = max(epochs // 6, 1)  # Adam's state was cut along
    tx = optax.adam(optax.constant_schedule(_RATE / 10))
    tuned, _ = trained(
        small.params, tx, epochs=range(more), seed=seed + 1, opt_state=small.opt_state
    )
    onward = {"epochs": more, "right of the test images": right(tuned, data)}
    print(f"\n{more} epochs on: {onward['right of the test images']} right\n")

    ternary, history = _quantized(tuned, data, max(epochs // 2, 1), every, seed)
    graph, params = nnx.split(ternary)
    packed = volax.pack(params, bits=2)
    size = volax.save(workdir / "ternary.safetensors", packed)
    loaded = volax.load(workdir / "ternary.safetensors", into=packed).params
    bits = {
        "right of the test images": [
            right(ternary, data), right(nnx.merge(graph, volax.unpack(loaded)), data),
        ],
        "bytes on disk": [volax.save(workdir / "unpacked.safetensors", ternary), size],
        f"ms for {len(images)} images": [
            1e3 * s for s in alternating(
                runner(ternary), _packed_runner(graph, loaded), images
            )
        ],
    }  # fmt: skip
    print()
    print(numbers(("ternary", "float", "packed"), bits))
    found = {
        "compact": rows,
        "onward": onward,
        "ternary": bits,
        "history": history,
        "images": len(images),
    }
    write_json(workdir / "shrink.json", found)
    return found


def _quantized(
    model: nnx.Module, data: Dataset, epochs: int, every: int, seed: int
) -> tuple[nnx.Module, list[dict[str, float]]]:
    """Trains on inside walls; every few epochs the weights jump to the grid."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    # The wall where three quarters of a leaf's weights lie inside.
    walls = jax.tree.map(
        lambda p: float(jnp.quantile(jnp.abs(p), 0.75)) if p.ndim > 1 else jnp.inf,
        params,
    )
    loop = Loop(model, volax.volumized(optax.adam(1e-3), walls, 0.0), _BATCH, seed + 2)
    data = jax.tree.map(jnp.asarray, data)
    epoch, state, history = loop.compile(data), loop.start(), []
    for number in range(1, epochs + 1):
        state, _ = epoch(state, number)
        if number % every == 0 or number == epochs:
            ternary = volax.ternarize(state.params, channel_axis=None)
            before, after = (
                right(loop.module(p, state.rest), data) for p in (state.params, ternary)
            )
            history.append({"epoch": number, "float": before, "ternary": after})
            print(f"epoch {number}: {before} right, ternary {after}")
            state = state._replace(params=ternary)
    return loop.module(state.params, state.rest), history


def _packed_runner(
    graph: nnx.GraphDef, packed: Any
) -> Callable[[jax.Array], jax.Array]:
    run = jax.jit(lambda packed, x: nnx.merge(graph, volax.unpack(packed))(x))
    return functools.partial(run, packed)


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=_KINDS, default="mlp")
    parser.add_argument("--keep", type=_share, default=0.15)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--epochs", type=positive, default=60)
    parser.add_argument("--every", type=positive, default=5)
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


if __name__ == "__main__":
    run()
