"""What a recipe is: one record of a step, what it carries, how it is judged, and what its networks become."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from spa_jax.training.state import Carried
from spa_jax.victims import classifier

Becomes: TypeAlias = Callable[..., Callable[[Any], Any]]
"""`(model, mean, std, **recipe options) -> (variables -> part)`: what a trained network is for an attack or a judge."""


class Validation(NamedTuple):
    """How a model that is not a classifier is judged while it is trained.

    Attributes:
        measure: `(learner, state, keys, images, labels, attribute, **recipe options) -> {name: values [b]}`.
        chosen: the name whose mean picks the best checkpoint.
        sign: 1 where more is better, -1 where less is.
    """

    measure: Callable[..., dict[str, Any]]
    chosen: str
    sign: int


def as_classifier(model: Any, mean: Any, std: Any, **options: Any) -> Callable[[Any], Any]:
    """From a classifier's variables to a victim with its normalisation."""
    return lambda variables: classifier(model, variables, mean, std)


def nothing_carried(learner: Any, key: Any, batch_size: int, image_shape: tuple[int, int, int], **_: Any) -> Carried:
    """The carried state of a recipe without one."""
    return Carried()


class Recipe(NamedTuple):
    """A way to train.

    Attributes:
        step: `(learner, **options) -> train_step(state, batch, key) -> (state, metrics)`; its arguments are the keys of
            a config's `recipe`.
        init: `(learner, key, batch_size, image_shape, **options) -> Carried`, what the recipe carries from step to step
            in its slot of the `TrainState`; sharded, checkpointed and resumed with it.
        validation: how a model that is not a classifier is judged, or None for a classifier.
        becomes: what the model is for attacks and judges.
        networks: what further networks of it are, by name.
        needs_attributes: whether the data must have attributes.
    """

    step: Callable[..., Any]
    init: Callable[..., Carried] = nothing_carried
    validation: Validation | None = None
    becomes: Becomes = as_classifier
    networks: Mapping[str, Becomes] = {}
    needs_attributes: bool = False
