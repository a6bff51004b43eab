"""What training examples mean: whether an independent network still reads their labels, and which pixels they use."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from spa_jax.data.types import Examples
from spa_jax.evaluation.judging import described
from spa_jax.evaluation.records import ExampleFlags, Mean, Proportion
from spa_jax.evaluation.sweep import AnyAttack, DeviceBatch, Progress, example_keys, make_sweep, stream
from spa_jax.types import Key, Keys, Labels, Predict, Values, Victim

CLEAN = "clean"
"""The name of the images as they are."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingExamplesRecord:
    """Images that an attack has made from a split, as its victim and an independent judge see them.

    Attributes:
        judged: [n], whether the judge answers the label.
        entropy: [n], of the judge's probabilities, in nats: 0 where it is certain, log k where it knows nothing.
        correct: [n], whether the victim answers the label.
        shared: [n], `sharedness` of the victim on the pixels that were moved, in [0, 1].
        shared_everywhere: [n], the same on all pixels, which does not depend on the attack.
        parameters: what the attack is made of, as plain data.
    """

    judged: ExampleFlags
    entropy: Float[np.ndarray, " n"]
    correct: ExampleFlags
    shared: Float[np.ndarray, " n"]
    shared_everywhere: Float[np.ndarray, " n"]
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def judge_accuracy(self) -> Proportion:
        """Share of images whose label the judge answers."""
        return Proportion.of(self.judged)

    @property
    def accuracy(self) -> Proportion:
        """Share of images whose label the victim answers."""
        return Proportion.of(self.correct)

    @property
    def means(self) -> dict[str, Mean]:
        """The means of the numbers, by name."""
        return {name: Mean.of(getattr(self, name)) for name in ("entropy", "shared", "shared_everywhere")}


def measure_training_examples(
    victim: Victim,
    judge: Victim,
    split: Examples,
    attacks: Mapping[str, AnyAttack],
    *,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> dict[str, TrainingExamplesRecord]:
    """Craft training examples against a network and show them to another one that is robust by itself.

    An image that the judge no longer reads as its label may have lost its meaning: that is the ambiguity which
    semantics-preserving adversarial training is to avoid. The measure is a proxy, and as good as the judge: it must be
    another network than the victim, trained against noise of the same kind, since a standard one errs on any noise.

    Args:
        victim: that the examples are made against.
        judge: the independent network.
        split: images that were trained on.
        attacks: with which was trained, by name; any function `(keys [b], victim, images, labels) -> Result`.
        key: of the whole measurement.
        batch_size: examples at once over all devices.
        mesh: the devices. Default: all of them.
        on_batch: called with the attack's name, examples done and examples in all.

    Returns:
        A record for each attack, before them one of the images as they are, "clean". Its `shared` is 0, since nothing
        was moved.

    Raises:
        ValueError: an empty split, a broken rule of the attacks, or one of them is called "clean".
    """
    if CLEAN in attacks:
        raise ValueError(f"attacks hold the name {CLEAN!r}, which stands for the images as they are")
    sweep = make_sweep(split, batch_size, mesh, on_batch)
    victim, judge = sweep.place(victim, attacks.values()), sweep.place(judge)
    predict, judging = sweep.predict(victim), sweep.predict(judge)

    def measured(name: str, attack: AnyAttack | None) -> TrainingExamplesRecord:
        attack_key, judge_key = stream(key, "attack", name), stream(key, "judge", name)

        def measure(batch: DeviceBatch) -> Any:
            made = batch.images
            if attack is not None:
                made = attack(example_keys(attack_key, batch.index), victim, batch.images, batch.labels).x
            return _measure(predict, judging, example_keys(judge_key, batch.index), batch.images, made, batch.labels)

        found = sweep.run(name, measure, np.arange(len(split)))
        return TrainingExamplesRecord(**found, parameters={} if attack is None else described(attack))

    return {name: measured(name, attack) for name, attack in {CLEAN: None, **attacks}.items()}


@jax.jit
def _measure(predict: Predict, judge: Predict, keys: Keys, clean: Any, made: Any, labels: Labels) -> dict[str, Any]:
    log_p = jax.nn.log_softmax(judge(keys, made))
    gradients = class_gradients(predict, keys, clean)
    return {
        "judged": jnp.argmax(log_p, axis=-1) == labels,
        "entropy": -jnp.sum(jnp.exp(log_p) * log_p, axis=-1),
        "correct": jnp.argmax(predict(keys, made), axis=-1) == labels,
        "shared": sharedness(gradients, jnp.abs(made - clean)),
        "shared_everywhere": sharedness(gradients, jnp.ones_like(clean)),
    }


def class_gradients(predict: Predict, keys: Keys, images: Any) -> Float[Array, "k b h w c"]:
    """|d log p_k / dx| of every class k, one class after the other.

    Args:
        predict: `(keys [b], images) -> logits [b, k]`, which treats images independently.
        keys: of a randomised victim.
        images: [b, h, w, c].
    """

    def of_class(k: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(jnp.take(jax.nn.log_softmax(predict(keys, x)), k, axis=-1)))(images)

    classes = jax.eval_shape(predict, keys, images).shape[-1]
    return jnp.abs(jax.lax.map(of_class, jnp.arange(classes)))


def sharedness(gradients: Float[Array, "k b h w c"], weight: Float[Array, "b h w c"]) -> Values:
    """How far all classes use the same pixels: the mean pairwise cosine of their gradient magnitudes, [b] in [0, 1].

    1 where the magnitudes of all classes are proportional to each other, 0 where no two share a pixel. Classes without
    a gradient are left out; of fewer than two classes the score is 0. That pixels count by how far they were moved, and
    gradients are those of log p_k, is our choice.

    Args:
        gradients: magnitudes, of `class_gradients`.
        weight: of each pixel, 0 or larger: |x' - x| for the pixels that an attack has moved.
    """
    weighted = jnp.moveaxis(gradients, 0, 1) * weight[:, None]
    flat = weighted.reshape(*weighted.shape[:2], -1)
    largest = jnp.max(flat, axis=-1, keepdims=True)
    scaled = flat / jnp.where(largest > 0, largest, 1)
    norms = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    units = scaled / jnp.where(norms > 0, norms, 1)
    classes = jnp.sum(norms[..., 0] > 0, axis=-1)
    pairs = jnp.sum(jnp.sum(units, axis=1) ** 2, axis=-1) - classes.astype(units.dtype)
    count = (classes * (classes - 1)).astype(units.dtype)
    return jnp.where(count > 0, pairs / jnp.where(count > 0, count, 1), 0)
