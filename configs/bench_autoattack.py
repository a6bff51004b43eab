"""AutoAttack of ours, of its authors and of torchattacks on the same weights: accuracy and seconds on 500 MNIST images.

python launch/benchmark.py --config configs/bench_autoattack.py --workdir runs/bench_autoattack --data_dir DIR

DIR holds `mnist` as tensorflow-datasets prepares it; `--config configs/bench_autoattack.py:data=digits` needs none and
takes test images of 8x8 pixels. Two victims, trained at once: standard, and by PGD. Each library evaluates in a process
of its own, one after the other. Needs the `bench` extra. torchattacks' cascade makes 10 steps in its gradient attacks,
AutoAttack 100, so it is measured with 100 too. The authors' own code is the peer `autoattack_authors`, which needs
`pip install git+https://github.com/fra31/auto-attack`; in l1 it is the only one, since torchattacks has no l1.

Seen with `seeds=2,devices=2` on two cores, ours, ours giving up after 64 and 32 images, the authors', torchattacks:
standard network, radius 0.1, 51.2, 51.2, 51.2, 52.0 and 56.2 % robust in 66, 30, 25, 149 and 89 seconds; PGD-trained,
radius 0.2, 88.0, 88.0, 88.0, 88.2 and 88.4 % in 115, 34, 25, 336 and 116 seconds. It took 22 minutes a seed.
docs/autoattack.md has three seeds in three norms.
"""

from common import small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADII = {
    ("mnist", "linf"): {"standard": 0.1, "pgd": 0.2},
    ("mnist", "l2"): {"standard": 1.0, "pgd": 2.0},
    ("mnist", "l1"): {"standard": 5.0, "pgd": 10.0},
    ("digits", "linf"): {"standard": 0.1, "pgd": 0.15},
    ("digits", "l2"): {"standard": 0.5, "pgd": 0.8},
    ("digits", "l1"): {"standard": 1.5, "pgd": 2.0},
}
TORCHATTACKS = ("torchattacks_autoattack", "torchattacks_100_steps")
PEERS = {"linf": TORCHATTACKS, "l2": TORCHATTACKS, "l1": ("autoattack_authors",)}
EPOCHS = {"mnist": {"standard": 1.0, "pgd": 2.0}, "digits": {"standard": 20.0, "pgd": 20.0}}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_autoattack.py:data=digits,images=20,seeds=0|1,norm=l2`.

    A `radius` of 0 stands for that of each victim, no `peers` for those of the norm. Ours runs on as many `devices`,
    parts of the CPU, once as it is and once for each number of images to `give_up_after`.
    """
    args = parse_arguments(
        arg,
        data="mnist",
        images=500,
        seeds=(0, 1, 2),
        norm="linf",
        radius=0.0,
        devices=1,
        give_up_after=(64, 32),
        peers=("",),
    )
    data = args["data"]
    radii = RADII[data, args["norm"]]
    crafted = {"name": "pgd", "radius": RADII[data, "linf"]["pgd"], "num_steps": 7, "keep": "last"}
    recipes = {"standard": {"name": "standard"}, "pgd": {"name": "adversarial", "attack": crafted}}
    section = {
        "model": small_network(),
        "batch_size": 128,
        "learning_rate": 3e-3,
        "victims": {
            name: {"recipe": recipe, "num_epochs": EPOCHS[data][name], "radius": args["radius"] or radii[name]}
            for name, recipe in recipes.items()
        },
        "norm": args["norm"],
        "num_images": args["images"],
        "seeds": args["seeds"],
        "devices": args["devices"],
        "give_up_after": args["give_up_after"],
        "peers": tuple(filter(None, args["peers"])) or PEERS[args["norm"]],
    }
    return ConfigDict({"name": "bench_autoattack", "seed": 0, "data": data, "autoattack": section})
