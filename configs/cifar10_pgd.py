"""PGD training (Madry et al. 2018) of a PreActResNet-18 on CIFAR-10 at radius 8/255.

    python launch/train.py --config configs/cifar10_pgd.py --workdir runs/cifar10_pgd --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it.
The schedule is one cycle of 30 epochs (in the manner of Rice et al. 2020 and Wong et al. 2020).

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from common import cifar10, noise_attacks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `dtype`, as in `cifar10_pgd.py:epochs=2,dtype=bfloat16`."""
    args = parse_arguments(arg, epochs=30.0, dtype="float32")
    pgd = {"name": "pgd", "radius": RADIUS, "step_size": 2 / 255}
    return ConfigDict(
        {
            "name": "pgd",
            **cifar10(args["epochs"], "preact_resnet18", args["dtype"]),
            "recipe": {"name": "adversarial", "attack": pgd | {"num_steps": 10, "keep": "last"}},
            "schedule": {"name": "one_cycle", "peak": 0.2},
            "evaluation": {
                "batch_size": 512,
                "attacks": noise_attacks(RADIUS) | {"PGD-20": pgd | {"num_steps": 20, "restarts": 2}},
                "selection_attack": pgd | {"num_steps": 10},
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
                "radius_attack": "PGD-20",
            },
        }
    )
