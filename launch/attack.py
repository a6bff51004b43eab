"""Attack a trained model of a config, and store the adversarial images and their variables as .npz.

python launch/attack.py --config configs/digits_spa.py --workdir runs/digits_spa --attack joint --output joint.npz
"""

from pathlib import Path

import jax
from absl import flags

from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.errors import ConfigError, suggest
from spa_jax.evaluation.export import export_attack
from spa_jax.parallel import data_mesh
from spa_jax.runs import launching
from spa_jax.runs.experiment import check_config, load_data, variants
from spa_jax.runs.reporting import load_parts, load_victim

flags.adopt_module_key_flags(launching)
CONFIG = launching.define_flags()
ATTACK = flags.DEFINE_string("attack", None, "Name of an attack in config.evaluation.attacks.", required=True)
MODEL = flags.DEFINE_string("model", None, "Which of the config's models, itself or a baseline (default: itself).")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which images.")
OUTPUT = launching.define_path("output", None, "The .npz file to write.", required=True)


def main() -> None:
    """Load, attack, store."""
    config = check_config(launching.config_value(CONFIG))
    models = variants(config)
    model = MODEL.value or config["name"]
    for kind, name, valid in (("model", model, models), ("attack", ATTACK.value, config["evaluation"]["attacks"])):
        if name not in valid:
            raise ConfigError(f"--{kind}={name!r} is not in the config{suggest(name, valid)}")
    dataset, mesh, workdir = load_data(config), data_mesh(), Path(flags.FLAGS.workdir)
    victim = load_victim(models[model], workdir, dataset, mesh)
    spec = config["evaluation"]["attacks"][ATTACK.value]
    attack = attack_from_config(spec, load_parts(models[model], spec, models, workdir, mesh))
    found = export_attack(
        victim,
        getattr(dataset, SPLIT.value),
        attack,
        OUTPUT.value,
        key=jax.random.key(config["seed"]),
        batch_size=config["evaluation"]["batch_size"],
        mesh=mesh,
    )
    print(f"{OUTPUT.value}: {len(found['label'])} images, {100 * found['success'].mean():.1f} % fooled")


if __name__ == "__main__":
    launching.launch(main)
