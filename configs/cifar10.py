"""CIFAR-10: a ResNet-18 with flips and crops; `model.name=vgg19` is the other one.

On an accelerator `--config.model.dtype=bfloat16` is faster.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

default = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(regularizer: str = "keep_units") -> ConfigDict:
    config = default["get_config"](regularizer)
    config.dataset = "cifar10"
    config.model.name = "resnet18"
    config.augment = True
    config.epochs = 30
    config.batch_size = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 0.05
    config.volumize.volume = 0.1
    config.volumize.mask = "matrices"  # the scales of batch norm start at 1
    config.lp_decay.strength = 0.004
    config.keep_units.share = 0.5
    config.keep_units.every = 10
    return config
