"""What the measurements of `spa_jax.evaluation.sanity` mean: each becomes a check that passed, or names its cause."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from spa_jax.evaluation.records import Check, ExampleFlags, ExampleLabels
from spa_jax.validation import check_logits

_TOLERATED = 0.05
_MOST = 0.5
_SMALL_GAP = 0.05
_ROUNDING_ERRORS = 4
_SAME_LOGITS = 1e-3
_LEAST_REACH = 1e-3
_LARGEST_FACTOR = 10

_Logits = Float[np.ndarray, "n k"]


def _check(name: str, passed: Any, cause: str, message: str, advice: str, **numbers: Any) -> Check:
    known = {name: float(number) for name, number in numbers.items() if np.isfinite(number)}
    return Check(name, bool(passed), message, advice, known, "" if passed else cause)


def finite(seen: Any) -> Check:
    """Logits and gradients are finite at the images, and logits a step away from them."""
    answers = np.all([~np.isnan(seen["logits"]).any(axis=-1), *(step.finite for step in seen["steps"])], axis=0)
    answers &= np.isfinite(seen["logits"].max(axis=-1))
    passing = seen["cross_entropy"].finite & seen["margin"].finite
    no_answer, no_gradient = np.mean(~answers), np.mean(~passing)
    return _check(
        "finite",
        no_answer == no_gradient == 0,
        "the victim makes NaN or infinity" + ("" if no_answer else " in its gradient"),
        f"logits are not finite at or near {_percent(no_answer)} of the images, gradients are not at "
        f"{_percent(no_gradient)}",
        "find the operation, often a division by zero, the root or norm of zeros, or the logarithm of a probability; "
        "a `where` needs both of its branches finite. Attacks take such an entry of a gradient as 0 and do not see "
        "what it hides",
        non_finite_logits=no_answer,
        non_finite_gradients=no_gradient,
    )


def usable_logits(logits: _Logits) -> Check:
    """Raw scores, neither probabilities nor saturated."""
    complaint = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_logits(lambda images: logits, jnp.zeros((len(logits), 1, 1, 1)))
        except ValueError as error:
            complaint = str(error)
    complaint = complaint or "; ".join(str(warning.message) for warning in caught)
    gap = np.median(_gaps(logits))
    return _check(
        "usable_logits",
        not complaint,
        "the logits are not raw scores that cross entropy can use",
        complaint or f"finite raw scores, the median gap between the two largest is {gap:.3g}",
        "give the attack raw scores, and add attacks on the margin or DLR loss, which do not saturate",
        median_gap=gap,
    )


def flat_logits(logits: _Logits) -> Check:
    """The two largest logits lie apart."""
    resolution = float(jnp.finfo(logits.dtype).eps) * np.abs(logits.astype(np.float32)).max(axis=-1)
    gaps = _gaps(logits)
    share = np.mean(gaps < np.maximum(_SMALL_GAP, _ROUNDING_ERRORS * resolution))
    return _check(
        "flat_logits",
        share <= _MOST,
        "flat logits: the softmax is almost uniform, and rounding decides what an attack sees",
        f"the two largest logits lie less than {_SMALL_GAP:g}, or {_ROUNDING_ERRORS} rounding errors of "
        f"{logits.dtype}, apart on {_percent(share)} of the images; the median gap is {np.median(gaps):.3g}",
        "remove a temperature or a cast to half precision, multiply the logits by a number, or attack the DLR loss in "
        "float32",
        flat=share,
    )


def _gaps(logits: _Logits) -> Float[np.ndarray, " n"]:
    """How far the two largest logits lie apart; 0 where there is no answer."""
    top = np.sort(logits.astype(np.float32), axis=-1)[:, -2:]
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(top[:, -1] - top[:, 0])


def deterministic(logits: _Logits, others: _Logits) -> Check:
    """Another key changes nothing."""
    differ, flip = np.mean(_differ(logits, others, 0.0)), np.mean(logits.argmax(axis=-1) != others.argmax(axis=-1))
    return _check(
        "deterministic",
        differ == 0,
        "the victim draws at random",
        f"another key changes the logits of {_percent(differ)} and the predictions of {_percent(flip)} of the images",
        "believe the attacks on the expectation, attack.averaged(n) or spa_jax.crafted_on(attack, spa_jax.eot(victim, "
        "n)), with more draws until accuracy stops falling, and report several keys; any other attack follows one draw",
        logits_differ=differ,
        predictions_differ=flip,
    )


def independent(logits: _Logits, others: _Logits) -> Check:
    """Other images in the batch change nothing."""
    differ = np.mean(_differ(logits, others, _SAME_LOGITS))
    flip = np.mean(logits.argmax(axis=-1) != others.argmax(axis=-1))
    return _check(
        "independent",
        differ == 0,
        "images are not judged independently of their batch, as by BatchNorm in training mode",
        f"black images in the place of others in the batch change the logits of {_percent(differ)} and the predictions "
        f"of {_percent(flip)} of the images",
        "judge in inference mode (`train=False`, running statistics): else the accuracy depends on the batch, and an "
        "attack moves the statistics",
        logits_differ=differ,
        predictions_differ=flip,
    )


def _differ(logits: _Logits, others: _Logits, share: float) -> ExampleFlags:
    """Whether some logit changed by more than a share of what lies between an image's largest and smallest."""
    logits, others = np.nan_to_num(logits.astype(np.float32)), np.nan_to_num(others.astype(np.float32))
    return np.any(np.abs(logits - others) > share * np.ptp(logits, axis=-1)[:, None], axis=-1)


def gradients(of_cross_entropy: Any, of_margin: Any) -> Check:
    """Cross entropy has a gradient."""
    share, share_of_margin = np.mean(of_cross_entropy.zero), np.mean(of_margin.zero)
    cause, advice = _NO_GRADIENT
    if share_of_margin <= _TOLERATED:
        cause = "cross entropy saturates: its gradient rounds to 0 in very confident answers"
        advice = "the network itself has a gradient: attack the margin or DLR loss"
    elif _passes(of_cross_entropy, of_margin):
        cause, advice = _SQUASHED
    return _check(
        "gradients",
        share <= _TOLERATED,
        cause,
        f"the gradient of the cross entropy is exactly zero on {_percent(share)} of the images, that of the margin on "
        f"{_percent(share_of_margin)}",
        advice,
        zero_cross_entropy_gradients=share,
        zero_margin_gradients=share_of_margin,
    )


def margin_gradients(of_cross_entropy: Any, of_margin: Any) -> Check:
    """The margin has a gradient that matters."""
    share, zero = np.mean(_is_tiny(of_margin)), np.mean(of_margin.zero)
    cause, advice = _SQUASHED if _passes(of_cross_entropy, of_margin) else _NO_GRADIENT
    return _check(
        "margin_gradients",
        share <= _MOST,
        cause,
        f"the gradient of the margin is zero or negligible on {_percent(share)} of the images, exactly zero on "
        f"{_percent(zero)}",
        advice,
        negligible_margin_gradients=share,
        zero_margin_gradients=zero,
    )


_NO_GRADIENT = (
    "the victim passes no gradient",
    "replace what is not differentiable by spa_jax.straight_through, and add attacks without gradients (random or grid "
    "search, transfer from another model)",
)
_SQUASHED = (
    "the victim squashes its scores, as by a softmax or tanh before the logits, and the margin saturates",
    "attack the scores before they are squashed: attacks on the margin or DLR loss are blind here, and those on cross "
    "entropy nearly so",
)


def _passes(of_cross_entropy: Any, of_margin: Any) -> bool:
    """Whether some gradient comes through on more than a few of the images."""
    return bool(np.mean(of_cross_entropy.zero & of_margin.zero) < 1 - _TOLERATED)


def _is_tiny(gradient: Any) -> ExampleFlags:
    return gradient.zero | (gradient.reach < _LEAST_REACH * np.abs(gradient.value))


def gradient_size(ball: Any, step: Any) -> Check:
    """The margin changes by about what its gradient promises."""
    known = np.isfinite(step.change) & np.isfinite(step.promised)
    promised, change = (float(np.sum(values[known], dtype=np.float64)) for values in (step.promised, step.change))
    is_small = promised <= 0 or change > _LARGEST_FACTOR * promised
    is_large = not is_small and change < promised / _LARGEST_FACTOR
    return _check(
        f"gradient_size[{ball}]",
        promised <= 0 or not (is_small or is_large),
        "the gradient is hidden: it is much smaller than what the victim does"
        if is_small
        else "the gradient is shattered: it promises much more than the victim does",
        f"a quarter of the radius of {ball} along the gradient changes the margin by {change / max(len(known), 1):.3g} "
        f"in the mean, where the gradient promises {promised / max(len(known), 1):.3g}",
        "replace what hides or shatters the gradient by spa_jax.straight_through, and add attacks without gradients",
        change=change,
        promised=promised,
    )


def _compared(suspect: ExampleFlags, reference: ExampleFlags) -> tuple[int, int, bool]:
    """How many images only the suspect fools, only the reference, and whether the first is not clearly more.

    Of images that one of two equally strong attacks fools alone, the difference has a deviation of the root of their
    number (McNemar's test); more than two of them are clear.
    """
    only_suspect, only_reference = int(np.sum(reference & ~suspect)), int(np.sum(suspect & ~reference))
    spread = np.sqrt(only_suspect + only_reference)
    return only_suspect, only_reference, bool(only_suspect - only_reference <= 2 * spread)


def many_steps(ball: Any, one: ExampleFlags, many: ExampleFlags) -> Check:
    """One step does not fool more than many."""
    only_one, only_many, passed = _compared(one, many)
    return _check(
        f"many_steps[{ball}]",
        passed,
        "the loss surface misleads the gradient",
        f"within {ball}, {_percent(np.mean(one))} are right after one step (FGSM), {_percent(np.mean(many))} after "
        f"many (PGD); {only_one} images are fooled by the one step alone, {only_many} by the many alone",
        "try restarts, smaller steps, APGD, other losses, and transfer from another model",
        one_step=np.mean(one),
        many_steps=np.mean(many),
    )


def more_steps(ball: Any, many: ExampleFlags, more: ExampleFlags) -> Check:
    """More steps do not fool less."""
    only_many, only_more, passed = _compared(many, more)
    return _check(
        f"more_steps[{ball}]",
        passed,
        "the attack follows the noise of the draws: robust accuracy grows with its steps",
        f"within {ball}, {_percent(np.mean(many))} are right after PGD, {_percent(np.mean(more))} after three times as "
        f"many steps; {only_many} images are fooled by the fewer steps alone, {only_more} by the more alone",
        "attack the expectation, spa_jax.crafted_on(attack, spa_jax.eot(victim, n)), with more draws until accuracy "
        "stops falling",
        many_steps=np.mean(many),
        more_steps=np.mean(more),
    )


def black_box(ball: Any, by_gradient: ExampleFlags, by_queries: ExampleFlags) -> Check:
    """A search that takes no gradient does not fool more than one that does."""
    cause = "the gradient misleads: random noise fools more than PGD"
    return _without_gradient(f"black_box[{ball}]", cause, "a random search without gradients", by_gradient, by_queries)


def label_only(ball: Any, by_gradient: ExampleFlags, by_labels: ExampleFlags) -> Check:
    """A search that reads the decision alone does not fool more than one that takes gradients."""
    cause = "the gradient or the scores mislead: a search by labels alone fools more than PGD"
    return _without_gradient(f"label_only[{ball}]", cause, "RayS, which reads labels alone", by_gradient, by_labels)


def _without_gradient(name: str, cause: str, search: str, by_gradient: ExampleFlags, by_queries: ExampleFlags) -> Check:
    only_queries, only_gradient, passed = _compared(by_queries, by_gradient)
    ball = name.partition("[")[2].rstrip("]")
    return _check(
        name,
        passed,
        cause,
        f"within {ball}, {_percent(np.mean(by_gradient))} are right after PGD, {_percent(np.mean(by_queries))} after "
        f"{search}; {only_queries} images are fooled by the search alone, {only_gradient} by the gradient alone",
        "replace what stops the gradient by spa_jax.straight_through or attack spa_jax.victims.bypassed(victim), and "
        "add transfer from another model",
        by_gradient=np.mean(by_gradient),
        by_queries=np.mean(by_queries),
    )


def above_clean(attack: str, clean: Any, attacked: Any) -> Check:
    """Attacked images are not classified correctly more often than the same images as they are.

    Both are shares [n] of fresh draws in which an image is misclassified, of those images that the attack ran on.
    """
    gain = clean - attacked
    spread = np.std(gain) / np.sqrt(max(len(gain), 1))
    return _check(
        f"above_clean[{attack}]",
        np.mean(gain) <= 2 * spread if len(gain) else True,
        "the attack helps the victim: robust accuracy exceeds clean accuracy",
        f"over fresh draws, the images are right in {_percent(1 - np.mean(clean))} of the draws as they are and in "
        f"{_percent(1 - np.mean(attacked))} when attacked"
        if len(gain)
        else "the attack ran on no image",
        "craft on the whole victim, its purifier and randomness included: spa_jax.crafted_on(attack, "
        "spa_jax.eot(victim, n))",
        **({"clean": 1 - np.mean(clean), "attacked": 1 - np.mean(attacked)} if len(gain) else {}),
    )


def large_radius(correct: ExampleFlags, labels: ExampleLabels) -> Check:
    """At a radius at which all images can be made equal, an attack succeeds."""
    kept, possible = np.mean(correct), np.max(np.bincount(labels)) / len(labels)
    return _check(
        "large_radius",
        kept <= possible,
        "the attack fails where it cannot but succeed: something hides the gradient from it",
        f"at an l-infinity radius of 0.5, {_percent(kept)} are right after PGD; there any image can be turned into the "
        f"same grey, so at most {_percent(possible)} can be",
        "do not believe accuracies at smaller radii either; look for what stops the gradient",
        accuracy=kept,
        possible=possible,
    )


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f} %"
