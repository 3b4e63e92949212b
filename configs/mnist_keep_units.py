"""MNIST: a given share of the hidden units."""

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
    config.regularizer = "keep_units"
    config.optimizer.learning_rate = 1e-3
    return config
