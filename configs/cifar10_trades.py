"""TRADES (Zhang et al. 2019) with a WideResNet-28-10 on CIFAR-10 at radius 8/255.

    python launch/train.py --config configs/cifar10_trades.py --workdir runs/cifar10_trades --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it.
beta 6, 10 steps, drops at 75 % and 90 %, as in the authors' code; weights are averaged with
decay 0.999 (our choice).

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from common import cifar10, noise_attacks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `dtype`, as in `cifar10_trades.py:epochs=2,dtype=bfloat16`."""
    args = parse_arguments(arg, epochs=76.0, dtype="float32")
    pgd = {"name": "pgd", "radius": RADIUS, "step_size": 2 / 255}
    experiment = cifar10(args["epochs"], "wide_resnet28_10", args["dtype"])
    return ConfigDict(
        {
            "name": "trades",
            **experiment,
            "recipe": {
                "name": "adversarial",
                "outer": {"name": "trades", "beta": 6.0},
                "attack": pgd | {"num_steps": 10, "keep": "last"},
            },
            "schedule": {"name": "piecewise", "peak": 0.1},
            "training": experiment["training"] | {"ema_decay": 0.999},
            "evaluation": {
                "batch_size": 512,
                "attacks": noise_attacks(RADIUS) | {"PGD-20": pgd | {"num_steps": 20, "restarts": 2}},
                "selection_attack": pgd | {"num_steps": 10},
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
                "radius_attack": "PGD-20",
            },
        }
    )
