"""Adversarial training on purification (AToP) on ImageNette at 64x64 pixels: a U-Net before a PreActResNet-18.

    python launch/train.py --config configs/imagenette_atop.py --workdir runs/imagenette_atop --data_dir DIR

DIR holds `imagenette/160px-v2` as tensorflow-datasets prepares it. AToP has a ResNet-34 on 256x256 pixels.

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from common_atop import purification_experiment, purifier_networks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `imagenette_atop.py:transforms=rt2,dtype=bfloat16`."""
    args = parse_arguments(
        arg,
        seed=0,
        size=64,
        epochs=60.0,
        purifier_epochs=60.0,
        atop_epochs=20.0,
        images=512,
        purifiers=("unet",),
        transforms=("rt1", "rt2", "rt3"),
        weight=0.1,
        dtype="float32",
    )
    networks = purifier_networks(width=48, depth=3, patch_size=8)
    experiment = purification_experiment(
        RADIUS,
        {name: networks[name] | {"dtype": args["dtype"]} for name in args["purifiers"]},
        {name: {"name": name} for name in args["transforms"]},
        (args["purifier_epochs"], args["atop_epochs"]),
        (2, 2),
        classification_weight=args["weight"],
    )
    experiment["evaluation"] |= {"num_examples": args["images"], "batch_size": 128}
    data = {"name": "tfds", "dataset": "imagenette/160px-v2", "image_size": args["size"], "validation_size": 500}
    return ConfigDict(
        experiment
        | {
            "seed": args["seed"],
            "data": data,
            "normalization": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            "augmentation": {"crop_padding": 8, "flip": True},
            "model": {"name": "preact_resnet18", "dtype": args["dtype"]},
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "one_cycle", "peak": 0.1},
            "training": {"num_epochs": args["epochs"], "evaluate_every": 2},
        }
    )
