"""MNIST: fewer hidden units."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

default = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config() -> ConfigDict:
    config = default["get_config"]()
    config.dataset = "mnist"
    config.hidden = (1024,)
    config.epochs = 10
    config.batch_size = 128
    config.regularizer = "path_prox"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.path_prox.strength = 0.008
    return config
