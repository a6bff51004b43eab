"""The composite attack and the joint one at equal passes, their order fixed, drawn or searched, on coloured shapes.

python launch/benchmark.py --config configs/bench_composite.py --workdir runs/bench_composite

Trains a standard network, one on PGD, one by generalised adversarial training (GAT, Hsiung et al. 2023) and one by SPA
training with the same ranges, on images drawn here; all are judged by six attacks of about 305 passes an image.
"""

from common import CAA_RANGES, composite_attacks, in_training, small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_composite.py:seeds=0,epochs=1,images=50`."""
    args = parse_arguments(arg, seeds=(0, 1, 2), epochs=6.0, train=4000, images=200, radius=4 / 255, rounds=5, steps=10)
    ranges, radius = CAA_RANGES, args["radius"]
    pgd = {"name": "pgd", "radius": radius, "num_steps": 7, "keep": "last"}
    composite = {"name": "caa", "radius": radius, "attributes": ranges, "order": "random", "num_steps": 2}
    joint = {"name": "spa", "radius": radius, "attributes": ranges} | in_training(10)
    experiment = {
        "name": "gat",
        "model": small_network(),
        "optimizer": {"name": "adamw", "weight_decay": 1e-4},
        "schedule": {"name": "one_cycle", "peak": 3e-3},
        "recipe": {"name": "adversarial", "attack": composite | {"keep": "last"}},
        "training": {"num_epochs": args["epochs"], "evaluate_every": 1000},
        "evaluation": {
            "batch_size": 200,
            "attacks": composite_attacks(radius, ranges, args["rounds"], args["steps"]),
            "selection_attack": pgd,
            "select_by": "clean",
            "survivors_only": False,
        },
        "baselines": (
            {"name": "standard", "recipe": "standard"},
            {"name": "pgd", "recipe": {"name": "adversarial", "attack": pgd}},
            {"name": "spa", "recipe": {"name": "adversarial", "attack": joint}},
        ),
    }
    data = {"name": "coloured_shapes", "train_size": args["train"], "test_size": args["images"]}
    section = {"experiment": experiment, "seeds": args["seeds"], "panels": None}
    return ConfigDict({"name": "bench_composite", "seed": 0, "data": data, "matrix": section})
