"""Defences that only look good: what each claims, what AutoAttack and an attacker who knows it leave, and its alarms.

python launch/benchmark.py --config configs/bench_planted.py --workdir runs/bench_planted

A network is trained on digits, or on MNIST by `bench_planted.py:data=mnist` (with `--data_dir DIR`, as
tensorflow-datasets prepares it), and 15 defences are planted around it, one after the other; see
`spa_jax.benchmarks.defences`.

Seen on digits and MNIST: every defence raises the alarm made for it; docs/autoattack.md has both tables. With
`JAX_DISABLE_MOST_OPTIMIZATIONS=1` ten and 46 minutes of one core.
"""

from common import small_network
from ml_collections import ConfigDict

from spa_jax.benchmarks.defences import DEFENCES
from spa_jax.configuration import parse_arguments

VICTIMS = {"digits": {"num_epochs": 20.0, "radius": 0.15}, "mnist": {"num_epochs": 1.0, "radius": 0.15}}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_planted.py:data=mnist,images=200,defences=one-hot|sine`.

    A `radius` of 0 stands for that of the data; `parts` of the standard cascade are all if none is named.
    """
    names = tuple(DEFENCES)
    args = parse_arguments(arg, data="digits", images=100, radius=0.0, defences=names, queries=1000, parts=("",))
    victim = VICTIMS[args["data"]]
    planted = {
        "model": small_network(),
        "batch_size": 128,
        "learning_rate": 3e-3,
        "victims": {
            "standard": {"recipe": {"name": "standard"}} | victim | {"radius": args["radius"] or victim["radius"]}
        },
        "num_images": args["images"],
        "defences": args["defences"],
        "queries": args["queries"],
        "parts": tuple(filter(None, args["parts"])),
    }
    return ConfigDict({"name": "bench_planted", "seed": 0, "data": args["data"], "planted": planted})
