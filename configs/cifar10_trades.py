"""TRADES (Zhang et al. 2019) with a WideResNet-28-10 on CIFAR-10 at radius 8/255.

    python launch/train.py --config configs/cifar10_trades.py --workdir runs/cifar10_trades --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it.
beta 6, 10 steps, drops at 75 % and 90 %, as in the authors' code; weights are averaged with
decay 0.999 (our choice).

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `dtype`, as in `cifar10_trades.py:epochs=2,dtype=bfloat16`."""
    args = parse_arguments(arg, epochs=76.0, dtype="float32")
    pgd = {"name": "pgd", "radius": RADIUS, "step_size": 2 / 255}
    return ConfigDict(
        {
            "name": "trades",
            "seed": 0,
            "data": {"name": "cifar10", "data_dir": placeholder(str), "validation_size": 1000},
            "normalization": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)},
            "augmentation": {"crop_padding": 4, "flip": True},
            "model": {"name": "wide_resnet28_10", "dtype": args["dtype"]},
            "recipe": {
                "name": "adversarial",
                "outer": {"name": "trades", "beta": 6.0},
                "attack": pgd | {"num_steps": 10, "keep": "last"},
            },
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "piecewise", "peak": 0.1},
            "training": {
                "batch_size": 128,
                "num_epochs": args["epochs"],
                "engine": "jit",
                "ema_decay": 0.999,
                "attack_warmup": 0.0,
                "evaluate_every": 1,
            },
            "evaluation": {
                "batch_size": 512,
                "attacks": {
                    "FGSM": {"name": "fgsm", "radius": RADIUS},
                    "PGD-20": pgd | {"num_steps": 20, "restarts": 2},
                    "APGD-CE": {"name": "apgd_ce", "radius": RADIUS},
                    "APGD-DLR": {"name": "apgd_dlr", "radius": RADIUS},
                },
                "selection_attack": pgd | {"num_steps": 10},
                "select_by": "robust",
                "survivors_only": True,
                "num_examples": placeholder(int),
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
                "radius_attack": "PGD-20",
                "attribute_points": 0,
            },
            "baselines": (),
        }
    )
