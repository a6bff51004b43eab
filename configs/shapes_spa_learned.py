"""SPA in full on coloured shapes, drawn here: hue, scale, place and angle by a learned manipulator, learned noise.

    python launch/train.py --config configs/shapes_spa_learned.py --workdir runs/shapes_spa_learned

Trains, one after the other, the manipulator, a standard classifier, and generator and classifier together; the attack
sets all five attributes at once. `shapes_spa_learned.py:trained=RUN` takes the manipulator from RUN, a finished run of
`shapes_manipulator.py`, whose report judges it.

Seen so, in little (`images=6000,test_images=300,epochs=4`, seed 0, radius 8/255): clean 90.3 % (standard 92.7 %), the
edit alone 54.3 % (39.0 %), PGD 33.7 % (0 %), worst case of these and both joint attacks 2.7 % [1.4, 5.2] (0 %). On the
sheet most edited images are shapes that a person would name as before, but not all: a search for the worst value also
finds where the manipulator fails, which at random values happens to one image in six.
"""

from common import generator, in_training, learned_attacks, learned_parts, manipulator, small_network, standard
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

BOX = {"low": (0.05, 0.43, -0.12, -0.12, -25.0), "high": (0.65, 0.67, 0.12, 0.12, 25.0)}
PAINTING = {"num_steps": 2, "step_share": 0.5}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `shapes_spa_learned.py:epochs=2,images=3000`."""
    args = parse_arguments(
        arg, epochs=8.0, manipulator_epochs=80.0, radius=8 / 255, images=12000, test_images=1000, trained=""
    )
    joint = {"name": "spa", "radius": args["radius"], "attributes": {"shape": {"part": "manipulator", **BOX}}}
    generated = joint | {"noise": {"part": "generator", **PAINTING}}
    training = {"num_epochs": args["manipulator_epochs"], "attack_warmup": 0.0, "evaluate_every": 10}
    baselines = [standard()]
    if not args["trained"]:
        baselines.append(manipulator({}) | {"networks": None, "training": training})
    return ConfigDict(
        {
            "name": "spa",
            "data": {"name": "coloured_shapes", "train_size": args["images"], "test_size": args["test_images"]},
            "model": small_network(),
            "recipe": {
                "name": "adversarial",
                "outer": "spa",
                "attack": generated | in_training(2),
                "generator": {"radius": args["radius"], **PAINTING},
            },
            "networks": {"generator": generator(8)},
            "parts": learned_parts(args["trained"]),
            "training": {"num_epochs": args["epochs"], "attack_warmup": 0.3, "evaluate_every": 4},
            "evaluation": {
                "attacks": learned_attacks("attributes", BOX, joint, generated),
                "selection_attack": joint | {"num_steps": 5},
                "survivors_only": False,
            },
            "baselines": baselines,
        }
    )
