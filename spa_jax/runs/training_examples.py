"""From a config to what its models' training examples mean: which attacks, as they were trained with, and the judge."""

from collections.abc import Mapping
from typing import Any

from spa_jax.attacks import PureAttack, attack_from_config
from spa_jax.attacks.catalogue import part_names
from spa_jax.data.types import Dataset
from spa_jax.evaluation.sweep import AnyAttack, evenly_spaced
from spa_jax.evaluation.training_examples import TrainingExamplesRecord, measure_training_examples
from spa_jax.runs.settings import OWN
from spa_jax.training.outer import outer_from_spec
from spa_jax.types import Victim


def judge_training_examples(
    config: Mapping[str, Any], parts: Mapping[str, Any], victim: Victim, dataset: Dataset, common: Mapping[str, Any]
) -> dict[str, TrainingExamplesRecord]:
    """What a judge makes of the examples that a model was trained on, and of others that are made against it.

    Args:
        config: of the model, complete.
        parts: those that its `evaluation.training_examples` names.
        victim: the trained model.
        dataset: its data.
        common: key, batch size and mesh of the report, see `measure_training_examples`.
    """
    settings, recipe = config["evaluation"]["training_examples"], config["recipe"]
    attacks: dict[str, AnyAttack] = {
        name: attack_from_config(spec, parts) for name, spec in settings["attacks"].items()
    }
    if recipe.get("attack") and not part_names(recipe["attack"]):
        own = attack_from_config(recipe["attack"])
        attacks |= {} if own.shared else {OWN: _as_trained(own, recipe.get("outer"))}
    images = evenly_spaced(dataset.train, settings["num_images"])
    judge = parts[settings["judge"]["part"]]
    return measure_training_examples(victim, judge, images, attacks, **common)


def _as_trained(attack: PureAttack, outer: Any) -> AnyAttack:
    """The attack with the loss that the outer objective has it maximise, such as the divergence of TRADES."""
    loss = None if outer is None else outer_from_spec(outer).attack_loss
    if loss is None:
        return attack
    diverging = attack.with_loss(loss)

    def crafted(keys: Any, victim: Victim, images: Any, labels: Any) -> Any:
        return diverging(keys, victim, images, labels, reference=victim(images))

    return crafted
