"""Eight ways to train against ten attacks over three seeds, and the ablations of the joint attacks at equal cost.

python launch/benchmark.py --config configs/bench_spa.py --workdir runs/bench_spa

`bench_spa.py:data=mnist_rot` does the same on rotated MNIST (with `--data_dir DIR`, where `mnist` lies as
tensorflow-datasets prepares it). What is done is kept: the command goes on where it was stopped.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spa_jax.configuration import parse_arguments

ROTATION = {"low": -20.0, "high": 20.0}
MINI_STEPS = 4
STEPS = 20
STARTS = 9
WEIGHTS = {"clean_weight": 0.1, "attribute_weight": 0.1, "joint_weight": 0.8}
GENERATOR = {"name": "noise_generator", "width": 16}
NETWORKS = {
    "generator": {
        "model": GENERATOR,
        "optimizer": {"name": "adam"},
        "schedule": {"name": "one_cycle", "peak": 2e-3},
    }
}
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "radius": 0.1,
        "data": {"name": "digits", "data_dir": placeholder(str)},
        "model": {"name": "small_cnn", "width": 32},
        "batch_size": 64,
        "epochs": 40.0,
        "attacker_epochs": 20.0,
        "evaluate_every": 10,
        "warmup": 0.0,
    },
    "mnist_rot": {
        "radius": 0.1,
        "data": {
            "name": "rotated_mnist",
            "data_dir": placeholder(str),
            "angle_range": (-40.0, 40.0),
            "train_size": 6000,
            "test_size": 1000,
            "validation_size": 500,
        },
        "model": {"name": "small_cnn", "width": 16, "hidden": 100, "convs_per_stage": 1},
        "batch_size": 64,
        "epochs": 8.0,
        "attacker_epochs": 2.0,
        "evaluate_every": 4,
        "warmup": 0.3,
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_spa.py:data=mnist_rot,seeds=0|1,epochs=2`."""
    args = parse_arguments(arg, data="digits", seeds=(0, 1, 2), epochs=0.0, attacker_epochs=0.0, images=0)
    settings = SETTINGS[args["data"]]
    radius = settings["radius"]
    recipes = _recipes(radius)
    experiment = {
        "name": "spa_generated",
        "seed": 0,
        "model": settings["model"],
        "recipe": recipes["spa_generated"],
        "optimizer": {"name": "adamw", "weight_decay": 1e-4},
        "schedule": {"name": "one_cycle", "peak": 3e-3},
        "networks": NETWORKS,
        "training": {
            "batch_size": settings["batch_size"],
            "num_epochs": args["epochs"] or settings["epochs"],
            "engine": "jit",
            "ema_decay": 0.0,
            "attack_warmup": settings["warmup"],
            "evaluate_every": settings["evaluate_every"],
        },
        "evaluation": {
            "batch_size": 200,
            "attacks": _attacks(radius),
            "selection_attack": _direct(radius) | {"num_steps": 10},
            "select_by": "robust",
            "survivors_only": False,
            "num_examples": args["images"] or None,
            "radii": None,
            "radius_attack": None,
            "attribute_points": 0,
        },
        "parts": {"attacker": {"model": "attacker_of_{victim}"}},
        "baselines": (
            *(_baseline(name, recipe) for name, recipe in recipes.items() if name != "spa_generated"),
            *(_attacker(name, radius, args["attacker_epochs"] or settings["attacker_epochs"]) for name in recipes),
        ),
    }
    section = {"experiment": experiment, "seeds": args["seeds"], "panels": _panels(radius)}
    return ConfigDict({"name": "bench_spa", "seed": 0, "data": settings["data"], "matrix": section})


def _direct(radius: float) -> dict[str, Any]:
    return {"name": "spa", "radius": radius, "attributes": {"rotation": ROTATION}}


def _generated(radius: float, part: str) -> dict[str, Any]:
    return _direct(radius) | {"noise": {"part": part, "num_steps": MINI_STEPS}}


def _recipes(radius: float) -> dict[str, Any]:
    """How each model is trained."""
    last = {"num_steps": 5, "keep": "last"}
    rotation = {"name": "attribute", "edit": "rotation", "keep": "last"} | ROTATION
    drawn = {"name": "noise", "radius": radius, "noise": {"part": "generator", "num_steps": MINI_STEPS}}
    generator = {"radius": radius, "num_steps": MINI_STEPS}
    return {
        "standard": {"name": "standard"},
        "pgd": {"name": "adversarial", "attack": {"name": "pgd", "radius": radius} | last},
        "rotation_random": {"name": "adversarial", "attack": rotation | {"method": "random", "num_steps": 1}},
        "rotation_worst": {"name": "adversarial", "attack": rotation | {"num_steps": 5}},
        "pgd_rotated": {
            "name": "adversarial",
            "attack": _direct(radius) | last | {"search": "random", "candidates": 1},
        },
        "generator_only": {
            "name": "spa_generated",
            "attack": drawn | {"num_steps": 1, "keep": "last"},
            "generator": generator,
        },
        "spa_direct": {"name": "spa_direct", "attack": _direct(radius) | last | {"start_candidates": 4}, **WEIGHTS},
        "spa_generated": {
            "name": "spa_generated",
            "attack": _generated(radius, "generator") | {"num_steps": 2, "keep": "last", "start_candidates": 4},
            "generator": generator,
            **WEIGHTS,
        },
    }


def _baseline(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    baseline = {"name": name, "recipe": recipe, "networks": NETWORKS if recipe["name"] == "spa_generated" else None}
    return baseline | ({"evaluation": {"select_by": "clean"}} if name == "standard" else {})


def _attacker(victim: str, radius: float, epochs: float) -> dict[str, Any]:
    """A noise generator trained against one model, as it is frozen, for the attacks on that model."""
    return {
        "name": f"attacker_of_{victim}",
        "model": GENERATOR,
        "recipe": {
            "name": "noise_generator",
            "victim": {"part": "victim"},
            "attributes": {"rotation": ROTATION},
            "radius": radius,
            "num_steps": MINI_STEPS,
        },
        "networks": None,
        "parts": {"victim": {"model": victim}},
        "optimizer": {"name": "adam"},
        "schedule": {"name": "one_cycle", "peak": 2e-3},
        "training": {"num_epochs": epochs, "attack_warmup": 0.0, "evaluate_every": 5},
    }


def _attacks(radius: float) -> dict[str, Any]:
    pgd = {"name": "pgd", "radius": radius, "num_steps": STEPS, "restarts": 2}
    rotation = {"name": "attribute", "edit": "rotation"} | ROTATION
    return {
        "FGSM": {"name": "fgsm", "radius": radius},
        "PGD": pgd,
        "APGD": {"name": "apgd_ce", "radius": radius, "num_steps": 50},
        "CW": pgd | {"loss": "margin"},
        "rotation, random": rotation | {"method": "random", "num_steps": 10},
        "rotation, grid": rotation | {"method": "grid", "num_steps": 41},
        "generator, 10 z": {
            "name": "noise",
            "radius": radius,
            "noise": {"part": "attacker", "num_steps": MINI_STEPS},
            "num_steps": 10,
        },
        "SPA direct": _direct(radius) | {"num_steps": STEPS, "restarts": 3, "start_candidates": STARTS},
        "SPA generated": _generated(radius, "attacker") | {"num_steps": 10, "restarts": 2, "start_candidates": STARTS},
    }


def _panels(radius: float) -> dict[str, Any]:
    """The joint attacks against their ablations, each at the cost of 20 (or 10) forward and backward passes.

    A forward pass alone counts as a third of such a pass.
    """
    rotation = {"name": "attribute", "edit": "rotation", "num_steps": STEPS} | ROTATION
    direct = _direct(radius) | {"num_steps": STEPS}
    generated = _generated(radius, "attacker") | {"num_steps": STEPS // 2}
    z_alone = {"name": "noise", "radius": radius, "noise": {"part": "attacker", "num_steps": MINI_STEPS}}
    models = ("standard", "pgd", "spa_direct", "spa_generated")
    return {
        "direct": {
            "models": models,
            "attacks": {
                "joint": direct | {"start_candidates": STARTS, "num_steps": STEPS - STARTS // 3},
                "joint, one start": direct,
                "alternating": direct | {"search": "alternating"},
                "rotation only": rotation,
                "noise only": {"name": "pgd", "radius": radius, "num_steps": STEPS},
                "random rotations, then noise": direct
                | {"search": "random", "candidates": STARTS, "num_steps": STEPS - STARTS // 3},
                "random, both": direct | {"solver": "random_search", "num_steps": 3 * STEPS},
            },
        },
        "generated": {
            "models": models,
            "attacks": {
                "joint": generated | {"start_candidates": STARTS, "num_steps": STEPS // 2 - STARTS // 3},
                "joint, one start": generated,
                "alternating": generated | {"search": "alternating"},
                "rotation only": rotation,
                "z only": z_alone | {"method": "gradient", "num_steps": STEPS // 2},
                "random rotations, then z": generated
                | {"search": "random", "candidates": STARTS, "num_steps": STEPS // 2 - STARTS // 3},
                "random, both": generated | {"solver": "random_search", "num_steps": 3 * STEPS // 2},
            },
        },
    }
