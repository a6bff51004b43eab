"""SPA training of a PreActResNet-18 on CIFAR-10: hue, saturation, brightness, contrast, rotation, and noise of 8/255.

    python launch/train.py --config configs/cifar10_spa.py --workdir runs/cifar10_spa --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it.
The ranges are those of CAA (Hsiung et al. 2023). The order of the edits is alphabetical, as a config keeps its keys.

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255
TRAINED = {"solver": "projected_gradient", "start": "none", "num_steps": 10, "keep": "last"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `dtype`, as in `cifar10_spa.py:epochs=2,dtype=bfloat16`."""
    args = parse_arguments(arg, epochs=30.0, dtype="float32")
    pgd = {"name": "pgd", "radius": RADIUS, "step_size": 2 / 255}
    ranges = {
        "brightness": {"low": -0.2, "high": 0.2},
        "contrast": {"low": 0.7, "high": 1.3},
        "hue": {"low": -math.pi, "high": math.pi},
        "rotation": {"low": -10.0, "high": 10.0},
        "saturation": {"low": 0.7, "high": 1.3},
    }
    joint = {"name": "spa", "radius": RADIUS, "attributes": ranges}
    return ConfigDict(
        {
            "name": "spa",
            "seed": 0,
            "data": {"name": "cifar10", "data_dir": placeholder(str), "validation_size": 1000},
            "normalization": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)},
            "augmentation": {"crop_padding": 4, "flip": True},
            "model": {"name": "preact_resnet18", "dtype": args["dtype"]},
            "recipe": {"name": "adversarial", "outer": "spa", "attack": joint | TRAINED},
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "one_cycle", "peak": 0.2},
            "training": {
                "batch_size": 128,
                "num_epochs": args["epochs"],
                "engine": "jit",
                "ema_decay": 0.0,
                "attack_warmup": 0.0,
                "evaluate_every": 1,
            },
            "evaluation": {
                "batch_size": 512,
                "attacks": {
                    "FGSM": {"name": "fgsm", "radius": RADIUS},
                    "PGD-20": pgd | {"num_steps": 20, "restarts": 2},
                    "joint": joint | {"num_steps": 20, "restarts": 3},
                },
                "selection_attack": joint | {"num_steps": 10},
                "select_by": "robust",
                "survivors_only": True,
                "num_examples": placeholder(int),
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
                "radius_attack": "joint",
                "attribute_points": 21,
            },
            "baselines": (),
        }
    )
