"""Accuracy against the radius of an attack, and against the value of an image edit."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from spa_jax.attacks import PureAttack
from spa_jax.data.types import Examples
from spa_jax.edits import Edit, get_edit
from spa_jax.errors import shown
from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.judging import nearest_in
from spa_jax.evaluation.records import Curve, Nearest
from spa_jax.evaluation.sweep import AnyAttack, DeviceBatch, Progress, Sweep, example_keys, make_sweep, stream
from spa_jax.goals import is_answer
from spa_jax.trees import as_pytree, jit_by_kinds
from spa_jax.types import Flags, Images, Key, Labels, Predict, Scalar, Victim
from spa_jax.validation import require_number

_GRID_POINTS = 21


def accuracy_by_radius(
    victim: Victim,
    split: Examples,
    attack_at: Callable[[float], AnyAttack],
    radii: Sequence[Scalar],
    *,
    name: str,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> Curve:
    """Worst-case accuracy against the radius of an attack: what is fooled within one is fooled within a larger one.

    So each radius is tried on the examples that the smaller ones did not fool: the curve falls, and work is saved.
    Where the radius is a leaf, as in every attack of this library, one compiled program serves the whole curve.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        attack_at: builds the attack of a radius; its images must be allowed at every larger radius.
        radii: 0 or larger. At 0 the attack has no noise: it leaves the image alone, or moves its attributes only.
        name: of the attack, for the curve's label.
        key, batch_size, mesh, on_batch: as for `evaluate`.

    Raises:
        ValueError: no radius, or a negative one; else as `evaluate`.
    """
    if not len(radii):
        raise ValueError("radii must not be empty")
    ascending = sorted({require_number("radius", float(r), "0 or larger", lambda r: r >= 0) for r in radii})
    attacks = {f"{name} at {radius:g}": attack_at(radius) for radius in ascending}
    options: dict[str, Any] = {"key": key, "batch_size": batch_size, "mesh": mesh, "on_batch": on_batch}
    report = evaluate(victim, split, attacks, sanity=False, **options)
    correct = tuple(int(record.correct.sum()) for record in report.attacks.values())
    return Curve("radius", name, tuple(ascending), correct, len(split))


def robustness_curve(
    victim: Victim,
    split: Examples,
    attack: PureAttack,
    *,
    name: str = "nearest",
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> Nearest:
    """The whole curve of accuracy against the radius, from one run of an attack that looks for the nearest image.

    Each image that it finds is judged anew. An image that is misclassified as it is has the distance 0, one that the
    attack cannot fool an infinite one; so the median says how far the attack must go to fool half of the examples.
    `accuracy(radius)` of what is returned is the accuracy at any radius.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        attack: `fmn()`, `fab()` or another minimal-norm attack, without a radius.
        name: of the attack, of which its keys are made.
        key, batch_size, mesh, on_batch: as for `evaluate`.

    Raises:
        ValueError: an attack that does not look for the nearest image, or has a radius; else as `evaluate`.
    """
    if nearest_in(attack) is None:
        raise ValueError(f"attack={shown(attack)} must look for the nearest image at any distance, as fmn() does")
    options: dict[str, Any] = {"key": key, "batch_size": batch_size, "mesh": mesh, "on_batch": on_batch}
    found = evaluate(victim, split, {name: attack}, sanity=False, **options).attacks[name].nearest
    assert found is not None
    return found


def accuracy_by_attribute(
    victim: Victim,
    split: Examples,
    edit: str | Edit,
    values: Sequence[Scalar] | Float[np.ndarray, " m"] | None = None,
    *,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> Curve:
    """Accuracy when every image is edited by the same value, with no attack.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        edit: a name of `spa_jax.EDITS`, or an `Edit`.
        values: of the edit, in its unit. Default: 21 evenly spaced ones over the edit's range, and its identity.
        key, batch_size, mesh, on_batch: as for `evaluate`.

    Raises:
        ValueError: unknown edit, a colour edit on grey images, no values or one that is not finite, an empty split.
    """
    edit = get_edit(edit) if isinstance(edit, str) else edit
    grid = _grid(edit) if values is None else np.unique(np.asarray(values, np.float64))
    if not grid.size or not np.isfinite(grid).all():
        raise ValueError(f"values={values!r} must be finite numbers, at least one")
    correct = correct_by_attribute(victim, make_sweep(split, batch_size, mesh, on_batch), edit, grid, key)
    return Curve("attribute", edit.name, tuple(grid.tolist()), tuple(correct.sum(axis=0).tolist()), len(split))


def correct_by_attribute(
    victim: Victim, sweep: Sweep, edit: Edit, values: Float[np.ndarray, " m"], key: Key
) -> Bool[np.ndarray, "n m"]:
    """Whether each example is classified correctly when edited by each value, see `accuracy_by_attribute`."""
    predict, levels = sweep.predict(sweep.place(victim)), values.astype(np.float32)
    function, judge_key = as_pytree(edit.function), stream(key, "attribute", edit.name)

    def classify(batch: DeviceBatch) -> Any:
        seen = batch.index, batch.images, batch.labels
        return jnp.stack([_correct_at(function, predict, judge_key, level, *seen) for level in levels], axis=1)

    return sweep.run(edit.name, classify, np.arange(len(sweep.split)))


def _grid(edit: Edit) -> Float[np.ndarray, " m"]:
    return np.unique(np.append(np.linspace(edit.low, edit.high, _GRID_POINTS), edit.identity))


@jit_by_kinds
def _correct_at(
    function: Any, predict: Predict, key: Key, value: Any, index: Any, images: Images, labels: Labels
) -> Flags:
    edited = jax.vmap(function, in_axes=(0, None))(images, value)
    logits = predict(example_keys(key, index), edited)
    return (jnp.argmax(logits, axis=-1) == labels) & is_answer(logits)
