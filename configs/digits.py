"""Scikit-learn's digits, with a regularizer beside the plain optimizer."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

default = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(regularizer: str = "keep_units") -> ConfigDict:
    config = default["get_config"](regularizer)
    if regularizer == "path_prox":
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 0.2
    return config
