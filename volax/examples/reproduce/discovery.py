"""Finding the units: how long does it take, and how much of a network is found?

`find_groups` traces a network and finds which weights belong to one unit. The study
times it on well-known architectures at their full size, on the examples' networks and,
in a checkout, on the zoo of the tests, with JAX's caches empty each time. Beside it
stands the dependency graph of Torch-Pruning on the same architectures of torchvision,
where both are installed.
"""

import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import volax
from volax.examples._figures import BLUE, RED, plain_axes
from volax.examples.data import Dataset, Loaded
from volax.examples.models import NAMES, build
from volax.examples.reproduce._architectures import ARCHITECTURES
from volax.examples.reproduce._study import Aim, Chosen, Result, Row, Task, Trials

VERSION = 1
_OURS, _PEER = "find_groups", "Torch-Pruning"
_MINUTE = 60  # seconds that a search may take
_TORCHVISION = {
    "ResNet-50": "resnet50",
    "DenseNet-121": "densenet121",
    "MobileNet-V2": "mobilenet_v2",
    "ViT-B/16": "vit_b_16",
}
# Of the tests' zoo: the class, what it is made with, and the shape of an image or a
# number of tokens.
_ZOO: Mapping[str, tuple[str, Mapping[str, Any], tuple[int, ...]]] = {
    "zoo VGG19": ("VGG19", {}, (1, 32, 32, 3)),
    "zoo ResNet-50": ("ResNet", {"blocks": (3, 4, 6, 3), "bottleneck": True},
                      (1, 32, 32, 3)),
    "zoo MobileNet": ("MobileNet", {}, (1, 16, 16, 3)),
    "zoo DenseNet": ("DenseNet", {}, (1, 16, 16, 3)),
    "zoo Inception": ("Inception", {}, (1, 16, 16, 3)),
    "zoo U-Net": ("UNet", {}, (1, 16, 16, 3)),
    "zoo ViT": ("ViT", {}, (1, 16, 16, 3)),
    "zoo Mixer": ("Mixer", {}, (1, 16, 16, 3)),
    "zoo transformer, 24 layers": ("Transformer", {"layers": 24}, (1, 64)),
}  # fmt: skip
_ZOO_MODULE = "tests.pairs.zoo_linen"


class Size(NamedTuple):
    """How much is measured."""

    models: Sequence[str]


FULL = Size((*ARCHITECTURES, *NAMES, *_ZOO))
QUICK = Size(("ResNet-50", "MobileNet-V2", "GPT-2", *NAMES))


class Search(NamedTuple):
    """What was found on one network, a run for each seed."""

    model: str
    ours: Chosen
    peer: Chosen | None


def run(trials: Trials, size: Size) -> Result:
    """Search each network, once a seed, and the same architecture in PyTorch."""
    missing = [name for name in ("torch_pruning", "torchvision") if not _has(name)]
    models = [name for name in size.models if name not in _ZOO or _has(_ZOO_MODULE)]
    peers = [name for name in models if name in _TORCHVISION and not missing]
    trials.expect((len(models) + len(peers)) * trials.seeds)
    found = []
    for name in models:
        ours = _measured(trials, name, _OURS, _search)
        peer = _measured(trials, name, _PEER, _graph) if name in peers else None
        found.append(Search(name, ours, peer))
    return Result(
        title="seconds to find the units of a network",
        head=(
            "network",
            "weights",
            "groups",
            "of them pairs",
            "refused",
            "multiply-adds that units shrink, %",
            "seconds",
            f"seconds, {_PEER}",
        ),
        rows=[_cells(search) for search in found],
        text=_text(trials, found, missing, len(size.models) - len(models)),
        aims=_aims(found),
        figures={
            "searches": [
                {
                    "model": search.model,
                    "ours": search.ours._asdict(),
                    "peer": search.peer and search.peer._asdict(),
                }
                for search in found
            ]
        },
        draw=partial(_draw, found=found),
    )


def _has(module: str) -> bool:
    """Whether a module can be imported; a parent that is none counts as no."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _measured(
    trials: Trials, name: str, method: str, make: Callable[[str], Row]
) -> Chosen:
    case = {"model": name}
    tasks = [Task(case, method, {}, seed, "test") for seed in range(trials.seeds)]
    runs = [trials.run(task, lambda task: make(task.case["model"])) for task in tasks]
    return Chosen(case, method, {}, [], runs)


def _search(name: str) -> Row:
    """Seconds of one search, and what it found."""
    given = _network(name)
    jax.clear_caches()
    began = time.perf_counter()
    groups = volax.find_groups(*given)
    seconds = time.perf_counter() - began
    cost = groups.multiply_adds
    cut = [member for group in groups for member in (*group.members, *group.fixed)]
    paths = {member.path for member in cut}
    return {
        "search_seconds": seconds,
        "weights": sum(math.prod(leaf.shape) for leaf in _weights(given[0], given[1])),
        "groups": len(groups),
        "pairs": len(groups.pairs),
        "refused": len(groups.refused),
        "reasons": [str(refusal) for refusal in groups.refused],
        "share": sum(cost.get(path, 0) for path in paths) / sum(cost.values()),
    }


def _network(name: str) -> tuple[Any, ...]:
    """What `find_groups` takes: a module, the shapes of its weights, and an input."""
    if name in NAMES:
        return _example(name)
    if name in ARCHITECTURES:
        make, x = ARCHITECTURES[name]
        model = make()
    else:
        kind, options, shape = _ZOO[name]
        model = getattr(importlib.import_module(_ZOO_MODULE), kind)(**options)
        dtype = jnp.float32 if len(shape) == 4 else jnp.int32
        x = jax.ShapeDtypeStruct(shape, dtype)
    return model, jax.eval_shape(model.init, jax.random.key(0), x), x


def _example(name: str) -> tuple[Any, ...]:
    """A network of the examples at its default size, for data as they have."""
    text = name in ("gpt", "encoder", "recurrent")
    x = np.zeros((1, 64), np.int32) if text else np.zeros((1, 32, 32, 3), np.float32)
    labels = x if name == "gpt" else np.zeros(1, np.int32)
    loaded = Loaded(
        Dataset(x, labels, x, labels),
        classes=65 if name == "gpt" else 10,
        picture=() if text else x.shape[1:],
        vocabulary=tuple(map(str, range(65))) if text else (),
    )
    sizes: dict[str, Any] = {"hidden": (300, 100)} if name == "mlp" else {}
    model = build(name, loaded, rngs=nnx.Rngs(0), **sizes)
    model.eval()
    return model, jax.ShapeDtypeStruct(x.shape, x.dtype)


def _weights(model: Any, shapes: Any) -> list[Any]:
    """The leaves that are trained."""
    if isinstance(model, nnx.Module):
        return jax.tree.leaves(nnx.state(model, nnx.Param))
    return jax.tree.leaves(shapes["params"])


def _graph(name: str) -> Row:
    """Seconds of Torch-Pruning's dependency graph and all its groups."""
    torch = importlib.import_module("torch")
    pruning = importlib.import_module("torch_pruning")
    models = importlib.import_module("torchvision").models
    model = getattr(models, _TORCHVISION[name])().eval()
    image = torch.zeros(1, 3, 224, 224)
    began = time.perf_counter()
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=image)
    groups = len(list(graph.get_all_groups()))
    return {"search_seconds": time.perf_counter() - began, "groups": groups}


def _cells(search: Search) -> list[str]:
    row = search.ours.runs[0]
    peer = search.peer
    return [
        search.model,
        f"{row['weights']:,}",
        *(f"{row[key]:,}" for key in ("groups", "pairs", "refused")),
        f"{100 * row['share']:.1f}",
        search.ours.cell("search_seconds", 1),
        "-" if peer is None else peer.cell("search_seconds", 1),
    ]


def _slowest(found: Sequence[Search]) -> Search:
    return max(found, key=lambda search: search.ours.mean("search_seconds"))


def _aims(found: Sequence[Search]) -> list[Aim]:
    slowest = _slowest(found)
    seconds = slowest.ours.mean("search_seconds")
    aims = [
        Aim(
            "the units of every network are found within a minute",
            seconds < _MINUTE,
            f"{slowest.model} takes longest, {seconds:.1f} s",
        )
    ]
    both = [(s, s.peer) for s in found if s.peer is not None]
    if both:
        figures = [
            (
                s.model,
                s.ours.mean("search_seconds"),
                peer.mean("search_seconds"),
            )
            for s, peer in both
        ]
        aims.append(
            Aim(
                f"it is faster than {_PEER} on every architecture that both have",
                all(own < other for _, own, other in figures),
                "; ".join(f"{n} {own:.1f} and {x:.1f} s" for n, own, x in figures),
            )
        )
    return aims


def _text(
    trials: Trials, found: Sequence[Search], missing: Sequence[str], unknown: int
) -> str:
    least = min(found, key=lambda search: search.ours.runs[0]["share"])
    share = least.ours.runs[0]["share"]
    text = (
        f"Each network is searched {trials.seeds} times with empty caches, JAX's own "
        "trace included; ± is the standard deviation. A refused entry is an axis of a "
        "parameter whose units cannot be removed, such as the classes, with the reason "
        "in the JSON file. Units shrink the multiply-adds of every weight that belongs "
        f"to a group: {100 * share:.1f} % in {least.model}, which has the fewest."
    )
    if missing:
        names = " and ".join(missing)
        text += f" {_PEER} was not measured: {names} cannot be imported."
    if unknown:
        text += f" Left out: {unknown} networks of the tests, which are not here."
    return text


def _draw(figure: Figure, found: Sequence[Search]) -> None:
    figure.set_size_inches(7, 1 + 0.28 * len(found))
    axes = figure.subplots()
    rows = range(len(found))
    seconds = [search.ours.mean("search_seconds") for search in found]
    axes.barh(rows, seconds, height=0.4, color=RED, label=_OURS)
    peers = [(k, s.peer) for k, s in enumerate(found) if s.peer is not None]
    if peers:
        axes.barh(
            [k + 0.4 for k, _ in peers],
            [peer.mean("search_seconds") for _, peer in peers],
            height=0.4,
            color=BLUE,
            label=_PEER,
        )
        axes.legend(frameon=False)
    axes.set_yticks([*rows], [search.model for search in found])
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xscale="log")
    plain_axes(axes)
