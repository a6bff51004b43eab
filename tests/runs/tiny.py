"""A config for the launchers that trains, judges and reports in seconds."""

from ml_collections import ConfigDict

from tests.training.conftest import tiny_config

NUM_EPOCHS, STEPS_AN_EPOCH = 20, 5


def get_config() -> ConfigDict:
    """The tiny config, with more epochs, a curve and a baseline, so that training and report take a while each."""
    config = tiny_config(baselines=[{"name": "clean", "training": {"num_epochs": 1.0}}])
    config["training"] = config["training"] | {"num_epochs": NUM_EPOCHS}
    config["evaluation"] = config["evaluation"] | {"radii": (0.05, 0.1), "radius_attack": "PGD"}
    return ConfigDict(config)
