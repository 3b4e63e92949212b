"""Every setting, with the values that the other configs start from.

Strengths and volumes were chosen with `--config.validation=0.15`, which holds back a
part of the training images; of the test images one result on digits had been seen.
"""

import os

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,  # initial weights, order of the images, noise, subset
            "dataset": "digits",  # digits, mnist or fashion_mnist
            "data_dir": os.environ.get("VOLAX_DATA_DIR", ""),
            "validation": 0.0,  # share of the training images, instead of the test ones
            "per_class": 0,  # training images a class; 0 is all
            "label_noise": 0.0,  # share of wrong training labels
            "hidden": (256,),
            "epochs": 60,  # with a constant schedule a finished run can get more
            "batch_size": 64,
            "checkpoint_seconds": 10.0,  # at least so long between two; 0 is each epoch
            "optimizer": {
                "name": "adam",  # adam or sgd
                "learning_rate": 3e-3,
                "schedule": "cosine",  # cosine (to zero) or constant
                "momentum": 0.9,  # of sgd
            },
            # One of the five below, which hold the arguments of each.
            "regularizer": "adamw",
            "adamw": {"weight_decay": 0.1},
            "volumize": {"volume": 0.2, "alpha": 0.0, "mask": "all"},
            "lp_decay": {"strength": 0.02, "p": 0.5, "snap_below": 1e-6},
            "path_prox": {"strength": 0.035, "normalize": "project"},
            # The share of the units that is left after that part of the steps.
            "keep_units": {"share": 0.125, "ramp": 0.4},
        }
    )
