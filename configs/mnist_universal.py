"""Training against universal perturbations, in two stages and otherwise, on MNIST or Fashion-MNIST.

python launch/train.py --config configs/mnist_universal.py --workdir runs/mnist_universal --data_dir DIR

DIR holds `mnist` as tensorflow-datasets prepares it; `mnist_universal.py:data=fashion_mnist` takes the other.
Not run to its end yet.
"""

from common import small_network, universal_experiment
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADII = {"mnist": 0.3, "fashion_mnist": 0.15}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `mnist_universal.py:data=mnist,epochs=2,seed=1`."""
    args = parse_arguments(arg, data="mnist", epochs=3.0, seed=0, radius=0.0)
    experiment = universal_experiment(args["radius"] or RADII[args["data"]], 10)
    experiment["evaluation"]["universal"] |= {"num_images": 5000, "image_counts": (100, 500, 2000)}
    return ConfigDict(
        experiment
        | {
            "seed": args["seed"],
            "data": {"name": args["data"], "validation_size": 2000},
            "model": small_network(),
            "training": {"num_epochs": args["epochs"]},
        }
    )
