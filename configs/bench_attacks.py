"""Attacks and a training step against their floor and against PyTorch, on an MNIST CNN and a CIFAR ResNet-20.

python launch/benchmark.py --config configs/bench_attacks.py --workdir runs/bench_attacks

Each network in two forms: "stock", plain flax.linen as a user writes it, attacked through a closure; and "zoo", of
`spa_jax.models` through `classifier`; on one and on two host devices. Everything is timed in a process of its own, in
turns. The tables in --workdir are written anew after every row. Limit a run by `attacks`, `networks`, `forms`,
`devices`, `repeats`: `--config configs/bench_attacks.py:networks=cnn,attacks=pgd_10|cw_50,repeats=2`.

Without PyTorch (the `bench` extra): `--config configs/bench_attacks.py:peers=`.
"""

from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255
NETWORKS = {
    "cnn": {
        "model": {"name": "small_cnn", "convs_per_stage": 1},
        "stock": "cnn",
        "input_shape": (28, 28, 1),
    },
    "resnet20": {"model": {"name": "resnet20"}, "stock": "resnet20", "input_shape": (32, 32, 3)},
}
PGD = {"name": "pgd", "radius": RADIUS, "num_steps": 10}
ATTACKS = {
    "pgd_10": PGD,
    "pgd_50": PGD | {"num_steps": 50},
    "apgd_100": {"name": "apgd_ce", "radius": RADIUS, "num_steps": 100},
    "cw_50": {"name": "cw", "num_steps": 50, "search_steps": 1},
    "spa_10": {"name": "spa", "attributes": ("rotation",), "radius": RADIUS, "num_steps": 10, "start": "none"},
    "spa_10_from_grid": {"name": "spa", "attributes": ("rotation",), "radius": RADIUS, "num_steps": 10},
    "pgd_10_last": PGD | {"keep": "last"},
    "pgd_10_chunks": PGD | {"chunk_size": 32},
}
PEERS = ("torchattacks_pgd", "torch_loop_pgd", "torch_compile_pgd")
MORE_PEERS = ("foolbox_torch_pgd", "foolbox_jax_pgd", "art_pgd")
TRAINING_PEERS = ("torch_loop_training",)
DEFAULT = ("pgd_10", "pgd_50", "apgd_100", "cw_50", "spa_10", "spa_10_from_grid")


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_attacks.py:attacks=pgd_10|cw_50,networks=resnet20,forms=stock`.

    `attacks` are names above; `peers` and `training` may be empty (`peers=`); `memory` adds the table of memory.
    """
    args = parse_arguments(
        arg,
        batch=128,
        repeats=3,
        devices=(1, 2),
        networks=tuple(NETWORKS),
        forms=("zoo", "stock"),
        attacks=DEFAULT,
        peers=PEERS,
        training=("resnet20",),
        memory=False,
    )
    networks = {name: NETWORKS[name] for name in args["networks"]}
    peers = tuple(filter(None, args["peers"]))
    trained = [name for name in args["training"] if name in networks]
    speed = {
        "networks": networks,
        "forms": args["forms"],
        "num_classes": 10,
        "batch_size": args["batch"],
        "repeats": args["repeats"],
        "devices": args["devices"],
        "attacks": {name: ATTACKS[name] for name in args["attacks"]},
        "peers": peers,
        "peer_attack": "pgd_10" if "pgd_10" in args["attacks"] else None,
        "training": {"attack": PGD, "networks": trained, "peers": TRAINING_PEERS if peers else ()},
    }
    memory = {
        "networks": networks,
        "num_classes": 10,
        "batch_size": args["batch"],
        "attacks": {name: ATTACKS[name] for name in ("pgd_10", "apgd_100", "spa_10")},
        "num_steps": (10, 100),
    }
    config = {"name": "bench_attacks", "seed": 0, "speed": speed, "memory": memory if args["memory"] else None}
    return ConfigDict(config)
