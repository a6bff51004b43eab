"""Every training of this library against every kind of attack on Fashion-MNIST or MNIST, over three seeds.

python launch/benchmark.py --config configs/bench_systems.py --workdir runs/bench_systems --data_dir DIR

DIR holds `fashion_mnist` as tensorflow-datasets prepares it; `bench_systems.py:data=mnist` takes the other, and
`data=digits` the embedded digits. What is done is kept: the command goes on where it was stopped.

Trained on the same images with the same network are: standard, PGD, SPA with direct and with generated noise, universal
perturbations at the same time as the weights (UAT), two stages of class-balanced ones (CB-UAP), region training (RAT,
which starts from the standard network and fine-tunes on a tenth of the images), SPAT, and AToP (a purifier before the
standard network). Every one is attacked by noise, attributes, both jointly, displaced pixels, and universal
perturbations made afresh against it; "adaptive" is PGD on the mean over draws, through purifiers and straight through
them, the worst of both.

Seen on Fashion-MNIST with `epochs=1,images=200,crafting=1000,width=8` and `--host_devices 1`, seeds 0, 1 and 2, under
PGD-20 / SPA / all: standard 17.5 / 0 / 0 %, PGD 67.3 / 2.3 / 2.3, SPA 57.8 / 25.8 / 25.3, with generated noise 57.5 /
22.3 / 22.2, UAT 42.3 / 0 / 0, CB-UAP 55.3 / 0 / 0, RAT 23.2 / 0 / 0, SPAT 65.3 / 0.5 / 0.5, AToP 64.0 (adaptive 53.5) /
4.5 / 3.8. About 50 minutes a seed on one core; docs/results.md has the table.
"""

from typing import Any

from common import (
    PLACEMENT,
    adaptive_attacks,
    balanced_in_training,
    generator,
    in_halves,
    in_training,
    mnist_like,
    two_stage,
)
from common_atop import FGSM, purifier_networks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADII = {"digits": 0.1, "mnist": 0.2, "fashion_mnist": 0.1}
PAINTING = {"num_steps": 2, "step_share": 0.5}
DRAWS = 10


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_systems.py:data=mnist,seeds=0|1,epochs=2,images=200`."""
    args = parse_arguments(
        arg, data="fashion_mnist", seeds=(0, 1, 2), epochs=0.0, radius=0.0, images=1000, crafting=3000, width=16
    )
    setting, radius = mnist_like(args["data"], args["epochs"], args["radius"] or RADII[args["data"]])
    data = setting.pop("data")
    experiment = {
        "name": "standard",
        "recipe": "standard",
        **setting,
        "parts": {name: {"model": name} for name in ("standard", "completion", "purifier")},
        "victims": {"AToP": {"name": "purify", "victim": {"model": "standard"}, "purifier": {"part": "purifier"}}},
        "evaluation": {
            "batch_size": 500,
            "attacks": attacks(radius),
            "select_by": "clean",
            "survivors_only": False,
            "num_examples": args["images"],
            "universal": universal(radius, args["crafting"]),
        },
        "baselines": trainings(radius, args["width"]),
    }
    section = {"experiment": experiment, "seeds": args["seeds"]}
    return ConfigDict({"name": "bench_systems", "seed": 0, "data": data, "matrix": section})


def trainings(radius: float, width: int) -> tuple[dict[str, Any], ...]:
    """All but the standard one; a purifier of that width is first trained to complete images."""
    uap, pgd = {"name": "uap", "radius": radius}, {"name": "pgd", "radius": radius, "num_steps": 5, "keep": "last"}
    spa = {"name": "spa", "radius": radius, "attributes": PLACEMENT} | in_training(5)
    painted = {"noise": {"part": "generator", **PAINTING}, "num_steps": 2}
    samples = {"name": "spa", "clean_weight": 0.1, "edited_weight": 0.1, "attacked_weight": 0.8}
    soft = {"name": "spat", "radius": radius, "num_steps": 5, "smoothing": 0.3}
    adversarial: dict[str, Any] = {"name": "adversarial"}
    return (
        {"name": "pgd", "recipe": adversarial | {"attack": pgd}},
        {"name": "spa_direct", "recipe": adversarial | {"attack": spa, "outer": samples}},
        {
            "name": "spa_generated",
            "recipe": adversarial
            | {"attack": spa | painted, "outer": samples, "generator": {"radius": radius, **PAINTING}},
            "networks": {"generator": generator(8)},
        },
        {"name": "uat", "recipe": in_halves("free", uap | {"rel_step_size": 1.0})},
        {"name": "cb_uap", "recipe": two_stage(balanced_in_training(radius) | {"classes": 10})},
        {
            "name": "rat",
            "recipe": {"name": "region", "model": {"part": "standard"}, "radius": radius, "targets": "all"},
            "schedule": {"name": "one_cycle", "peak": 1e-3},
            "training": {"start_from": {"part": "standard"}, "train_share": 0.1, "num_epochs": 10.0},
        },
        {"name": "spat", "recipe": adversarial | {"attack": soft}},
        *_purifier(radius, width),
    )


def _purifier(radius: float, width: int) -> tuple[dict[str, Any], ...]:
    """A U-Net that completes images behind noise and masks, and the same fine-tuned before the classifier."""
    network, transform = purifier_networks(width, depth=2, patch_size=4)["unet"], {"name": "rt2"}
    adam = {"optimizer": "adam", "model": network}
    atop = {"name": "atop", "classifier": {"part": "standard"}, "transform": transform, "classification_weight": 0.1}
    return (
        {
            "name": "completion",
            "recipe": {"name": "purifier", "transform": transform},
            "schedule": {"name": "one_cycle", "peak": 2e-3},
            **adam,
        },
        {
            "name": "purifier",
            "recipe": atop | {"attack": FGSM | {"radius": radius}},
            "schedule": {"name": "one_cycle", "peak": 1e-3},
            "training": {"start_from": {"part": "completion"}},
            **adam,
        },
    )


def attacks(radius: float) -> dict[str, Any]:
    """Of single images."""
    pgd = {"name": "pgd", "radius": radius, "num_steps": 20}
    joint = {"name": "spa", "attributes": PLACEMENT, "radius": radius}
    return {
        "PGD-20": pgd,
        "APGD-CE": {"name": "apgd_ce", "radius": radius, "num_steps": 50},
        "adaptive": {"name": "worst_of", "attacks": list(adaptive_attacks(pgd, DRAWS).values())},
        "attributes": joint | {"radius": 0.0, "start": "draws", "num_steps": 20},
        "SPA": joint,
        "StAdv": {"name": "stadv", "radius": 0.8, "num_steps": 20},
    }


def universal(radius: float, num_images: int) -> dict[str, Any]:
    """Of all images at once, made afresh against every system."""
    crafted = {"UAP": {"name": "uap", "radius": radius}, "CB-UAP": {"name": "cb_uap", "radius": radius}}
    return {"attacks": crafted, "num_images": num_images, "num_epochs": 3, "batch_size": 100, "seeds": 2}
