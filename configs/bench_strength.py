"""Robust accuracy of the same weights under our attacks and under foolbox, torchattacks and ART, on 1,000 MNIST images.

python launch/benchmark.py --config configs/bench_strength.py --workdir runs/bench_strength --data_dir DIR

23 minutes on two cores that did other work too. Seen, mean robust accuracy over seeds 0, 1, 2 of the random start, ours
and that of the others: PGD-50 on the standard network 54.1 % (foolbox 54.2 in JAX and 54.1 in PyTorch, torchattacks
54.1, ART 54.2), on the PGD-trained one 89.8 % (89.5, 89.8, 89.8, 89.7); APGD-CE-50 50.9 % (torchattacks 51.3, ART 50.9)
and 89.1 % (89.2, 89.1); APGD-CE-100 50.2 % (torchattacks 50.4) and 89.0 % (89.1). Logits agree to 7e-6.

DIR holds `mnist` as tensorflow-datasets prepares it; `--config configs/bench_strength.py:dataset=digits` needs none and
takes 392 test images of 8x8 pixels. Two victims, trained at once: standard, and by PGD. Needs the `bench` extra.
"""

from common import small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

IMAGES = {"mnist": 1000, "digits": 392}
RADII = {"mnist": {"standard": 0.1, "pgd": 0.2}, "digits": {"standard": 0.1, "pgd": 0.15}}
EPOCHS = {"mnist": {"standard": 1.0, "pgd": 2.0}, "digits": {"standard": 20.0, "pgd": 20.0}}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_strength.py:dataset=digits,seeds=0|1`."""
    args = parse_arguments(arg, dataset="mnist", seeds=(0, 1, 2))
    radii, epochs = RADII[args["dataset"]], EPOCHS[args["dataset"]]
    crafted = {"name": "pgd", "radius": radii["pgd"], "num_steps": 7, "keep": "last"}
    recipes = {"standard": {"name": "standard"}, "pgd": {"name": "adversarial", "attack": crafted}}
    strength = {
        "model": small_network(),
        "batch_size": 128,
        "learning_rate": 3e-3,
        "victims": {
            name: {"recipe": recipe, "num_epochs": epochs[name], "radius": radii[name]}
            for name, recipe in recipes.items()
        },
        "num_images": IMAGES[args["dataset"]],
        "seeds": args["seeds"],
        "attacks": {
            "pgd_50": {
                "attack": {"name": "pgd", "num_steps": 50, "rel_step_size": 0.05},
                "peers": ("foolbox_jax_pgd", "foolbox_torch_pgd", "torchattacks_pgd", "art_pgd"),
            },
            "apgd_ce_50": {
                "attack": {"name": "apgd_ce", "num_steps": 50},
                "peers": ("torchattacks_apgd_ce", "art_apgd_ce"),
            },
            "apgd_ce_100": {
                "attack": {"name": "apgd_ce", "num_steps": 100},
                "peers": ("torchattacks_apgd_ce",),
            },
        },
    }
    return ConfigDict({"name": "bench_strength", "seed": 0, "data": args["dataset"], "strength": strength})
