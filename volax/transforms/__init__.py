"""The regularizers as Optax transformations, one a file."""

from volax.transforms.group_prox import group_prox as group_prox
from volax.transforms.keep_units import cubic_ramp as cubic_ramp
from volax.transforms.keep_units import keep_units as keep_units
from volax.transforms.lp_decay import lp_decay as lp_decay
from volax.transforms.path_prox import path_prox as path_prox
from volax.transforms.proximal import proximal as proximal
from volax.transforms.proximal_adam import proximal_adam as proximal_adam
from volax.transforms.tune_strength import tune_strength as tune_strength
from volax.transforms.volumize import relative_to_init as relative_to_init
from volax.transforms.volumize import volumize as volumize
from volax.transforms.volumized import volumized as volumized
