"""PGD training (Madry et al. 2018) on handwritten digits.

python launch/train.py --config configs/digits_pgd.py --workdir runs/digits_pgd
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `radius`, as in `digits_pgd.py:epochs=2,radius=0.2`."""
    args = parse_arguments(arg, epochs=60.0, radius=0.1)
    pgd = {"name": "pgd", "radius": args["radius"]}
    return ConfigDict(
        {
            "name": "pgd",
            "seed": 0,
            "data": {"name": "digits", "data_dir": placeholder(str)},
            "model": {"name": "small_cnn", "width": 32},
            "recipe": {"name": "adversarial", "attack": pgd | {"num_steps": 5, "keep": "last"}},
            "optimizer": {"name": "adamw", "weight_decay": 1e-4},
            "schedule": {"name": "one_cycle", "peak": 3e-3},
            "training": {
                "batch_size": 64,
                "num_epochs": args["epochs"],
                "engine": "jit",
                "ema_decay": 0.0,
                "attack_warmup": 0.0,
                "evaluate_every": 10,
            },
            "evaluation": {
                "batch_size": 200,
                "attacks": {
                    "FGSM": {"name": "fgsm", "radius": args["radius"]},
                    "PGD": pgd | {"num_steps": 20, "restarts": 3},
                    "APGD-CE": {"name": "apgd_ce", "radius": args["radius"], "num_steps": 50},
                    "APGD-DLR": {"name": "apgd_dlr", "radius": args["radius"], "num_steps": 50},
                },
                "selection_attack": pgd | {"num_steps": 10},
                "select_by": "robust",
                "survivors_only": False,
                "num_examples": placeholder(int),
                "radii": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
                "radius_attack": "PGD",
                "attribute_points": 0,
            },
            "baselines": (),
        }
    )
