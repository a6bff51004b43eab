"""The composite attack and the joint one at equal passes, their order fixed, drawn or searched, on coloured shapes.

python launch/benchmark.py --config configs/bench_composite.py --workdir runs/bench_composite

Trains a standard network on images drawn here, and from its weights one on PGD, one by generalised adversarial training
(GAT, Hsiung et al. 2023) and one by SPA training with the same ranges; all are judged by six attacks of 305 passes.

Seen with `images=100`, CAA and joint attack, both with their order searched: standard 16.0 and 2.0 % left, PGD 18.7 and
3.7, SPA 45.3 and 22.3, GAT 34.3 and 14.3. It took 50 minutes of one core.
"""

from common import CAA_RANGES, composite_attacks, in_training, small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_composite.py:seeds=0,epochs=1,images=50`.

    `epochs` are those of the standard network, `fine_tuning` those of the others; images have `size` x `size` pixels.
    """
    args = parse_arguments(
        arg,
        seeds=(0, 1, 2),
        epochs=20.0,
        fine_tuning=10.0,
        train=4000,
        size=16,
        images=200,
        radius=1 / 255,
        rounds=5,
        steps=10,
    )
    ranges, radius = CAA_RANGES, args["radius"]
    pgd = {"name": "pgd", "radius": radius, "num_steps": 7, "keep": "last"}
    composite = {"name": "caa", "radius": radius, "attributes": ranges, "order": "random", "num_steps": 2}
    joint = {"name": "spa", "radius": radius, "attributes": ranges} | in_training(10)
    fresh = {
        "training": {"num_epochs": args["epochs"], "start_from": None},
        "schedule": {"name": "one_cycle", "peak": 3e-3},
    }
    experiment = {
        "name": "gat",
        "model": small_network(),
        "optimizer": {"name": "adamw", "weight_decay": 1e-4},
        "schedule": {"name": "one_cycle", "peak": 1e-3},
        "recipe": {"name": "adversarial", "attack": composite | {"order_steps": 1, "keep": "last"}},
        "parts": {"standard": {"model": "standard"}},
        "training": {
            "num_epochs": args["fine_tuning"],
            "start_from": {"part": "standard"},
            "batch_size": 64,
            "evaluate_every": 1000,
        },
        "evaluation": {
            "batch_size": 200,
            "attacks": composite_attacks(radius, ranges, args["rounds"], args["steps"]),
            "selection_attack": pgd,
            "select_by": "clean",
            "survivors_only": False,
        },
        "baselines": (
            {"name": "standard", "recipe": "standard"} | fresh,
            {"name": "pgd", "recipe": {"name": "adversarial", "attack": pgd}},
            {"name": "spa", "recipe": {"name": "adversarial", "attack": joint}},
        ),
    }
    data = {
        "name": "coloured_shapes",
        "size": args["size"],
        "train_size": args["train"],
        "test_size": args["images"],
    }
    section = {"experiment": experiment, "seeds": args["seeds"], "panels": None}
    return ConfigDict({"name": "bench_composite", "seed": 0, "data": data, "matrix": section})
