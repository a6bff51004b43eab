"""PGD training (Madry et al. 2018) on handwritten digits.

python launch/train.py --config configs/digits_pgd.py --workdir runs/digits_pgd
"""

from common import digits, noise_attacks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `radius`, as in `digits_pgd.py:epochs=2,radius=0.2`."""
    args = parse_arguments(arg, epochs=60.0, radius=0.1)
    pgd = {"name": "pgd", "radius": args["radius"]}
    return ConfigDict(
        {
            "name": "pgd",
            **digits(args["epochs"]),
            "recipe": {"name": "adversarial", "attack": pgd | {"num_steps": 5, "keep": "last"}},
            "evaluation": {
                "batch_size": 200,
                "attacks": noise_attacks(args["radius"], 50) | {"PGD": pgd | {"num_steps": 20, "restarts": 3}},
                "selection_attack": pgd | {"num_steps": 10},
                "survivors_only": False,
                "radii": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
                "radius_attack": "PGD",
            },
        }
    )
