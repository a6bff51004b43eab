"""SPA training of a PreActResNet-18 on Tiny-ImageNet: five edits of colour, light and angle, and noise of 4/255.

    python launch/train.py --config configs/tiny_imagenet_spa.py --workdir runs/tiny_imagenet_spa --data_dir DIR

DIR is the unpacked archive (`train/WNID/images`, `val/val_annotations.txt`). `tiny_imagenet_spa.py:data=folder` reads
any folder of images by class, and a name of tensorflow-datasets works too. The noise is made by a generator that is
trained with the classifier; `tiny_imagenet_spa.py:generated=false` searches it directly. Ranges are those of CAA
(Hsiung et al. 2023).

For a GPU or a TPU. Not run on Tiny-ImageNet itself, which was not at hand: `tiny_imagenet_spa.py:made=true` takes the
same path on images made in its shape.
"""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spa_jax.configuration import parse_arguments

RADIUS = 4 / 255
TRAINED = {"solver": "projected_gradient", "start": "none", "num_steps": 5, "keep": "last"}
RANGES = {
    "brightness": {"low": -0.2, "high": 0.2},
    "contrast": {"low": 0.7, "high": 1.3},
    "hue": {"low": -math.pi, "high": math.pi},
    "rotation": {"low": -10.0, "high": 10.0},
    "saturation": {"low": 0.7, "high": 1.3},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `tiny_imagenet_spa.py:epochs=2,dtype=bfloat16,generated=false`."""
    args = parse_arguments(
        arg, data="tiny_imagenet", epochs=30.0, dtype="float32", generated=True, made=False, width=64
    )
    pgd = {"name": "pgd", "radius": RADIUS}
    joint = {"name": "spa", "radius": RADIUS, "attributes": RANGES}
    data = {"name": args["data"], "data_dir": placeholder(str), "image_size": 64}
    if args["made"]:
        data = {"name": "synthetic", "like": "tiny_imagenet", "train_size": 512, "test_size": 128}
    trained = joint | TRAINED
    recipe = {"name": "adversarial", "outer": "spa", "attack": trained}
    networks = None
    if args["generated"]:
        noise = {"part": "generator", "num_steps": 4}
        generator = {"radius": RADIUS, "num_steps": 4}
        recipe |= {"attack": trained | {"noise": noise, "num_steps": 3}, "generator": generator}
        model = {"name": "noise_generator", "width": args["width"], "deep": True, "dtype": args["dtype"]}
        optimizer = {"name": "adam", "clip_norm": 1.0}
        networks = {
            "generator": {"model": model, "optimizer": optimizer, "schedule": {"name": "one_cycle", "peak": 1e-3}}
        }
    return ConfigDict(
        {
            "name": "spa",
            "seed": 0,
            "data": data,
            "augmentation": {"crop_padding": 8, "flip": True},
            "model": {"name": "preact_resnet18", "width": args["width"], "dtype": args["dtype"]},
            "recipe": recipe,
            "networks": networks,
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "one_cycle", "peak": 0.2},
            "training": {
                "batch_size": 128,
                "num_epochs": args["epochs"],
                "engine": "jit",
                "ema_decay": 0.0,
                "attack_warmup": 0.1,
                "evaluate_every": 1,
            },
            "evaluation": {
                "batch_size": 512,
                "attacks": {
                    "FGSM": {"name": "fgsm", "radius": RADIUS},
                    "PGD-20": pgd | {"num_steps": 20, "restarts": 2},
                    "joint": joint | {"num_steps": 20, "restarts": 3},
                },
                "selection_attack": joint | {"num_steps": 5},
                "select_by": "robust",
                "survivors_only": True,
                "num_examples": placeholder(int),
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255),
                "radius_attack": "joint",
                "attribute_points": 21,
            },
            "baselines": (),
        }
    )
