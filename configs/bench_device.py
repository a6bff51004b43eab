"""Attacks and training steps on one GPU: PreActResNet-18 and WRN-28-10, float32 and bfloat16, in under six minutes.

python launch/benchmark.py --config configs/bench_device.py --workdir runs/bench_device

On a CPU smaller networks and batches take their place. The tables in --workdir are written anew after every row, so a
run that is stopped loses nothing; what the time did not suffice for is listed as skipped.
"""

from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

SHAPE = (32, 32, 3)
NETWORKS = {
    "preact_resnet18": {"model": {"name": "preact_resnet18"}, "input_shape": SHAPE},
    "wide_resnet28_10": {"model": {"name": "wide_resnet28_10"}, "input_shape": SHAPE},
}
SMALL_NETWORKS = {
    "preact_resnet18, width 16": {"model": {"name": "preact_resnet18", "width": 16}, "input_shape": SHAPE},
    "wide_resnet10_2": {"model": {"name": "wide_resnet28_10", "depth": 10, "widen_factor": 2}, "input_shape": SHAPE},
}
COMMON = {"radius": 8 / 255, "num_steps": 10}
EDITS = {"hue": {}, "rotation": {"low": -15.0, "high": 15.0}}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_device.py:batch=128,work=attack,dtypes=bfloat16,limit=120`."""
    args = parse_arguments(
        arg, batch=256, repeats=5, dtypes=("float32", "bfloat16"), work=("attack", "training"), limit=300.0
    )
    section = {
        "networks": NETWORKS,
        "small_networks": SMALL_NETWORKS,
        "num_classes": 10,
        "batch_size": args["batch"],
        "small_batch_size": min(16, args["batch"]),
        "dtypes": args["dtypes"],
        "attacks": {
            "PGD-10": {"name": "pgd", **COMMON},
            "joint SPA-10": {"name": "spa", "attributes": EDITS, "start": "none", **COMMON},
        },
        "work": args["work"],
        "repeats": args["repeats"],
        "time_limit": args["limit"],
    }
    return ConfigDict({"name": "bench_device", "seed": 0, "device": section})
