"""SPA in full on CelebA: a face is edited by a learned manipulator (smile, age ...), the noise is made by a generator.

    python launch/train.py --config configs/celeba_spa.py --workdir runs/celeba_spa --data_dir DIR

`celeba_spa.py:size=128` has faces of 128 pixels; `celeba_spa.py:label=Smiling,attributes=Male|Young` classifies smiles
instead of editing them. DIR holds `celeb_a` as tensorflow-datasets prepares it.

For a GPU or a TPU. Not run on CelebA itself, which was not at hand: `celeba_spa.py:made=true` takes the same path on
images made in its shape, with attributes of the same kind.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spa_jax.configuration import parse_arguments

RADIUS = 4 / 255
TRAINED = {"solver": "projected_gradient", "start": "none", "num_steps": 3, "keep": "last"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `celeba_spa.py:size=128,label=Smiling,attributes=Male|Young`."""
    args = parse_arguments(
        arg, size=64, label="Male", attributes=("Smiling", "Young"), epochs=10.0, dtype="float32", made=False, width=64
    )
    box = {"low": (-1.0,) * len(args["attributes"]), "high": (1.0,) * len(args["attributes"])}
    joint = {"name": "spa", "radius": RADIUS, "attributes": {"face": {"part": "manipulator", **box}}}
    generated = joint | {"noise": {"part": "generator", "num_steps": 4}}
    config = {
        "name": "spa",
        "seed": 0,
        "data": _data(args),
        "model": {"name": "preact_resnet18", "width": args["width"], "dtype": args["dtype"]},
        "recipe": {
            "name": "adversarial",
            "outer": "spa",
            "attack": generated | TRAINED,
            "generator": {"radius": RADIUS, "num_steps": 4},
        },
        "networks": {
            "generator": {
                "model": {"name": "noise_generator", "width": args["width"], "deep": True, "dtype": args["dtype"]},
                "optimizer": {"name": "adam", "clip_norm": 1.0},
                "schedule": {"name": "one_cycle", "peak": 1e-3},
            }
        },
        "parts": {
            "manipulator": {"model": "manipulator"},
            "generator": {"model": "spa", "network": "generator"},
            "regressor": {"model": "regressor"},
            "classifier": {"model": "standard"},
        },
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "one_cycle", "peak": 0.1},
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
                "PGD-20": {"name": "pgd", "radius": RADIUS, "num_steps": 20, "restarts": 2},
                "attributes": {"name": "attribute", "edit": {"part": "manipulator"}, **box, "num_steps": 20},
                "joint, direct noise": joint | {"num_steps": 20, "restarts": 2},
                "joint, generated noise": generated | {"num_steps": 10, "restarts": 2},
            },
            "selection_attack": joint | {"num_steps": 5},
            "select_by": "robust",
            "survivors_only": True,
            "num_examples": placeholder(int),
            "radii": (0.0, 2 / 255, 4 / 255, 8 / 255),
            "radius_attack": "joint, direct noise",
            "attribute_points": 0,
            "manipulation": {**box, "regressor": {"part": "regressor"}, "classifier": {"part": "classifier"}},
        },
    }
    config["baselines"] = _trained_before(args)
    return ConfigDict(config)


def _data(args: dict[str, Any]) -> dict[str, Any]:
    if args["made"]:
        like = f"celeb_a_{args['size']}"
        return {
            "name": "synthetic",
            "like": like,
            "attributes": args["attributes"],
            "train_size": 512,
            "test_size": 128,
        }
    return {
        "name": "celeb_a",
        "data_dir": placeholder(str),
        "image_size": args["size"],
        "label_attribute": args["label"],
        "attributes": args["attributes"],
    }


def _trained_before(args: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """A standard classifier and a regressor, which are judges too, and the manipulator with its patch discriminator."""
    plain = {"networks": None, "training": {"attack_warmup": 0.0}}
    count = len(args["attributes"])
    return (
        {"name": "standard", **plain, "recipe": {"name": "standard"}, "evaluation": {"select_by": "clean"}},
        {
            "name": "regressor",
            **plain,
            "model": {"name": "preact_resnet18", "width": args["width"], "num_classes": count},
            "recipe": {"name": "regressor", "centre": (0.0,) * count, "scale": (1.0,) * count},
        },
        {
            "name": "manipulator",
            "model": {"name": "msp", "width": args["width"], "latent_dim": 128, "hidden": 1024},
            "recipe": {"name": "manipulator", "patch_weight": 1.0, "span": 1.2},
            "optimizer": {"name": "adam", "b2": 0.99, "clip_norm": 50.0},
            "schedule": {"name": "cosine", "peak": 5e-4, "warmup": 0.05, "end": 0.01},
            "networks": {
                "discriminator": {
                    "model": {"name": "patch_discriminator", "width": args["width"]},
                    "optimizer": {"name": "adam", "b1": 0.5},
                    "schedule": {"name": "constant", "peak": 2e-4},
                },
                "generator": None,
            },
            "training": {"num_epochs": args["epochs"], "attack_warmup": 0.0},
        },
    )
