"""A config for the launchers that trains, judges and reports in seconds."""

from ml_collections import ConfigDict

from tests.training.conftest import tiny_config


def get_config() -> ConfigDict:
    """The tiny config, with a curve and a baseline so that the report takes a while."""
    config = tiny_config(baselines=[{"name": "clean", "training": {"num_epochs": 1.0}}])
    config["evaluation"] = config["evaluation"] | {"radii": (0.05, 0.1), "radius_attack": "PGD"}
    return ConfigDict(config)
