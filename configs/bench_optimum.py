"""How far the joint attack is from an exhaustive search over the one attribute, by search and passes, on three models.

python launch/benchmark.py --config configs/bench_optimum.py --workdir runs/bench_optimum

One angle of +-20 degrees and noise; `bench_optimum.py:data=mnist` takes MNIST (with `--data_dir DIR`, as
tensorflow-datasets prepares it). The exhaustive search runs PGD-20 with 3 restarts at each of 81 angles, 5,106 passes.
Other searches have their passes in their names; a pass forward alone counts as a third.

Seen on digits, 200 images, mean of seeds 0, 1 and 2, standard, PGD and SPA: exhaustive 3.0, 7.3 and 54.5 %, the
default 2.8, 7.2 and 54.5 %, the grid of 9 angles 3.3, 8.7 and 57.3 %. It took seven minutes of one core.
"""

from common import digits, in_training, small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADII = {"digits": 0.08, "mnist": 0.2}
RANGE = {"rotation": {"low": -20.0, "high": 20.0}}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_optimum.py:data=mnist,seeds=0,epochs=2,images=100`."""
    args = parse_arguments(arg, data="digits", seeds=(0, 1, 2), epochs=0.0, images=200, angles=81, exhaustive=3)
    name, radius = args["data"], RADII[args["data"]]
    epochs = args["epochs"] or {"digits": 30.0, "mnist": 2.0}[name]
    joint = {"name": "spa", "radius": radius, "attributes": RANGE}
    pgd = {"name": "pgd", "radius": radius, "num_steps": 5, "keep": "last"}
    experiment = {
        **{key: value for key, value in digits(epochs).items() if key != "data"},
        "name": "spa",
        "model": small_network(),
        "schedule": {"name": "one_cycle", "peak": 5e-3},
        "training": {"batch_size": 64, "num_epochs": epochs, "evaluate_every": 1000},
        "recipe": {
            "name": "adversarial",
            "outer": {"name": "spa", "clean_weight": 0.1, "edited_weight": 0.1, "attacked_weight": 0.8},
            "attack": joint | in_training(5) | {"start": "draws", "start_points": 4},
        },
        "evaluation": {
            "batch_size": 200,
            "attacks": searches(joint, args["angles"], args["exhaustive"]),
            "selection_attack": pgd,
            "select_by": "clean",
            "survivors_only": False,
            "num_examples": args["images"],
        },
        "baselines": (
            {"name": "standard", "recipe": "standard"},
            {"name": "pgd", "recipe": {"name": "adversarial", "attack": pgd}},
        ),
    }
    data = {"name": name} if name == "digits" else {"name": name, "validation_size": 2000}
    return ConfigDict(
        {"name": "bench_optimum", "seed": 0, "data": data, "matrix": {"experiment": experiment, "seeds": args["seeds"]}}
    )


def searches(joint: dict, angles: int, restarts: int) -> dict:
    """Searches over one attribute and noise by name, the exhaustive one last."""
    shrinking = {"solver": "projected_gradient", "step_schedule": "linear"}
    short = joint | {"num_steps": 20}
    grid = {"start": "grid", "start_points": 9, "start_steps": 1}
    exhaustive = {"start": "grid", "start_points": angles, "start_steps": 21, "search": "noise", "num_steps": 1}
    return {
        "default (211)": joint,
        "its noise climbs by 3 steps, then 20 (89)": short | {"start_steps": 4},
        "grid of 9, then joint (23)": short | grid,
        "the same from one start (20)": short | {"start": "none"},
        "best of 9 draws, then joint (23)": short | {"start": "draws"},
        "alternating (23)": short | grid | shrinking | {"search": "alternating"},
        "grid of 9, then noise (23)": short | grid | {"search": "noise"},
        "random angles, then noise (23)": short | {"search": "noise", "start": "random"},
        "grid of 9, then joint, 3 times (69)": short | grid | {"restarts": 3},
        "grid of 9, then joint, 10 times (230)": short | grid | {"restarts": 10},
        "exhaustive": joint | exhaustive | {"restarts": restarts},
    }
