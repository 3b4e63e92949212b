"""Every setting, with the values that the other configs start from."""

import os

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,  # initial weights, order of the images, noise, subset
            "dataset": "digits",  # digits, mnist or fashion_mnist
            "data_dir": os.environ.get("VOLAX_DATA_DIR", ""),
            "validation": 0.0,  # share of the training images that replaces the test
            "per_class": 0,  # training images a class; 0 is all
            "label_noise": 0.0,  # share of wrong training labels
            "hidden": (256,),
            "epochs": 60,
            "batch_size": 64,
            "checkpoint_seconds": 10.0,  # at least so long between two; 0 is each epoch
            "optimizer": {
                "name": "adam",  # adam or sgd
                "learning_rate": 1e-3,
                "schedule": "cosine",  # cosine (to zero) or constant
                "momentum": 0.9,  # of sgd
            },
            # The name of one of the four, whose arguments follow.
            "regularizer": "adamw",
            "adamw": {"weight_decay": 1e-2},
            "volumize": {"volume": 0.1, "alpha": 0.0},
            "lp_decay": {"strength": 1e-3, "p": 0.5, "snap_below": 1e-6},
            "path_prox": {"strength": 1e-2, "normalize": "rescale"},
        }
    )
