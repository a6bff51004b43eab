"""Training against universal perturbations, in two stages and otherwise, on handwritten digits.

python launch/train.py --config configs/digits_universal.py --workdir runs/digits_universal

Six trainings (standard, universal at the same time as the weights, class-wise, free, PGD, and the two stages) and
perturbations crafted afresh against each, on embedded data. RESULT
"""

from common import digits, universal_experiment
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `radius`, as in `digits_universal.py:epochs=2,radius=0.1`."""
    args = parse_arguments(arg, epochs=30.0, radius=0.2)
    return ConfigDict(universal_experiment(args["radius"], 10) | digits(args["epochs"]))
