"""SPA in full on CelebA: a face is edited by a learned manipulator (smile, age ...), the noise is made by a generator.

    python launch/train.py --config configs/celeba_spa.py --workdir runs/celeba_spa --data_dir DIR

`celeba_spa.py:size=128` has faces of 128 pixels; `celeba_spa.py:label=Smiling,attributes=Male|Young` classifies smiles
instead of editing them. DIR holds `celeb_a` as tensorflow-datasets prepares it.

For a GPU or a TPU. Not run on CelebA itself, which was not at hand: `celeba_spa.py:made=true` takes the same path on
images made in its shape, with attributes of the same kind.
"""

from typing import Any

from common import in_training, learned_attacks, learned_parts, manipulation, manipulator, standard
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 4 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `celeba_spa.py:size=128,label=Smiling,attributes=Male|Young`."""
    args = parse_arguments(
        arg, size=64, label="Male", attributes=("Smiling", "Young"), epochs=10.0, dtype="float32", made=False, width=64
    )
    box = {"low": (-1.0,) * len(args["attributes"]), "high": (1.0,) * len(args["attributes"])}
    joint = {"name": "spa", "radius": RADIUS, "attributes": {"face": {"part": "manipulator", **box}}}
    generated = joint | {"noise": {"part": "generator", "num_steps": 4}}
    return ConfigDict(
        {
            "name": "spa",
            "data": _data(args),
            "model": {"name": "preact_resnet18", "width": args["width"], "dtype": args["dtype"]},
            "recipe": {
                "name": "adversarial",
                "outer": "spa",
                "attack": generated | in_training(3),
                "generator": {"radius": RADIUS, "num_steps": 4},
            },
            "networks": {
                "generator": {
                    "model": {"name": "noise_generator", "width": args["width"], "deep": True, "dtype": args["dtype"]},
                    "optimizer": {"name": "adam", "clip_norm": 1.0},
                    "schedule": {"name": "one_cycle", "peak": 1e-3},
                }
            },
            "parts": learned_parts() | {"regressor": {"model": "regressor"}, "classifier": {"model": "standard"}},
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "one_cycle", "peak": 0.1},
            "training": {"num_epochs": args["epochs"], "attack_warmup": 0.1},
            "evaluation": {
                "batch_size": 512,
                "attacks": learned_attacks("attributes", box, joint, generated),
                "selection_attack": joint | {"num_steps": 5},
                "radii": (0.0, 2 / 255, 4 / 255, 8 / 255),
                "radius_attack": "joint, direct noise",
                "manipulation": manipulation(**box),
            },
            "baselines": _trained_before(args),
        }
    )


def _data(args: dict[str, Any]) -> dict[str, Any]:
    attributes = {"attributes": args["attributes"]}
    if args["made"]:
        return {
            "name": "synthetic",
            "like": f"celeb_a_{args['size']}",
            "train_size": 512,
            "test_size": 128,
        } | attributes
    return {"name": "celeb_a", "image_size": args["size"], "label_attribute": args["label"]} | attributes


def _trained_before(args: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """A standard classifier and a regressor, which are judges too, and the manipulator with its patch discriminator."""
    count = len(args["attributes"])
    discriminator = {
        "model": {"name": "patch_discriminator", "width": args["width"]},
        "optimizer": {"name": "adam", "b1": 0.5},
        "schedule": {"name": "constant", "peak": 2e-4},
    }
    return (
        standard(),
        standard()
        | {
            "name": "regressor",
            "model": {"name": "preact_resnet18", "width": args["width"], "num_classes": count},
            "recipe": {"name": "regressor", "centre": (0.0,) * count, "scale": (1.0,) * count},
        },
        manipulator({"patch_weight": 1.0, "span": 1.2})
        | {
            "model": {"name": "msp", "width": args["width"], "latent_dim": 128, "hidden": 1024},
            "schedule": {"name": "cosine", "peak": 5e-4, "warmup": 0.05, "end": 0.01},
            "networks": {"discriminator": discriminator, "generator": None},
            "training": {"num_epochs": args["epochs"], "attack_warmup": 0.0},
        },
    )
