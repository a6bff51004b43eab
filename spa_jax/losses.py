"""Objectives `(logits [b, k], labels [b]) -> values [b]` that an attacker maximises; training losses are their means.

A loss is a function or a pytree dataclass whose numbers are leaves. `targeted_form` gives the version that is maximised
when the victim answers a chosen target.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from spa_jax.inputs import require_number
from spa_jax.trees import pytree, static
from spa_jax.types import Labels, Logits, Loss, Scalar, Values

_TINY = 1e-12


def cross_entropy(logits: Logits, labels: Labels) -> Values:
    """-log p_y. Vanishes in float32 for very confident victims; `margin` and `dlr` do not."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def margin(logits: Logits, labels: Labels) -> Values:
    """The largest wrong logit minus the true one; positive where the victim errs (Carlini & Wagner 2017, f6)."""
    return _best_other(logits, labels) - _own(logits, labels)


def dlr(logits: Logits, labels: Labels) -> Values:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_1st - z_3rd) (Croce & Hein 2020, eq. 6).

    Invariant to shifts and positive scalings of the logits.

    Raises:
        ValueError: fewer than 3 classes.
    """
    _require_classes(logits, 3, "dlr")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_cross_entropy(logits: Logits, targets: Labels) -> Values:
    """log p_t: largest where the victim is sure of the target."""
    return -cross_entropy(logits, targets)


def targeted_margin(logits: Logits, targets: Labels) -> Values:
    """The target's logit minus the largest other one; positive exactly where the victim answers the target."""
    return -margin(logits, targets)


def targeted_dlr(logits: Logits, targets: Labels, labels: Labels | None = None) -> Values:
    """-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) (Croce & Hein 2020, eq. 7).

    Args:
        logits: [b, k], k >= 4.
        targets: the classes t to reach.
        labels: the true classes y. Default: the best class that is not the target, the one to beat.

    Raises:
        ValueError: fewer than 4 classes.
    """
    _require_classes(logits, 4, "targeted_dlr")
    top = jax.lax.top_k(logits, 4)[0]
    rival = _best_other(logits, targets) if labels is None else _own(logits, labels)
    return (_own(logits, targets) - rival) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


@pytree
class CappedCrossEntropy:
    """Cross entropy cut off at a cap; see `capped_cross_entropy`."""

    cap: Any
    is_targeted: bool = static(default=False)

    def __call__(self, logits: Logits, labels: Labels) -> Values:
        value = targeted_cross_entropy(logits, labels) if self.is_targeted else cross_entropy(logits, labels)
        return jnp.minimum(value, -self.cap if self.is_targeted else self.cap)

    def targeted(self) -> "CappedCrossEntropy":
        return CappedCrossEntropy(self.cap, is_targeted=True)


def capped_cross_entropy(cap: Scalar = 9.0) -> CappedCrossEntropy:
    """min(-log p_y, cap): images that are already lost stop pulling at a universal perturbation (Shafahi et al. 2020).

    Args:
        cap: in nats; public code uses 9 to 12, the default is our choice. The targeted form is min(log p_t, -cap) for
            a small cap: it rests once p_t reaches exp(-cap).

    Raises:
        ValueError: `cap` is negative.
    """
    return CappedCrossEntropy(require_number("cap", cap, "0 or larger", lambda c: c >= 0))


@pytree
class SmoothedCrossEntropy:
    """Cross entropy against smoothed labels; see `smoothed_cross_entropy`."""

    smoothing: Any
    is_targeted: bool = static(default=False)

    def __call__(self, logits: Logits, labels: Labels) -> Values:
        log_p = jax.nn.log_softmax(logits)
        value = -(1 - self.smoothing) * _own(log_p, labels) - self.smoothing * jnp.mean(log_p, axis=-1)
        return -value if self.is_targeted else value

    def targeted(self) -> "SmoothedCrossEntropy":
        return SmoothedCrossEntropy(self.smoothing, is_targeted=True)


def smoothed_cross_entropy(smoothing: Scalar = 0.1) -> SmoothedCrossEntropy:
    """Cross entropy with the label (1 - s) onehot(y) + s / k; s = 0.1 after Szegedy et al. 2016, section 7.

    Raises:
        ValueError: `smoothing` outside [0, 1].
    """
    return SmoothedCrossEntropy(require_number("smoothing", smoothing, "in [0, 1]", lambda s: 0 <= s <= 1))


@pytree
class KLDivergence:
    """Divergence from reference predictions; see `kl_divergence`."""

    reference: Any

    def __call__(self, logits: Logits, labels: Labels) -> Values:
        log_p = jax.nn.log_softmax(self.reference)
        return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits)), axis=-1)


def kl_divergence(reference: Logits) -> KLDivergence:
    """KL(p_reference || p): how far the victim's answer moves from its answer on the clean image (TRADES).

    The labels are not read. It has no targeted form.

    Args:
        reference: clean logits [b, k], constants to the attack (Zhang et al. 2019, eq. 5).
    """
    return KLDivergence(reference)


# --- training losses of generators ----------------------------------------------------------------------------------


def diversity(
    first: Float[Array, "*n h w c"],
    second: Float[Array, "*n h w c"],
    z_first: Float[Array, "*n d"],
    z_second: Float[Array, "*n d"],
    cap: Scalar = math.inf,
) -> Float[Array, "*n"]:
    """min(mean|o1 - o2| / (mean|z1 - z2| + 1e-8), cap): how much of a difference in z a generator's outputs show.

    The ratio is that of DSGAN (Yang et al. 2019, the cap being its bound) and L2L-DA; a generator maximises it. Pairs
    beyond the cap stop pulling, so that the other losses keep their say. A weight w on noise in radii is L2L-DA's
    lambda times the radius: its 0.02 at 0.3 on MNIST is 0.006 here, its 0.5 at 8/255 on CIFAR-10 is 0.016.

    Args:
        first, second: what two latents have made of the same image; noise in radii makes the value, 0 to 2 / mean|z1 -
            z2|, and with it a weight, independent of the radius.
        z_first, z_second: the latents.
        cap: the largest value that counts.
    """
    apart = jnp.mean(jnp.abs(first - second), axis=(-3, -2, -1))
    return jnp.minimum(apart / (jnp.mean(jnp.abs(z_first - z_second), axis=-1) + 1e-8), cap)


def _own(logits: Logits, labels: Labels) -> Values:
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def _best_other(logits: Logits, labels: Labels) -> Values:
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1)


def _require_classes(logits: Logits, fewest: int, name: str) -> None:
    if logits.shape[-1] < fewest:
        raise ValueError(f"classes={logits.shape[-1]!r}: the loss {name} needs at least {fewest} classes; use margin")


LOSSES: Mapping[str, Callable[..., Any]] = {
    "cross_entropy": lambda: cross_entropy,
    "margin": lambda: margin,
    "dlr": lambda: dlr,
    "capped_cross_entropy": capped_cross_entropy,
    "smoothed_cross_entropy": smoothed_cross_entropy,
}
"""Constructors of the losses that an attack config may name."""

_TARGETED: Mapping[Any, Loss] = {
    cross_entropy: targeted_cross_entropy,
    margin: targeted_margin,
    dlr: targeted_dlr,
}


def targeted_form(loss: Loss) -> Loss:
    """The loss an attacker maximises to make the victim answer a target instead of merely erring.

    Raises:
        ValueError: the loss has no targeted form.
    """
    function = loss.func if isinstance(loss, jax.tree_util.Partial) else loss
    if hasattr(function, "targeted"):
        return function.targeted()
    for untargeted, targeted in _TARGETED.items():
        if function is untargeted:
            return targeted
    known = ", ".join([*(known.__name__ for known in _TARGETED), "capped_cross_entropy", "smoothed_cross_entropy"])
    raise ValueError(f"loss={loss!r} has no targeted form; those with one: {known}. Or pass `loss` to targeted()")
