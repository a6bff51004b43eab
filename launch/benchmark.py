"""Measure attacks: examples a second, compile time, the multiple of the floor, memory, and strength against others.

python launch/benchmark.py --config configs/bench_attacks.py --workdir runs/bench_attacks

Prints tables and writes benchmark.md and benchmark.json to --workdir. Use a machine on which nothing else runs.
"""

from absl import flags

from spa_jax.benchmarks.run import benchmark
from spa_jax.runs import launching

flags.adopt_module_key_flags(launching)
CONFIG = launching.define_flags()


def main() -> None:
    """Measure and print."""
    print(benchmark(launching.config_value(CONFIG), flags.FLAGS.workdir))


if __name__ == "__main__":
    trains = {"strength", "minimal_norm", "autoattack", "matrix", "universal", "planted"}
    launching.launch(main, collectives=lambda: bool(trains & set(launching.config_value(CONFIG))))
