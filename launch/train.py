"""Train the models of a config, and write the report that compares them.

python launch/train.py --config configs/digits_spa.py --workdir runs/digits_spa

A run that was stopped goes on with the same command. Settings are overridden one by one:

python launch/train.py --config configs/mnist_pgd.py --workdir runs/mnist --data_dir ~/tensorflow_datasets \
    --config.training.num_epochs=5 --config.recipe.attack.radius=0.2
"""

from absl import flags

from spa_jax.runs import launching
from spa_jax.runs.loop import train_and_evaluate

flags.adopt_module_key_flags(launching)
CONFIG = launching.define_flags()


def main() -> None:
    """Train and report."""
    train_and_evaluate(launching.config_value(CONFIG), flags.FLAGS.workdir)


if __name__ == "__main__":
    launching.launch(main)
