"""Adversarial training on purification (AToP) before a standard classifier of handwritten digits.

python launch/train.py --config configs/digits_atop.py --workdir runs/digits_atop

A standard classifier, a small U-Net trained to restore noisy and masked digits (RT2), and the same U-Net fine-tuned
before the frozen classifier, on embedded data.
"""

from common import digits
from common_atop import purification_experiment, purifier_networks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `digits_atop.py:purifiers=unet|inpainter,transforms=rt1|rt2`."""
    args = parse_arguments(
        arg,
        epochs=30.0,
        purifier_epochs=60.0,
        atop_epochs=40.0,
        radius=0.2,
        sigma=0.15,
        seed=0,
        purifiers=("unet",),
        transforms=("rt2",),
        weight=0.1,
        through="system",
        target="clean",
    )
    networks = purifier_networks(width=16, depth=1, patch_size=2)
    noise = {"sigma": args["sigma"]}
    transforms = {name: {"name": name, "grid": 4, **({} if name == "rt1" else noise)} for name in args["transforms"]}
    experiment = purification_experiment(
        args["radius"],
        {name: networks[name] for name in args["purifiers"]},
        transforms,
        (args["purifier_epochs"], args["atop_epochs"]),
        (20, 10),
        classification_weight=args["weight"],
        through=args["through"],
        target=args["target"],
    )
    return ConfigDict(experiment | digits(args["epochs"]) | {"seed": args["seed"]})
