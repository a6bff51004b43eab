"""SPA training on handwritten digits, compared with standard and PGD training: the main job, on embedded data.

python launch/train.py --config configs/digits_spa.py --workdir runs/digits_spa

Two to four minutes on two cores with the evaluation. Seen with seed 0, on all 397 test images: accuracy under the joint
attack 0.8 % standard, 7.6 % PGD-trained, 57.7 % SPA-trained [52.8, 62.4]; clean 99.7 to 100 %. Networks of other seeds,
or of the same on another machine, differ by a few points.

Why radius 0.1 and 20 degrees: each alone leaves a standard network over half of its accuracy, both together next to
nothing, and a network of this size can still learn to resist both. At 8x8 pixels larger turns leave the image.
"""

from common import digits, in_training
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 0.1
RANGE = {"low": -20.0, "high": 20.0}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `baselines`, as in `digits_spa.py:epochs=2,baselines=false`."""
    args = parse_arguments(arg, epochs=60.0, baselines=True)
    joint = {"name": "spa", "radius": RADIUS, "attributes": {"rotation": RANGE}}
    pgd = {"name": "pgd", "radius": RADIUS}
    baselines = (
        {"name": "standard", "recipe": "standard", "evaluation": {"select_by": "clean"}},
        {"name": "pgd", "recipe": {"name": "adversarial", "attack": pgd | {"num_steps": 5, "keep": "last"}}},
    )
    return ConfigDict(
        {
            "name": "spa",
            **digits(args["epochs"]),
            "recipe": {
                "name": "adversarial",
                "outer": {"name": "spa", "clean_weight": 0.1, "edited_weight": 0.1, "attacked_weight": 0.8},
                "attack": joint | in_training(5) | {"start": "draws", "start_points": 4},
            },
            "evaluation": {
                "batch_size": 200,
                "attacks": {
                    "PGD": pgd | {"num_steps": 20, "restarts": 3},
                    "attribute": {"name": "attribute", "edit": "rotation", **RANGE, "method": "grid", "num_steps": 41},
                    "joint": joint,
                },
                "selection_attack": joint | {"start": "draws", "num_steps": 10},
                "survivors_only": False,
                "radii": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
                "radius_attack": "joint",
                "attribute_points": 21,
            },
            "baselines": baselines if args["baselines"] else (),
        }
    )
