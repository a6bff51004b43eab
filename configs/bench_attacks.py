"""Attacks against their floor and against other libraries, and their memory, on an MNIST CNN and a CIFAR ResNet-20.

python launch/benchmark.py --config configs/bench_attacks.py --workdir runs/bench_attacks

Without the libraries of the `bench` extra: `--config configs/bench_attacks.py:peers=false`.

Nine minutes on two cores with 3 repeats. Seen, examples a second under PGD-10 at batch 128 (small CNN / ResNet-20):
this library 500 / 55 on two host devices and 322 / 37 on one; torchattacks 338 / 58, foolbox on PyTorch 348 / 59,
foolbox on JAX 289 / 34, ART 202 / 53, a channels-last PyTorch loop 494 / 69, torch.compile 198 / 90. Multiples of the
floor: PGD 1.01 / 0.94, rotation and noise together 1.34 / 1.05. So PyTorch is still faster on ResNet-20.
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
