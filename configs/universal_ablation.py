"""What each term of class-balanced perturbations does, in the attack and in two-stage training.

python launch/train.py --config configs/universal_ablation.py --workdir runs/universal_ablation --data_dir DIR

DIR holds `fashion_mnist` as tensorflow-datasets prepares it; `universal_ablation.py:data=mnist` takes the other, and
`data=digits` the embedded digits, without `--data_dir`.

The attack without each of its terms is crafted against every model, of which `standard` is the one to read. The
trainings are the two-stage one and, in its place: a plain loss instead of the class-balanced one, one perturbation
instead of one for each class, one step of a perturbation instead of two, and ten perturbations that images meet at
random instead of by their class.
"""

from common import (
    BALANCE_PENALTIES,
    balanced_in_training,
    class_balanced_ablation,
    mnist_like,
    two_stage,
    universal_experiment,
)
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `universal_ablation.py:data=mnist,epochs=2,seed=1`."""
    args = parse_arguments(arg, data="fashion_mnist", epochs=0.0, seed=0, radius=0.0, penalty=0.0)
    setting, radius = mnist_like(args["data"], args["epochs"], args["radius"])
    penalty = args["penalty"] or BALANCE_PENALTIES[args["data"]]
    experiment = universal_experiment(radius, 10, penalty)
    experiment["evaluation"]["universal"] |= {"num_images": 5000}
    experiment["evaluation"]["universal"]["attacks"] |= class_balanced_ablation(radius, penalty)
    single, plain = balanced_in_training(radius), {"name": "uap", "radius": radius}
    whole = single | {"classes": 10}
    experiment["baselines"] = (
        {"name": "standard", "recipe": "standard"},
        {"name": "plain_loss", "recipe": two_stage(plain | {"classes": 10})},
        {"name": "one_perturbation", "recipe": two_stage(single)},
        {"name": "one_step", "recipe": two_stage(whole, steps=1)},
        {"name": "ten_at_random", "recipe": two_stage(single) | {"members": 10}},
    )
    return ConfigDict(experiment | setting | {"seed": args["seed"]})
