"""Weight regularizers that Optax lacks, as Optax gradient transformations."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volax import masks as masks
    from volax import pairs as pairs
    from volax import prox as prox
    from volax._metrics import metrics as metrics
    from volax.compress import binarize as binarize
    from volax.compress import compact as compact
    from volax.compress import kill as kill
    from volax.compress import load as load
    from volax.compress import pack as pack
    from volax.compress import report as report
    from volax.compress import save as save
    from volax.compress import score as score
    from volax.compress import ternarize as ternarize
    from volax.compress import unpack as unpack
    from volax.masks import paired as paired
    from volax.masks import path_matches as path_matches
    from volax.masks import unpaired as unpaired
    from volax.optimizers import lp_adam as lp_adam
    from volax.optimizers import lp_sgd as lp_sgd
    from volax.optimizers import path_prox_adam as path_prox_adam
    from volax.optimizers import path_prox_sgd as path_prox_sgd
    from volax.optimizers import volumized_adam as volumized_adam
    from volax.pairs import member as member
    from volax.pairs import pair as pair
    from volax.pairs import path_norm as path_norm
    from volax.pairs.find import find_groups as find_groups
    from volax.pairs.find import find_pairs as find_pairs
    from volax.pairs.verify import check_groups as check_groups
    from volax.transforms import cubic_ramp as cubic_ramp
    from volax.transforms import group_prox as group_prox
    from volax.transforms import keep_units as keep_units
    from volax.transforms import lp_decay as lp_decay
    from volax.transforms import path_prox as path_prox
    from volax.transforms import proximal as proximal
    from volax.transforms import proximal_adam as proximal_adam
    from volax.transforms import relative_to_init as relative_to_init
    from volax.transforms import tune_strength as tune_strength
    from volax.transforms import volumize as volumize
    from volax.transforms import volumized as volumized

__version__ = "0.1.0"

__all__ = [
    "binarize",
    "check_groups",
    "compact",
    "cubic_ramp",
    "find_groups",
    "find_pairs",
    "group_prox",
    "keep_units",
    "kill",
    "load",
    "lp_adam",
    "lp_decay",
    "lp_sgd",
    "member",
    "metrics",
    "pack",
    "pair",
    "paired",
    "path_matches",
    "path_norm",
    "path_prox",
    "path_prox_adam",
    "path_prox_sgd",
    "proximal",
    "proximal_adam",
    "relative_to_init",
    "report",
    "save",
    "score",
    "ternarize",
    "tune_strength",
    "unpack",
    "unpaired",
    "volumize",
    "volumized",
    "volumized_adam",
]

# Everything is loaded at first use: training needs no tracer, and a script that is
# stopped while JAX is being imported can say so.
_ROOMS = {
    "_metrics": "metrics",
    "compress": "binarize compact kill load pack report save score ternarize unpack",
    "masks": "paired path_matches unpaired",
    "optimizers": "lp_adam lp_sgd path_prox_adam path_prox_sgd volumized_adam",
    "pairs": "member pair path_norm",
    "pairs.find": "find_groups find_pairs",
    "pairs.verify": "check_groups",
    "transforms": "cubic_ramp group_prox keep_units lp_decay path_prox proximal "
    "proximal_adam relative_to_init tune_strength volumize volumized",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in ("masks", "pairs", "prox"):
        return importlib.import_module(f"volax.{name}")
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'volax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"volax.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
