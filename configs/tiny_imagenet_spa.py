"""SPA training of a PreActResNet-18 on Tiny-ImageNet: five edits of colour, light and angle, and noise of 4/255.

    python launch/train.py --config configs/tiny_imagenet_spa.py --workdir runs/tiny_imagenet_spa --data_dir DIR

DIR is the unpacked archive (`train/WNID/images`, `val/val_annotations.txt`). `tiny_imagenet_spa.py:data=folder` reads
any folder of images by class, and a name of tensorflow-datasets works too. The noise is made by a generator that is
trained with the classifier; `tiny_imagenet_spa.py:generated=false` searches it directly. Ranges are those of CAA
(Hsiung et al. 2023).

For a GPU or a TPU. Not run on Tiny-ImageNet itself, which was not at hand: `tiny_imagenet_spa.py:made=true` takes the
same path on images made in its shape.
"""

from common import CAA_RANGES, in_training
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 4 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `tiny_imagenet_spa.py:epochs=2,dtype=bfloat16,generated=false`."""
    args = parse_arguments(
        arg, data="tiny_imagenet", epochs=30.0, dtype="float32", generated=True, made=False, width=64
    )
    joint = {"name": "spa", "radius": RADIUS, "attributes": CAA_RANGES}
    data = {"name": args["data"], "image_size": 64}
    if args["made"]:
        data = {"name": "synthetic", "like": "tiny_imagenet", "train_size": 512, "test_size": 128}
    recipe = {"name": "adversarial", "outer": "spa", "attack": joint | in_training(5)}
    networks = None
    if args["generated"]:
        painting = {"num_steps": 4}
        recipe["attack"] |= {"noise": {"part": "generator", **painting}, "num_steps": 3}
        recipe["generator"] = {"radius": RADIUS, **painting}
        model = {"name": "noise_generator", "width": args["width"], "deep": True, "dtype": args["dtype"]}
        optimizer = {"name": "adam", "clip_norm": 1.0}
        schedule = {"name": "one_cycle", "peak": 1e-3}
        networks = {"generator": {"model": model, "optimizer": optimizer, "schedule": schedule}}
    return ConfigDict(
        {
            "name": "spa",
            "data": data,
            "augmentation": {"crop_padding": 8, "flip": True},
            "model": {"name": "preact_resnet18", "width": args["width"], "dtype": args["dtype"]},
            "recipe": recipe,
            "networks": networks,
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "one_cycle", "peak": 0.2},
            "training": {"num_epochs": args["epochs"], "attack_warmup": 0.1},
            "evaluation": {
                "batch_size": 512,
                "attacks": {
                    "FGSM": {"name": "fgsm", "radius": RADIUS},
                    "PGD-20": {"name": "pgd", "radius": RADIUS, "num_steps": 20, "restarts": 2},
                    "joint": joint | {"num_steps": 20, "restarts": 3},
                },
                "selection_attack": joint | {"num_steps": 5},
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255),
                "radius_attack": "joint",
                "attribute_points": 21,
            },
        }
    )
