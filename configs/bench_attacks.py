"""Attacks against their floor and against other libraries, and their memory, on an MNIST CNN and a CIFAR ResNet-20.

python launch/benchmark.py --config configs/bench_attacks.py --workdir runs/bench_attacks

Without the libraries of the `bench` extra: `--config configs/bench_attacks.py:peers=false`.

Ten minutes on two cores with 3 repeats. Seen in one run, examples a second under PGD-10 at batch 128 (small CNN /
ResNet-20): this library 600 / 76 on two host devices, 606 / 80 in chunks of 32, 336 / 33 on one device; torchattacks
248 / 43, foolbox on PyTorch 287 / 45, foolbox on JAX 270 / 33, ART 252 / 38, a channels-last PyTorch loop 401 / 55,
torch.compile 165 / 67. Multiples of the floor: PGD 0.98 / 0.95, rotation and noise together 1.19 / 0.97. The machine
drifts by a third from hour to hour, so only ratios of one run count: round by round torch.compile took 1.07 times as
long as PGD on ResNet-20, and 1.03 in a second run of 6 rounds, in which PGD in chunks took 0.88 of PGD.
"""

from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255
NETWORKS = {
    "small_cnn": {"model": {"name": "small_cnn", "convs_per_stage": 1}, "input_shape": (28, 28, 1)},
    "resnet20": {"model": {"name": "resnet20"}, "input_shape": (32, 32, 3)},
}
COMMON = {"radius": RADIUS, "num_steps": 10}
ATTACKS = {
    "pgd": {"name": "pgd", **COMMON},
    "pgd_last": {"name": "pgd", "keep": "last", **COMMON},
    "pgd_chunks": {"name": "pgd", "chunk_size": 32, **COMMON},
    "pgd_last_chunks": {"name": "pgd", "keep": "last", "chunk_size": 32, **COMMON},
    "apgd_ce": {"name": "apgd_ce", **COMMON},
    "spa_rotation": {"name": "spa", "attributes": ("rotation",), **COMMON},
}
PEERS = (
    "torchattacks_pgd",
    "foolbox_torch_pgd",
    "foolbox_jax_pgd",
    "art_pgd",
    "torch_loop_pgd",
    "torch_compile_pgd",
)


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_attacks.py:batch=32,repeats=3,devices=1,networks=small_cnn`."""
    args = parse_arguments(arg, batch=128, repeats=5, devices=(2, 1), networks=tuple(NETWORKS), peers=True, memory=True)
    speed = {
        "networks": {name: NETWORKS[name] for name in args["networks"]},
        "num_classes": 10,
        "batch_size": args["batch"],
        "repeats": args["repeats"],
        "devices": args["devices"],
        "attacks": ATTACKS,
        "reference": "pgd",
        "peers": PEERS if args["peers"] else (),
        "peer_attack": {"radius": RADIUS, "step_size": 0.25, "num_steps": 10},
    }
    memory = {
        "networks": speed["networks"],
        "num_classes": 10,
        "batch_size": args["batch"],
        "attacks": {name: ATTACKS[name] for name in ("pgd", "apgd_ce", "spa_rotation")},
        "num_steps": (10, 100),
    }
    return ConfigDict(
        {"name": "bench_attacks", "seed": 0, "speed": speed, "memory": memory if args["memory"] else None}
    )
