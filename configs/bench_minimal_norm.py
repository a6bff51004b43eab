"""The nearest images that fool: median distances of our attacks and of others, on 200 MNIST images.

python launch/benchmark.py --config configs/bench_minimal_norm.py --workdir runs/bench_minimal_norm --data_dir DIR

DIR holds `mnist` as tensorflow-datasets prepares it; `--config configs/bench_minimal_norm.py:data=digits` needs none
and takes test images of 8x8 pixels. Two victims, trained at once: standard, and by PGD. Needs the `bench` extra,
and for FAB in l1 the code of AutoAttack's authors: `pip install git+https://github.com/fra31/auto-attack`.
"""

from common import small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

FAB = {"l2": "torchattacks_fab_l2", "linf": "torchattacks_fab_linf", "l1": "autoattack_authors_fab_l1"}
"""torchattacks 3.5.1 fails in l1."""
RADII = {"mnist": 0.2, "digits": 0.15}
EPOCHS = {"mnist": {"standard": 1.0, "pgd": 2.0}, "digits": {"standard": 20.0, "pgd": 20.0}}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_minimal_norm.py:data=digits,images=50,steps=30,seeds=0|1`.

    Of the attacks, only FAB's random starts would read the seed; none is asked for, so one seed says it all.
    """
    args = parse_arguments(arg, data="mnist", images=200, steps=100, seeds=(0,))
    data, steps = args["data"], args["steps"]
    crafted = {"name": "pgd", "radius": RADII[data], "num_steps": 7, "keep": "last"}
    recipes = {"standard": {"name": "standard"}, "pgd": {"name": "adversarial", "attack": crafted}}
    deepfool = {
        f"deepfool_{norm}": {"attack": {"name": "deepfool", "norm": norm}, "peers": (f"foolbox_deepfool_{norm}",)}
        for norm in ("l2", "linf")
    }
    ddn = {"ddn": {"attack": {"name": "ddn", "num_steps": steps}, "peers": ("foolbox_ddn",)}}
    fmn = {
        f"fmn_{norm}": {
            "attack": {"name": "fmn", "norm": norm, "num_steps": steps},
            "peers": (f"foolbox_fmn_{norm}",),
        }
        for norm in ("l2", "linf", "l1")
    }
    fab = {
        f"fab_{norm}": {
            "attack": {"name": "fab", "norm": norm, "num_steps": steps},
            "peers": (peer,),
        }
        for norm, peer in FAB.items()
    }
    section = {
        "model": small_network(),
        "batch_size": 128,
        "learning_rate": 3e-3,
        "victims": {name: {"recipe": recipe, "num_epochs": EPOCHS[data][name]} for name, recipe in recipes.items()},
        "num_images": args["images"],
        "seeds": args["seeds"],
        "attacks": {**deepfool, **ddn, **fmn, **fab},
    }
    return ConfigDict({"name": "bench_minimal_norm", "seed": 0, "data": data, "minimal_norm": section})
