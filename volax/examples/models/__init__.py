"""The networks of the examples, in Flax NNX, one file a family.

All map what a data set holds to logits. `model.train()` and `model.eval()` switch batch
norm and dropout; look for groups in evaluation mode.
"""

import inspect
import math
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from volax.examples._errors import UserError
from volax.examples.data import Loaded
from volax.examples.models.encoder import Encoder as Encoder
from volax.examples.models.gpt import GPT as GPT
from volax.examples.models.gpt import sample as sample
from volax.examples.models.lenet import LeNet as LeNet
from volax.examples.models.mlp import MLP as MLP
from volax.examples.models.recurrent import Recurrent as Recurrent
from volax.examples.models.resnet import ResNet as ResNet
from volax.examples.models.vgg import VGG19 as VGG19

_IMAGES = {"mlp": MLP, "lenet": LeNet, "vgg19": VGG19, "resnet18": ResNet}
_SENTENCES = {"recurrent": Recurrent, "encoder": Encoder}
_CHARACTERS = {"gpt": GPT}
NAMES = (*_IMAGES, *_SENTENCES, *_CHARACTERS)


def build(
    name: str,
    loaded: Loaded,
    *,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
    **sizes: Any,
) -> nnx.Module:
    """Make a network that fits a data set.

    Args:
      name: one of `NAMES`.
      loaded: the data set; its facts are used, not its examples.
      dtype: of the computation in the hidden layers, such as `"bfloat16"`; parameters
        and logits are float32.
      rngs: source of the initial weights and of what dropout drops.
      **sizes: widths, depths and dropout as the family's class names them.

    Returns:
      The module, in training mode.

    Raises:
      UserError: for an unknown name, a family that does not fit the data, or sizes that
        the family does not have or cannot use.
    """
    shape = loaded.dataset.train_inputs.shape
    if loaded.picture:
        families, kind = _IMAGES, "images"
        facts: dict[str, Any] = {"picture": loaded.picture, "classes": loaded.classes}
        if name == "mlp":
            facts = {"inputs": math.prod(loaded.picture), "outputs": loaded.classes}
    else:
        each = loaded.dataset.train_labels.ndim > 1
        families, kind = (
            (_CHARACTERS, "characters") if each else (_SENTENCES, "sentences")
        )
        facts = {
            "vocabulary": len(loaded.vocabulary),
            "length": shape[1],
            "classes": loaded.classes,
        }
    if name not in NAMES:
        raise UserError(f"unknown model {name!r}; there are {', '.join(NAMES)}")
    if name not in families:
        raise UserError(
            f"{name} is no model for {kind}; there are {', '.join(families)}"
        )
    family = families[name]
    known = [
        size
        for size in inspect.signature(family.__init__).parameters
        if size not in {*facts, "self", "dtype", "rngs"}
    ]
    if unknown := sorted(set(sizes) - set(known)):
        raise UserError(f"{name} has no {unknown[0]!r}; there are {', '.join(known)}")
    try:
        return family(**facts, **sizes, dtype=dtype, rngs=rngs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error
