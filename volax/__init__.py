"""Weight regularizers that Optax lacks, as Optax gradient transformations."""

import importlib
from typing import TYPE_CHECKING, Any

from volax.masks import paired as paired
from volax.masks import path_matches as path_matches
from volax.masks import unpaired as unpaired
from volax.optimizers import lp_adam as lp_adam
from volax.optimizers import lp_sgd as lp_sgd
from volax.optimizers import path_prox_sgd as path_prox_sgd
from volax.optimizers import volumized_adam as volumized_adam
from volax.pairs import member as member
from volax.pairs import pair as pair
from volax.pairs import path_norm as path_norm
from volax.transforms import lp_decay as lp_decay
from volax.transforms import path_prox as path_prox
from volax.transforms import proximal as proximal
from volax.transforms import proximal_adam as proximal_adam
from volax.transforms import relative_to_init as relative_to_init
from volax.transforms import volumize as volumize
from volax.transforms import volumized as volumized

if TYPE_CHECKING:
    from volax.compress import binarize as binarize
    from volax.compress import compact as compact
    from volax.compress import load as load
    from volax.compress import pack as pack
    from volax.compress import report as report
    from volax.compress import save as save
    from volax.compress import ternarize as ternarize
    from volax.compress import unpack as unpack
    from volax.pairs.find import find_groups as find_groups
    from volax.pairs.find import find_pairs as find_pairs
    from volax.pairs.verify import check_groups as check_groups

__version__ = "0.1.0"

__all__ = [
    "binarize",
    "check_groups",
    "compact",
    "find_groups",
    "find_pairs",
    "load",
    "lp_adam",
    "lp_decay",
    "lp_sgd",
    "member",
    "pack",
    "pair",
    "paired",
    "path_matches",
    "path_norm",
    "path_prox",
    "path_prox_sgd",
    "proximal",
    "proximal_adam",
    "relative_to_init",
    "report",
    "save",
    "ternarize",
    "unpack",
    "unpaired",
    "volumize",
    "volumized",
    "volumized_adam",
]

# Loaded at first use: training needs none of it, and the import stays cheap.
_LATER = {
    "binarize": "volax.compress",
    "check_groups": "volax.pairs.verify",
    "compact": "volax.compress",
    "find_groups": "volax.pairs.find",
    "find_pairs": "volax.pairs.find",
    "load": "volax.compress",
    "pack": "volax.compress",
    "report": "volax.compress",
    "save": "volax.compress",
    "ternarize": "volax.compress",
    "unpack": "volax.compress",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'volax' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
