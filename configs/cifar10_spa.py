"""SPA training of a PreActResNet-18 on CIFAR-10: brightness, contrast, hue, rotation, saturation, and noise of 8/255.

    python launch/train.py --config configs/cifar10_spa.py --workdir runs/cifar10_spa --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it.
The ranges are those of CAA (Hsiung et al. 2023). The edits are applied in the order of the first line.

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from common import CAA_RANGES, cifar10, in_training
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `dtype`, as in `cifar10_spa.py:epochs=2,dtype=bfloat16`."""
    args = parse_arguments(arg, epochs=30.0, dtype="float32")
    pgd = {"name": "pgd", "radius": RADIUS, "step_size": 2 / 255}
    joint = {"name": "spa", "radius": RADIUS, "attributes": CAA_RANGES}
    return ConfigDict(
        {
            "name": "spa",
            **cifar10(args["epochs"], "preact_resnet18", args["dtype"]),
            "recipe": {"name": "adversarial", "outer": "spa", "attack": joint | in_training(10)},
            "schedule": {"name": "one_cycle", "peak": 0.2},
            "evaluation": {
                "batch_size": 512,
                "attacks": {
                    "FGSM": {"name": "fgsm", "radius": RADIUS},
                    "PGD-20": pgd | {"num_steps": 20, "restarts": 2},
                    "joint": joint | {"num_steps": 20, "restarts": 3},
                },
                "selection_attack": joint | {"num_steps": 10},
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
                "radius_attack": "joint",
                "attribute_points": 21,
            },
        }
    )
