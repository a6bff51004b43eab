"""Train the models of a config, and write the report that compares them.

python launch/train.py --config configs/digits_spa.py --workdir runs/digits_spa

A run that was stopped goes on with the same command; a finished one for longer with more epochs and --extend. Settings
are overridden one by one:

python launch/train.py --config configs/mnist_pgd.py --workdir runs/mnist --data_dir ~/tensorflow_datasets \
    --config.training.num_epochs=5 --config.recipe.attack.radius=0.2
"""

from absl import flags

from spa_jax.runs import launching
from spa_jax.runs.loop import train_and_evaluate

flags.adopt_module_key_flags(launching)
CONFIG = launching.define_flags()
EXTEND = flags.DEFINE_bool(
    "extend",
    False,
    "Go on for more epochs than the checkpoints in --workdir were made for; says how the schedule changes.",
)


def main() -> None:
    """Train and report."""
    train_and_evaluate(launching.config_value(CONFIG), flags.FLAGS.workdir, extend=EXTEND.value)


if __name__ == "__main__":
    launching.launch(main)
