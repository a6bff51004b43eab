"""Semantics-preserving adversarial training (SPAT) beside PGD, TRADES, MART and AWP, on handwritten digits.

python launch/train.py --config configs/digits_spat.py --workdir runs/digits_spat

Fourteen trainings on embedded data. Not run to its end yet; with `epochs=1` it is.
"""

from common import digits, spat_experiment
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `digits_spat.py:epochs=2,radius=0.1,seed=1`."""
    args = parse_arguments(arg, epochs=20.0, radius=0.1, smoothing=0.3, seed=0)
    experiment = spat_experiment(args["radius"], 5, args["smoothing"]) | {"seed": args["seed"]}
    return ConfigDict(experiment | digits(args["epochs"]))
