"""Semantics-preserving adversarial training (SPAT) beside PGD, TRADES, MART and AWP, on MNIST or Fashion-MNIST.

python launch/train.py --config configs/mnist_spat.py --workdir runs/mnist_spat --data_dir DIR

DIR holds `mnist` as tensorflow-datasets prepares it; `mnist_spat.py:data=fashion_mnist` takes the other.
Seen with `data=fashion_mnist,steps=5,epochs=4,train_share=0.25,images=500` in batches of 128, worst case over seeds 0
to 2: PGD 64.1 %, TRADES 63.6, MART 65.4, SPAT 57.4, with the guard 61.2, smoothing outside alone 65.3, inside and
outside 65.7; see docs/spat.md. Thirteen trainings took 17 minutes of one core, and their evaluation about as long.
"""

from common import small_network, spat_experiment
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADII = {"mnist": 0.3, "fashion_mnist": 0.1}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `mnist_spat.py:data=fashion_mnist,epochs=2,seed=1`.

    `images` is the number of test images, 0 for all; `train_share` the share of the training images. `masked` adds the
    training with the mask of shared pixels, which takes ten times as long as the others.
    """
    args = parse_arguments(
        arg,
        data="mnist",
        epochs=5.0,
        seed=0,
        radius=0.0,
        smoothing=0.3,
        steps=10,
        images=0,
        train_share=1.0,
        masked=False,
    )
    radius = args["radius"] or RADII[args["data"]]
    experiment = spat_experiment(radius, args["steps"], args["smoothing"], masked=args["masked"])
    experiment["evaluation"] |= {"num_examples": args["images"] or None}
    return ConfigDict(
        experiment
        | {
            "seed": args["seed"],
            "data": {"name": args["data"], "validation_size": 2000},
            "model": small_network(),
            "training": {
                "batch_size": 256,
                "num_epochs": args["epochs"],
                "attack_warmup": 0.3,
                "train_share": args["train_share"],
            },
        }
    )
