"""Adversarial training on purification (AToP) on CIFAR-10 or CIFAR-100: a U-Net before a PreActResNet-18.

    python launch/train.py --config configs/cifar10_atop.py --workdir runs/cifar10_atop --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it; `cifar10_atop.py:data=cifar100` takes the other.

For a GPU or a TPU. Not run to its end: no accelerator was at hand.
"""

from common import cifar10
from common_atop import purification_experiment, purifier_networks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255
STATISTICS = {
    "cifar10": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)},
    "cifar100": {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `cifar10_atop.py:data=cifar100,purifiers=inpainter,transforms=rt2`."""
    args = parse_arguments(
        arg,
        data="cifar10",
        seed=0,
        epochs=30.0,
        purifier_epochs=30.0,
        atop_epochs=10.0,
        images=512,
        purifiers=("unet",),
        transforms=("rt1", "rt2", "rt3"),
        weight=0.05,
        dtype="float32",
    )
    networks = purifier_networks(width=48, depth=2, patch_size=4)
    experiment = purification_experiment(
        RADIUS,
        {name: networks[name] | {"dtype": args["dtype"]} for name in args["purifiers"]},
        {name: {"name": name} for name in args["transforms"]},
        (args["purifier_epochs"], args["atop_epochs"]),
        classification_weight=args["weight"],
    )
    experiment["evaluation"]["num_examples"] = args["images"]
    base = cifar10(args["epochs"], "preact_resnet18", args["dtype"])
    base["data"]["name"] = args["data"]
    schedule = {"name": "one_cycle", "peak": 0.2}
    return ConfigDict(
        experiment | base | {"seed": args["seed"], "normalization": STATISTICS[args["data"]], "schedule": schedule}
    )
