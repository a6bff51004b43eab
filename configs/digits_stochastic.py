"""Random defences before a digits network, attacked adaptively and by attacks that it was not trained for.

python launch/train.py --config configs/digits_stochastic.py --workdir runs/digits_stochastic

A network trained by PGD and a standard one stand behind random noise and hidden blocks (AToP's RT2, without a
purifying network), which a vote over draws and a fixed draw follow. Each is attacked by its full gradient and straight
through, both over the mean of 20 draws; the report has the accuracy over fresh draws. For a random transform alone the
gradient straight through is that of the network on transformed images.
"""

from common import adaptive_attacks, digits, unseen_attacks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 0.1
RT2 = {"name": "rt2", "sigma": 0.1, "grid": 4, "share": 0.125}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `draws`, as in `digits_stochastic.py:epochs=2,draws=4`."""
    args = parse_arguments(arg, epochs=30.0, draws=20)
    pgd = {"name": "pgd", "radius": RADIUS}
    unseen = unseen_attacks(RADIUS, {"rotation": {"low": -20.0, "high": 20.0}}, 64, 0.5)
    return ConfigDict(
        {
            "name": "pgd",
            **digits(args["epochs"]),
            "recipe": {"name": "adversarial", "attack": pgd | {"num_steps": 5, "keep": "last"}},
            "evaluation": {
                "batch_size": 200,
                "attacks": adaptive_attacks(pgd | {"num_steps": 20}, args["draws"]) | unseen["attacks"],
                "universal": unseen["universal"],
                "selection_attack": pgd | {"num_steps": 5},
                "survivors_only": False,
            },
            "baselines": ({"name": "standard", "recipe": "standard", "evaluation": {"select_by": "clean"}},),
            "victims": {
                "shaken": {"name": "purify", "victim": {"model": "pgd"}, "purifier": RT2},
                "shaken standard": {"name": "purify", "victim": {"model": "standard"}, "purifier": RT2},
                "voted": {"name": "majority_vote", "victim": {"victim": "shaken"}, "n": args["draws"]},
                "fixed": {"name": "fixed_draw", "victim": {"victim": "shaken"}},
            },
        }
    )
