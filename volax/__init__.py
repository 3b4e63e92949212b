"""Weight regularizers that Optax lacks, as Optax gradient transformations."""

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
from volax.transforms import relative_to_init as relative_to_init
from volax.transforms import volumize as volumize
from volax.transforms import volumized as volumized

__version__ = "0.1.0"
