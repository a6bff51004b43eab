"""Standard training on handwritten digits, attacked by noise, by rotation and by both: what no defence loses.

python launch/train.py --config configs/digits_standard.py --workdir runs/digits_standard
"""

from common import digits
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 0.1
ROTATION = {"low": -20.0, "high": 20.0}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs`, as in `digits_standard.py:epochs=2`."""
    args = parse_arguments(arg, epochs=60.0)
    joint = {"name": "spa", "radius": RADIUS, "attributes": {"rotation": ROTATION}}
    evaluation = {
        "batch_size": 200,
        "attacks": {
            "FGSM": {"name": "fgsm", "radius": RADIUS},
            "PGD": {"name": "pgd", "radius": RADIUS, "num_steps": 20, "restarts": 3},
            "APGD-CE": {"name": "apgd_ce", "radius": RADIUS, "num_steps": 50},
            "rotation": {"name": "attribute", "edit": "rotation", "method": "grid", "num_steps": 41} | ROTATION,
            "joint": joint | {"num_steps": 20, "restarts": 3},
        },
        "selection_attack": {"name": "pgd", "radius": RADIUS, "num_steps": 10},
        "select_by": "clean",
        "survivors_only": False,
        "radii": (0.0, 0.025, 0.05, 0.1, 0.2, 0.3),
        "radius_attack": "joint",
        "attribute_points": 21,
    }
    return ConfigDict({**digits(args["epochs"]), "recipe": "standard", "evaluation": evaluation})
