"""MNIST, with a regularizer beside the plain optimizer."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

default = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(regularizer: str = "keep_units") -> ConfigDict:
    config = default["get_config"](regularizer)
    config.dataset = "mnist"
    config.model.mlp.hidden = (1024,)
    config.epochs = 10
    config.batch_size = 128
    config.optimizer.learning_rate = 1e-3
    config.lp_decay.strength = 0.0075
    config.path_prox.strength = 0.008
    config.volumize.volume = 0.07
    if regularizer == "path_prox":
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 0.1
    return config
