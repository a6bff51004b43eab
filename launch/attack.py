"""Attack a trained model of a config, and store the adversarial images and their variables as .npz.

python launch/attack.py --config configs/digits_spa.py --workdir runs/digits_spa --attack joint --output joint.npz

Of a universal attack the one perturbation is stored, with the victim's answers, and not a copy for each image.
"""

from pathlib import Path
from typing import Any

import jax
from absl import flags

from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.errors import ConfigError, suggest
from spa_jax.evaluation.export import export_attack, export_universal
from spa_jax.parallel import data_mesh
from spa_jax.runs import launching
from spa_jax.runs.experiment import check_config, evaluation_batch_size, load_data, universal_specs
from spa_jax.runs.reporting import crafting_split
from spa_jax.runs.victims import Lineup

flags.adopt_module_key_flags(launching)
CONFIG = launching.define_flags()
ATTACK = flags.DEFINE_string(
    "attack", None, "Name of an attack in config.evaluation, of `attacks` or `universal.attacks`.", required=True
)
TARGET = flags.DEFINE_integer("target", None, "The class that a universal attack is to lead to (default: none).")
MODEL = flags.DEFINE_string("model", None, "Which of the config's models or victims (default: the model itself).")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which images.")
OUTPUT = launching.define_path("output", None, "The .npz file to write.", required=True)


def main() -> None:
    """Load, attack, store."""
    config = check_config(launching.config_value(CONFIG))
    dataset, mesh = load_data(config), data_mesh()
    lineup = Lineup(config, Path(flags.FLAGS.workdir), dataset, mesh)
    model = MODEL.value or config["name"]
    attacks = {**universal_specs(config), **config["evaluation"]["attacks"]}
    for kind, name, valid in (("model", model, lineup.names), ("attack", ATTACK.value, attacks)):
        if name not in valid:
            raise ConfigError(f"--{kind}={name!r} is not in the config{suggest(name, valid)}")
    victim, key = lineup.victim(model), jax.random.key(config["seed"])
    spec = attacks[ATTACK.value]
    if ATTACK.value not in config["evaluation"]["attacks"]:
        print(_craft(config, victim, dataset, attack_from_config(spec), key, mesh))
        return
    if TARGET.value is not None:
        raise ConfigError(f"--target={TARGET.value}: only universal attacks are stored with a target")
    attack = lineup.attacks(model, {ATTACK.value: spec})[ATTACK.value]
    split = getattr(dataset, SPLIT.value)
    found = export_attack(
        victim,
        split,
        attack,
        OUTPUT.value,
        key=key,
        batch_size=evaluation_batch_size(config, split),
        mesh=mesh,
    )
    print(f"{OUTPUT.value}: {len(found['label'])} images, {100 * found['success'].mean():.1f} % fooled")


def _craft(config: Any, victim: Any, dataset: Any, attack: Any, key: Any, mesh: Any) -> str:
    """Make and store one universal perturbation; returns what to print."""
    settings = config["evaluation"]["universal"]
    found = export_universal(
        victim,
        crafting_split(config, dataset, settings["num_images"]),
        getattr(dataset, SPLIT.value),
        attack,
        OUTPUT.value,
        key=key,
        batch_size=settings["batch_size"],
        num_epochs=settings["num_epochs"],
        target=TARGET.value,
        mesh=mesh,
    )
    return f"{OUTPUT.value}: one perturbation, fools {found.fooling_ratio} of {len(found.labels)} images"


if __name__ == "__main__":
    launching.launch(main)
