"""Generated noise beside its bare passes, and its memory, on an MNIST CNN.

python launch/benchmark.py --config configs/bench_generator.py --workdir runs/bench_generator

Two minutes on two cores with 2 repeats. Seen in one run at batch 32, joint attack step / generator's training step:
1.25 / 0.82 times the bare passes; temporary memory with 10 mini-steps 27 / 94 MiB, with one 22 / 85, and 69 / 460 when
all activations are kept.
"""

from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_generator.py:batch=16,width=8,repeats=2`."""
    args = parse_arguments(arg, batch=32, repeats=3, width=16, steps=10)
    network = {"model": {"name": "small_cnn", "convs_per_stage": 1}, "input_shape": (28, 28, 1)}
    section = {
        "networks": {"small_cnn": network},
        "generator": {"width": args["width"]},
        "num_classes": 10,
        "batch_size": args["batch"],
        "radius": 0.3,
        "num_steps": args["steps"],
        "repeats": args["repeats"],
    }
    return ConfigDict({"name": "bench_generator", "seed": 0, "generator": section})
