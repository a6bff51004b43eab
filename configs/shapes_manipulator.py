"""A learned manipulator of five attributes at once: hue, scale, place and angle of coloured shapes, drawn here.

python launch/train.py --config configs/shapes_manipulator.py --workdir runs/shapes_manipulator

The stand-in for faces that runs anywhere: what an edit should look like is known. No edit is given to the
training; all are learned from images and values alone.

Seen with seed 0 and 2,000 test images, each attribute set alone anywhere in its box: mean errors of 0.016 turns, 0.020,
0.008 and 0.008 sides and 4.9 degrees (0.011, 0.010, 0.004, 0.005 and 4.5 on real images, the regressor's own); the
others move by at most 0.20 of half their range (rotation, for which 4.5 degrees are 0.18). Classes kept: 96.1, 96.9,
91.8, 90.0 and 93.0 %, with all five set 83.5 % [81.8, 85.0] (99.6 % on real images): outlines that move far are
blurred, and a small triangle moved across the image becomes a star. With a quarter of the epochs 72 to 89 % and 66 %
were kept. Ten minutes on two cores, and one for the judges.
"""

from common import judges, manipulation, manipulator
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

CENTRE = (0.35, 0.55, 0.0, 0.0, 0.0)
SCALE = (0.2, 0.09, 0.09, 0.09, 17.0)
LOW = (0.05, 0.43, -0.12, -0.12, -25.0)
HIGH = (0.65, 0.67, 0.12, 0.12, 25.0)


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs`, `judge_epochs` and `images`, as in `shapes_manipulator.py:epochs=2`."""
    args = parse_arguments(arg, epochs=80.0, judge_epochs=12.0, images=12000)
    return ConfigDict(
        {
            "data": {"name": "coloured_shapes", "train_size": args["images"], "test_size": 2000},
            **manipulator({}),
            "training": {"num_epochs": args["epochs"], "evaluate_every": 10},
            "evaluation": {"manipulation": manipulation(LOW, HIGH)},
            **judges({"num_epochs": args["judge_epochs"], "evaluate_every": 10}, CENTRE, SCALE),
        }
    )
