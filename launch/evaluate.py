"""Evaluate the trained models of a config again, with its attacks as they are now, and write the report.

python launch/evaluate.py --config configs/digits_spa.py --workdir runs/digits_spa \
    --config.evaluation.attacks.PGD.num_steps=100

It only reads the checkpoints, so it may run while the models are trained: it judges the best checkpoints that are there
then. Of two programs that write a report, the one that ends last leaves its own.
"""

from pathlib import Path

from absl import flags

from spa_jax.parallel import data_mesh
from spa_jax.runs import launching
from spa_jax.runs.experiment import check_config, data_loader
from spa_jax.runs.reporting import report_models

flags.adopt_module_key_flags(launching)
CONFIG = launching.define_flags()


def main() -> None:
    """Load, attack, report."""
    config = check_config(launching.config_value(CONFIG))
    report_models(config, Path(flags.FLAGS.workdir), data_loader(), data_mesh())


if __name__ == "__main__":
    launching.launch(main)
