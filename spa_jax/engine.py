"""What every attack shares: the checked and compiled call, the objective it maximises, and the merging of results."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.inputs import check_victim, checked_images, checked_keys, checked_labels
from spa_jax.solvers import is_stronger
from spa_jax.trees import as_pytree, select
from spa_jax.types import Evaluation, Example, Keys, Logits, Loss, Predict, Problem


@dataclasses.dataclass(frozen=True)
class PureAttack:
    """Base of all attacks: `search` is the pure function, calling the attack checks the inputs and compiles it once."""

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Any:
        """The attack on checked inputs with one key per example; for use inside a compiled program."""
        raise NotImplementedError

    def __call__(self, key: Any, predict: Any, x: Any, y: Any) -> Any:
        """Attack a batch; the whole attack is one compiled program.

        Args:
            key: one key, or one per image [b].
            predict: the victim, `(keys [b], images) -> logits [b, k]`. A plain function is compiled in with its
                weights; a pytree (`spa_jax.classifier`, `jax.tree_util.Partial`) brings its weights as arguments.
            x: images [b, h, w, c], floating, in [0, 1].
            y: labels [b], integers in [0, k - 1]; for a targeted attack the targets.

        Raises:
            ValueError: an input breaks one of these rules.
        """
        x = checked_images(x)
        y = checked_labels(y, x.shape[0])
        keys = checked_keys(key, x.shape[0])
        if not callable(predict):
            raise ValueError(f"predict={predict!r} must be a function (keys, images) -> logits")
        predict = as_pytree(predict)
        check_victim(predict, keys, x, y)
        return _run(self, keys, predict, x, y)


@jax.jit
def _run(attack: PureAttack, keys: Keys, predict: Predict, x: Any, y: Any) -> Any:
    return attack.search(keys, predict, x, y)


def judge(loss: Loss, logits: Logits, y: Any, is_targeted: bool) -> Evaluation:
    """Loss and success of logits: the prediction hits the target, or misses the label."""
    hit = jnp.argmax(logits, axis=-1) == y
    return Evaluation(loss(logits, y), hit if is_targeted else ~hit)


def make_problem(attack: Any, predict: Predict, x: Any, y: Any, keys: Keys) -> Problem:
    """The problem that an attack's solver climbs: its loss on the victim's answers to the changed images."""

    def seen_by_spaces(keys: Any, images: Any) -> Any:
        return predict(keys, images)

    # A learned generator knows how to lead away from a label, not to one. Where no space reads it, XLA drops this pass.
    labels = jnp.argmax(predict(keys, x), axis=-1) if attack.is_targeted else y
    examples = attack.space.prepare(Example(x, labels, keys, seen_by_spaces))

    def value(v: Any, keys: Keys) -> Evaluation:
        logits = predict(keys, attack.space.apply(v, examples))
        return judge(attack.loss, logits, y, attack.is_targeted)

    return Problem(attack.space, examples, value, attack.num_steps)


def merge(old: Any, new: Any) -> Any:
    """The stronger of two results, per example; a nested `edited` result is merged by its own strength."""
    merged = select(is_stronger(new, old), new, old)
    return merged._replace(edited=merge(old.edited, new.edited)) if hasattr(merged, "edited") else merged
