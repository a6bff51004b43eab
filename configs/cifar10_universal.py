"""Training against universal perturbations, in two stages and otherwise, on CIFAR-10.

    python launch/train.py --config configs/cifar10_universal.py --workdir runs/cifar10_universal --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it.

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from common import cifar10, universal_experiment
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 10 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs` and `dtype`, as in `cifar10_universal.py:epochs=2,dtype=bfloat16`."""
    args = parse_arguments(arg, epochs=30.0, dtype="float32")
    network = cifar10(args["epochs"], "preact_resnet18", args["dtype"])
    return ConfigDict(universal_experiment(RADIUS, 10) | network | {"schedule": {"name": "one_cycle", "peak": 0.2}})
