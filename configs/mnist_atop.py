"""Adversarial training on purification (AToP) on MNIST or Fashion-MNIST: transforms alone, purifiers, and AToP.

    python launch/train.py --config configs/mnist_atop.py --workdir runs/mnist_atop --data_dir DIR

DIR holds `mnist` as tensorflow-datasets prepares it; `mnist_atop.py:data=fashion_mnist,seed=1` takes the other. By
default a U-Net under RT1, RT2 and RT3; `purifiers=unet|masked_autoencoder|inpainter` trains each network under each
transform. `through=classifier` crafts the training's FGSM on the classifier alone and `target=attacked` restores the
attacked image, as AToP's code does; `width` is that of all three networks. Attacked are 1,000 test images.
`unseen` trains a classifier on PGD too, and attacks all of it by what no training has seen, each attack on all images;
in the directory of a finished run it trains only what is new, and writes its report over that of the run.

Seen on Fashion-MNIST with `epochs=1,purifier_epochs=0.5,atop_epochs=0.25,images=100,width=8,transforms=rt1|rt2` in
batches of 64, worst case over seeds 0 to 2: standard 13 %, RT1 and RT2 alone 5 and 7 %, purified 33 and 38 %, AToP 40
and 44 %; see docs/atop.md. With `unseen`, AToP under RT2 and PGD training: 48 and 47 % in l2, 68 and 80 % under StAdv.
"""

from common import small_network
from common_atop import purification_experiment, purifier_networks, unseen_attacks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADII = {"mnist": 0.3, "fashion_mnist": 0.1}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set these, as in `mnist_atop.py:data=mnist,purifiers=inpainter,transforms=rt2`."""
    args = parse_arguments(
        arg,
        data="mnist",
        seed=0,
        radius=0.0,
        epochs=3.0,
        purifier_epochs=3.0,
        atop_epochs=3.0,
        images=1000,
        width=16,
        purifiers=("unet",),
        transforms=("rt1", "rt2", "rt3"),
        weight=0.1,
        through="system",
        target="clean",
        unseen=False,
    )
    radius = args["radius"] or RADII[args["data"]]
    networks = purifier_networks(width=args["width"], depth=2, patch_size=4)
    experiment = purification_experiment(
        radius,
        {name: networks[name] for name in args["purifiers"]},
        {name: {"name": name} for name in args["transforms"]},
        (args["purifier_epochs"], args["atop_epochs"]),
        classification_weight=args["weight"],
        through=args["through"],
        target=args["target"],
    )
    experiment["evaluation"]["num_examples"] = args["images"]
    if args["unseen"]:
        pgd = {"name": "pgd", "radius": radius, "num_steps": 10}
        experiment["baselines"].append({"name": "pgd", "recipe": {"name": "adversarial", "attack": pgd}})
        experiment["evaluation"] |= {"attacks": unseen_attacks(radius, 28), "survivors_only": False}
    return ConfigDict(
        experiment
        | {
            "seed": args["seed"],
            "data": {"name": args["data"], "validation_size": 1000},
            "model": small_network(),
            "training": {"num_epochs": args["epochs"]},
        }
    )
