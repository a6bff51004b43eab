"""What each term of class-balanced perturbations does, in two-stage training or in the attack.

python launch/train.py --config configs/universal_ablation.py --workdir runs/universal_ablation --data_dir DIR

DIR holds `fashion_mnist` as tensorflow-datasets prepares it; `universal_ablation.py:data=mnist` takes the other, and
`data=digits` the embedded digits, without `--data_dir`.

Compared with two-stage training are, in its place: a plain loss instead of the class-balanced one, one perturbation
instead of one for each class, one step of a perturbation instead of two, and ten perturbations that images meet at
random instead of by their class. `universal_ablation.py:attack` trains a standard network alone, and crafts against it
the attack without each of its terms.
"""

from typing import Any

from common import (
    BALANCE_PENALTIES,
    LONG_CRAFTING,
    balanced_in_training,
    class_balanced_ablation,
    mnist_like,
    two_stage,
    universal_experiment,
)
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `universal_ablation.py:attack,data=mnist,epochs=2,seed=1`."""
    args = parse_arguments(arg, attack=False, data="fashion_mnist", epochs=0.0, seed=0, radius=0.0, penalty=0.0)
    setting, radius = mnist_like(args["data"], args["epochs"], args["radius"])
    penalty = args["penalty"] or BALANCE_PENALTIES[args["data"]]
    experiment = universal_experiment(radius, 10, penalty) | setting | {"seed": args["seed"]}
    experiment["evaluation"]["universal"] |= LONG_CRAFTING
    if args["attack"]:
        experiment |= {"name": "standard", "recipe": "standard", "baselines": ()}
        experiment["evaluation"]["universal"] |= {"attacks": class_balanced_ablation(radius, penalty), "targets": {}}
    else:
        experiment["baselines"] = trainings(radius)
    return ConfigDict(experiment)


def trainings(radius: float) -> tuple[dict[str, Any], ...]:
    """Standard training, and two-stage training with one thing changed."""
    single, plain = balanced_in_training(radius), {"name": "uap", "radius": radius}
    whole = single | {"classes": 10}
    return (
        {"name": "standard", "recipe": "standard"},
        {"name": "plain_loss", "recipe": two_stage(plain | {"classes": 10})},
        {"name": "one_perturbation", "recipe": two_stage(single)},
        {"name": "one_step", "recipe": two_stage(whole, steps=1)},
        {"name": "ten_at_random", "recipe": two_stage(single) | {"members": 10}},
    )
