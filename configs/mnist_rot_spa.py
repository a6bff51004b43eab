"""SPA training on rotated MNIST: every digit at -40, 0 or 40 degrees, attacked by a turn of up to 20 degrees and noise.

    python launch/train.py --config configs/mnist_rot_spa.py --workdir runs/mnist_rot_spa --data_dir DIR

24 minutes on two cores that did other work too, killed with `kill -9` at step 1796 of 2718 and gone on from 1359. Seen
with seed 0 on all 30,000 rotated test images (10,000 digits at three angles): clean 97.9 % [97.7, 98.0], PGD-20 with 2
restarts 74.5 % [74.0, 75.0], the worst case over PGD, the joint attack and 41 angles 57.9 % [57.4, 58.5].

DIR holds `mnist` as tensorflow-datasets prepares it. A turn of 20 degrees from each of the three angles fills the
whole range from -60 to 60 degrees; the radius 0.2 is our choice (the authors' demo has 0.3).
"""

from common import in_training, small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RANGE = {"low": -20.0, "high": 20.0}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `radius`, as in `mnist_rot_spa.py:epochs=2,radius=0.1`."""
    args = parse_arguments(arg, epochs=2.0, radius=0.2)
    pgd = {"name": "pgd", "radius": args["radius"]}
    joint = {"name": "spa", "radius": args["radius"], "attributes": {"rotation": RANGE}}
    return ConfigDict(
        {
            "name": "spa",
            "data": {"name": "rotated_mnist", "validation_size": 2000},
            "model": small_network(),
            "recipe": {"name": "adversarial", "outer": "spa", "attack": joint | in_training(5)},
            "training": {"num_epochs": args["epochs"], "attack_warmup": 0.3},
            "evaluation": {
                "attacks": {
                    "PGD-20": pgd | {"num_steps": 20, "restarts": 2},
                    "joint": joint | {"num_steps": 20, "restarts": 3},
                    "rotation": {"name": "attribute", "edit": "rotation", **RANGE, "method": "grid", "num_steps": 41},
                },
                "selection_attack": joint | {"num_steps": 10},
                "radii": (0.0, 0.05, 0.1, 0.2, 0.3),
                "radius_attack": "joint",
                "attribute_points": 21,
            },
        }
    )
