"""Semantics-preserving adversarial training (SPAT) beside PGD, TRADES, MART and AWP, on CIFAR-10 at radius 8/255.

    python launch/train.py --config configs/cifar10_spat.py --workdir runs/cifar10_spat --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it. Attacks of 10 steps of 2/255 in training, as is usual.

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from common import cifar10, spat_experiment
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `cifar10_spat.py:epochs=2,dtype=bfloat16,seed=1`."""
    args = parse_arguments(arg, epochs=30.0, dtype="float32", seed=0, smoothing=0.3)
    network = cifar10(args["epochs"], "preact_resnet18", args["dtype"])
    experiment = spat_experiment(RADIUS, 10, args["smoothing"], apgd_steps=100) | {"seed": args["seed"]}
    return ConfigDict(experiment | network | {"schedule": {"name": "piecewise", "peak": 0.1}})
