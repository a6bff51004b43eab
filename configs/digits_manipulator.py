"""A learned manipulator of the angle of handwritten digits, on embedded data.

python launch/train.py --config configs/digits_manipulator.py --workdir runs/digits_manipulator

The report judges it by a regressor and a classifier that know nothing of it, trained on real rotated digits.

Two and a half minutes on two cores, judges and report included. Seen with seed 0 on all 397 test images, set anywhere
from -40 to 40 degrees: the regressor reads the angle back with a mean error of 1.8 degrees (2.6 on real images), the
classifier keeps 95.5 % [92.9, 97.1] of the classes (95.2 % on real images).
"""

from common import judges, manipulation, manipulator
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `judge_epochs`, as in `digits_manipulator.py:epochs=2`."""
    args = parse_arguments(arg, epochs=150.0, judge_epochs=60.0)
    return ConfigDict(
        {
            "data": {"name": "rotated_digits", "angle_range": (-50.0, 50.0)},
            **manipulator({"known_edits": {"rotation": "rotation"}}),
            "training": {"batch_size": 64, "num_epochs": args["epochs"], "evaluate_every": 50},
            "evaluation": {"batch_size": 200, "manipulation": manipulation((-40.0,), (40.0,))},
            **judges({"num_epochs": args["judge_epochs"], "evaluate_every": 20}, (0.0,), (30.0,)),
        }
    )
