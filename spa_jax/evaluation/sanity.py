"""Signs that an accuracy under attack is too good to be true: gradient masking, and victims that only mislead attacks.

The signs are those of Athalye, Carlini & Wagner (2018), section 3.1, and Carlini et al. (2019), section 5; the
thresholds are our choice. Passing all checks proves nothing, failing one is a reason not to believe the number.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from spa_jax.attacks import fgsm, pgd
from spa_jax.data.types import Examples
from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.records import Check, ExampleFlags, ModelReport
from spa_jax.evaluation.sweep import DeviceBatch, Sweep, evenly_spaced, example_keys, make_sweep, stream
from spa_jax.losses import cross_entropy, margin
from spa_jax.types import Example, Flags, Images, Key, Labels, Logits, Predict, Scalar, Victim
from spa_jax.validation import check_logits, require_number

_TOLERATED_ZERO_GRADIENTS = 0.05
_LARGE_RADIUS = 0.5


def sanity_checks(
    victim: Victim,
    split: Examples,
    *,
    radius: Scalar,
    key: Key,
    batch_size: int = 128,
    num_examples: int = 128,
    num_steps: int = 20,
    mesh: Mesh | None = None,
) -> list[Check]:
    """Run five checks on a part of a split; one that does not pass is a warning.

    - `usable_logits`: raw scores, finite, not saturated (`spa_jax.check_logits`).
    - `deterministic`: two calls with different keys give the same logits.
    - `gradients`: at most 5 % of the images have a cross-entropy gradient of exactly zero.
    - `many_steps`: one step (FGSM) does not fool more images than many (PGD): the difference lies within two standard
      errors, as in McNemar's test.
    - `large_radius`: at an l-infinity radius of 0.5 every image can be turned into the same grey, so no classifier
      can keep more than the share of the most frequent class; what it keeps beyond is the attack's failure.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        radius: l-infinity radius of the accuracy in question.
        key: of all draws.
        batch_size: as for `evaluate`.
        num_examples: how many, evenly spaced over the split.
        num_steps: of PGD.
        mesh: as for `evaluate`.

    Raises:
        ValueError: a radius that is not positive, `num_examples` below 1; else as `evaluate`.
    """
    require_number("radius", radius, "larger than 0", lambda r: r > 0)
    part = evenly_spaced(split, num_examples)
    sweep = make_sweep(part, batch_size, mesh)
    attacks = {
        "one_step": fgsm(radius),
        "many_steps": pgd(radius, num_steps),
        "large_radius": pgd(_LARGE_RADIUS, num_steps),
    }
    options: dict[str, Any] = {"key": stream(key, "sanity"), "batch_size": batch_size, "mesh": sweep.mesh}
    victim = sweep.place(victim)
    report = evaluate(victim, part, attacks, survivors_only=False, **options)
    logits, others, zero_gradients, zero_margins = _probe(sweep.predict(victim), sweep, stream(key, "probe"))
    return [
        _check_usable_logits(logits),
        _check_deterministic(logits, others),
        _check_gradients(zero_gradients, zero_margins),
        _check_many_steps(report, radius, num_steps),
        _check_large_radius(report),
    ]


def _probe(predict: Predict, sweep: Sweep, key: Key) -> Any:
    """Logits of two calls, and whether the gradients of cross entropy and margin are exactly zero."""
    first, second = stream(key, "first"), stream(key, "second")

    def look(batch: DeviceBatch) -> Any:
        zeros = _zero_gradients(predict, first, batch.index, batch.images, batch.labels)
        return *(_logits(predict, k, batch.index, batch.images) for k in (first, second)), *zeros

    return sweep.run("sanity", look, np.arange(len(sweep.split)))


@jax.jit
def _logits(predict: Predict, key: Key, index: Any, images: Images) -> Logits:
    return predict(example_keys(key, index), images)


@jax.jit
def _zero_gradients(predict: Predict, key: Key, index: Any, images: Images, labels: Labels) -> tuple[Flags, Flags]:
    logits, pull_back = jax.vjp(lambda images: predict(example_keys(key, index), images), images)

    def is_zero(loss: Any) -> Flags:
        slope = jax.grad(lambda logits: jnp.sum(loss(logits, Example(images, labels))))(logits)
        return jnp.all(pull_back(slope)[0] == 0, axis=(1, 2, 3))

    return is_zero(cross_entropy), is_zero(margin)


def _check_usable_logits(logits: Float[np.ndarray, "n k"]) -> Check:
    complaint = ""
    placeholder = jnp.zeros((len(logits), 1, 1, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_logits(lambda images: logits, placeholder)
        except ValueError as error:
            complaint = str(error)
    complaint = complaint or "; ".join(str(warning.message) for warning in caught)
    top = np.sort(logits, axis=-1)[:, -2:]
    gap = float(np.median(top[:, -1] - top[:, 0]))
    return Check(
        "usable_logits",
        not complaint,
        complaint or f"finite raw scores, the median gap between the two largest is {gap:.3g}",
        "give the attack raw scores, and add attacks on the margin or DLR loss, which do not saturate",
        {"median_gap": gap} if np.isfinite(gap) else {},
    )


def _check_deterministic(logits: Float[np.ndarray, "n k"], others: Float[np.ndarray, "n k"]) -> Check:
    differ = float(np.mean(np.any(logits != others, axis=-1)))
    flip = float(np.mean(logits.argmax(axis=-1) != others.argmax(axis=-1)))
    return Check(
        "deterministic",
        differ == 0,
        f"another key changes the logits of {_percent(differ)} and the predictions of {_percent(flip)} of the images",
        "attack the expectation: wrap the victim in spa_jax.eot, raise its draws until accuracy stops falling, and "
        "report several keys",
        {"logits_differ": differ, "predictions_differ": flip},
    )


def _check_gradients(zero: ExampleFlags, zero_margin: ExampleFlags) -> Check:
    share, share_of_margin = float(np.mean(zero)), float(np.mean(zero_margin))
    saturated = share_of_margin <= _TOLERATED_ZERO_GRADIENTS
    return Check(
        "gradients",
        share <= _TOLERATED_ZERO_GRADIENTS,
        f"the gradient of the cross entropy is exactly zero on {_percent(share)} of the images, that of the margin on "
        f"{_percent(share_of_margin)}",
        "the loss saturates, the network does not: attack the margin or DLR loss"
        if saturated
        else "the victim passes no gradient: replace what is not differentiable by spa_jax.straight_through, and add "
        "attacks without gradients (random or grid search, transfer from another model)",
        {"zero_cross_entropy_gradients": share, "zero_margin_gradients": share_of_margin},
    )


def _check_many_steps(report: ModelReport, radius: Scalar, num_steps: int) -> Check:
    one, many = report.attacks["one_step"].correct, report.attacks["many_steps"].correct
    only_one, only_many = int(np.sum(many & ~one)), int(np.sum(one & ~many))
    return Check(
        "many_steps",
        bool(only_one - only_many <= 2 * np.sqrt(only_one + only_many)),
        f"at radius {radius:g}, {_percent(np.mean(one))} are right after one step (FGSM), {_percent(np.mean(many))} "
        f"after {num_steps} (PGD); {only_one} images are fooled by the one step alone, {only_many} by the many alone",
        "the loss surface misleads the gradient: try restarts, smaller steps, APGD, other losses, and transfer from "
        "another model",
        {"one_step": float(np.mean(one)), "many_steps": float(np.mean(many))},
    )


def _check_large_radius(report: ModelReport) -> Check:
    kept = float(np.mean(report.attacks["large_radius"].correct))
    possible = float(np.max(np.bincount(report.labels)) / len(report.labels))
    return Check(
        "large_radius",
        kept <= possible,
        f"at radius {_LARGE_RADIUS}, {_percent(kept)} are right after PGD; there any image can be turned into the same "
        f"grey, so at most {_percent(possible)} can be",
        "the attack fails where it cannot but succeed: do not believe accuracies at smaller radii either; look for "
        "what stops the gradient",
        {"accuracy": kept, "possible": possible},
    )


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f} %"
