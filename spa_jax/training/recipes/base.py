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


class Start(NamedTuple):
    """What a recipe may look at before its first step, to make what it carries.

    Attributes:
        learner: networks and optimisers.
        key: of the start.
        batch_size: of all devices together.
        image_shape: of one image.
        train: the training split.
        parts: what the networks trained before are, by name, such as a victim.
        is_resumed: whether a checkpoint will replace what is made: then only its shapes matter.
    """

    learner: Any
    key: Any
    batch_size: int
    image_shape: tuple[int, int, int]
    train: Any = None
    parts: Mapping[str, Any] = {}
    is_resumed: bool = False


def nothing_carried(start: Start, **_: Any) -> Carried:
    """The slot of a recipe that carries nothing."""
    return Carried()


def one_update(**_: Any) -> int:
    """The step is made once on each batch."""
    return 1


class Recipe(NamedTuple):
    """A way to train.

    Attributes:
        step: `(learner, **options) -> train_step(state, batch, key) -> (state, metrics)`; its arguments are the keys of
            a config's `recipe`.
        init: `(Start, **options) -> Carried`, what the recipe carries from step to step in its slot of the
            `TrainState`; sharded, checkpointed and resumed with it.
        validation: how a model that is not a classifier is judged, or None for a classifier.
        becomes: what the model is for attacks and judges.
        networks: what further networks of it are, by name.
        updates: `(**options) -> how often the step is made on each batch`; the schedule counts all of them.
        needs_attributes: whether the data must have attributes.
    """

    step: Callable[..., Any]
    init: Callable[..., Carried] = nothing_carried
    validation: Validation | None = None
    becomes: Becomes = as_classifier
    networks: Mapping[str, Becomes] = {}
    updates: Callable[..., int] = one_update
    needs_attributes: bool = False
