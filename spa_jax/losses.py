"""Objectives `(logits [b, k], examples) -> values [b]` that an attacker maximises; training losses are their means.

A loss is a function or a pytree dataclass whose numbers are leaves. It reads `examples.target` where there is one: then
it grows as the victim's prediction approaches the target, and else as it moves away from the label.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from spa_jax.numerics import in_dtype_of
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Example, Flags, Labels, Logits, Loss, Scalar, Values
from spa_jax.validation import require_choice, require_number

_TINY = 1e-12
_SMALLEST_CAP = math.log(2)
_ANNEALED = 0.5
"""The smoothing of a confident example under the guard "anneal", in units of that at which p_y stops falling."""
_RAREST = 0.01
"""The smallest share of a class that counts, in units of the uniform share."""


def cross_entropy(logits: Logits, examples: Example) -> Values:
    """-log p_y; with a target, log p_t. Vanishes in float32 for very confident victims; `margin` and `dlr` do not."""
    return _towards(examples, lambda labels: optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def margin(logits: Logits, examples: Example) -> Values:
    """The largest wrong logit minus the true one (Carlini & Wagner 2017, f6); with a target, its logit minus others'.

    Positive exactly where the victim errs, or predicts the target.
    """
    return _towards(examples, lambda labels: _best_other(logits, labels) - _own(logits, labels))


def dlr(logits: Logits, examples: Example) -> Values:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_1st - z_3rd) (Croce & Hein 2020, eq. 6).

    With a target t it is -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) (eq. 7), which needs the label y too. Invariant
    to shifts and positive scalings of the logits.

    Raises:
        ValueError: fewer than 3 classes, or 4 with a target.
    """
    if examples.target is None:
        _require_classes(logits, 3, "dlr")
        top = jax.lax.top_k(logits, 3)[0]
        return margin(logits, examples) / (top[:, 0] - top[:, 2] + _TINY)
    _require_classes(logits, 4, "targeted dlr")
    top = jax.lax.top_k(logits, 4)[0]
    gain = _own(logits, examples.target) - _own(logits, examples.label)
    return gain / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


@pytree
class CappedCrossEntropy:
    """Cross entropy clipped at a cap; see `capped_cross_entropy`."""

    cap: Any

    def __call__(self, logits: Logits, examples: Example) -> Values:
        value = cross_entropy(logits, examples)
        cap = in_dtype_of(self.cap, value)
        return jnp.minimum(value, cap if examples.target is None else jnp.log1p(-jnp.exp(-cap)))


def capped_cross_entropy(cap: Scalar = 9.0) -> CappedCrossEntropy:
    """min(-log p_y, cap): clipped, so misclassified examples contribute no gradient to a shared perturbation.

    After Shafahi et al. 2020.

    Args:
        cap: in nats; public code uses 9 to 12, the default is our choice. An example stops counting once the label's
            probability is down to exp(-cap). With a target the loss is min(log p_t, log(1 - exp(-cap))): it stops
            counting once all other classes together are down to that. From log 2 on, the target has won by then.

    Raises:
        ValueError: `cap` below log 2.
    """
    rule = "log 2 = 0.6932 or larger, so that a target has won when the loss rests"
    return CappedCrossEntropy(require_number("cap", cap, rule, lambda c: c >= _SMALLEST_CAP))


def off_label(logits: Logits, labels: Labels) -> Float[Array, "b k"]:
    """The probabilities of all classes but the label's, whose entry is 0; without cancellation near p_y = 1."""
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(is_own, 0, jax.nn.softmax(logits))


@pytree
class ClassBalanced:
    """Capped cross entropy with wrong answers spread over the classes; see `class_balanced`."""

    cap: Any
    calibration: Any
    temperature: Any
    penalty: Any
    margin: Any
    adjustment: Any
    penalise: str = static(default="mass")
    off_label: Any = None

    def with_off_label(self, mass: Float[Array, " k"]) -> "ClassBalanced":
        """The loss that knows how much probability the batches so far have given to each class off the labels."""
        return dataclasses.replace(self, off_label=jax.lax.stop_gradient(mass))

    def __call__(self, logits: Logits, examples: Example) -> Values:
        if examples.target is not None:
            raise ValueError("class_balanced spreads predictions over all classes and takes no target")
        p, share = off_label(logits, examples.label), self._share(logits)
        attack = CappedCrossEntropy(self.cap)(self._adjusted(logits, share, examples.label), examples)
        calibrated = jax.lax.stop_gradient(self._calibrated(p, share))
        log_p = jnp.where(calibrated > 0, jax.nn.log_softmax(logits), 0)
        spread = attack + self.calibration * jnp.sum(calibrated * log_p, axis=-1)
        return spread - self.penalty * self._excess(p, share)

    def _share(self, logits: Logits) -> Float[Array, " k"]:
        """The share of each class in the wrong answers so far; uniform while nothing is known."""
        classes = logits.shape[-1]
        mass = jnp.zeros(classes, logits.dtype) if self.off_label is None else self.off_label.astype(logits.dtype)
        total = jnp.sum(mass)
        return jnp.where(total > _TINY, mass / jnp.where(total > _TINY, total, 1), 1 / classes)

    def _adjusted(self, logits: Logits, share: Any, labels: Labels) -> Logits:
        """The logits with log((K share_k)^-adjustment) added off the label."""
        rarity = -jnp.log(_counted(share) * len(share)) * in_dtype_of(self.adjustment, logits)
        return logits + jnp.where(jax.nn.one_hot(labels, len(share), dtype=bool), 0, rarity[None])

    def _calibrated(self, p: Any, share: Any) -> Any:
        """q_k in proportion to p_k off the label times share_k^-temperature."""
        weighted = p * (_counted(share) ** -self.temperature)[None]
        total = jnp.sum(weighted, axis=-1, keepdims=True)
        return weighted / jnp.where(total > 0, total, 1)

    def _excess(self, p: Any, share: Any) -> Any:
        """sum_k max(0, share_k - (1 + margin) / K)^2, to first order in what this example adds to the shares."""
        above = jnp.maximum(share - (1 + self.margin) / p.shape[-1], 0)
        mass = 0.0 if self.off_label is None else jnp.sum(self.off_label)
        moved = (p - share[None] * jnp.sum(p, axis=-1, keepdims=True)) / jnp.maximum(mass, _TINY)
        excess = jnp.sum(above**2) + 2 * moved @ above
        return mass * excess if self.penalise == "mass" else excess


def class_balanced(
    cap: Scalar = 2.0,
    calibration: Scalar = 0.0,
    temperature: Scalar = 1.0,
    penalty: Scalar = 1.0,
    margin: Scalar = 0.5,
    adjustment: Scalar = 0.25,
    penalise: str = "mass",
) -> ClassBalanced:
    """The diversity objective of class-balanced universal perturbations: fool, and spread the wrong answers.

    J = A + calibration * C - penalty * R, from the shares of the classes in the wrong answers so far:

    - A = min(-log softmax(z + b)_y, cap) with b_k = -adjustment * log(K share_k) off the label: calibrated
      probabilities. Every image moves away from its label, and rather to a rare class than to a frequent one.
    - C = sum_k q_k log p_k with q_k in proportion to r_k share_k^-temperature, where r_k are the probabilities off the
      label: it rewards classes that are plausible for this image and rare. Its gradient does not vanish where the
      victim is sure of the label, as that of A does; small weights lowered the fooling ratio in our trials.
    - R = m sum_k max(0, share_k - (1 + margin) / K)^2 is what frequent classes have too much, m being the mean
      probability off the labels, taken as constant: without it R outweighs A while few images are fooled.

    Shares are those of the probability off the labels, since the mean prediction of a well classified balanced batch is
    uniform already. They are a running mean that `spa_jax.solvers.track_labels` keeps and sets; by itself the loss
    takes them as uniform. R is used to first order around the running shares, so that examples do not depend on each
    other within a batch.

    Only the abstract of the method (CB-UAP) is public: it names a diversity objective of a calibration of
    probabilities and a penalty. The formulas and defaults are our choice. The first reading of it, without adjustment,
    is `class_balanced(9.0, 1.0, adjustment=0.0, penalise="share")`; it fools far less than a plain perturbation.

    Args:
        cap: of A, in nats. Low, so that images that are fooled stop counting and leave the rest their weight.
        calibration: weight of C; 0, the default, leaves it out.
        temperature: how much rare classes are preferred by C.
        penalty: weight of R; 0 leaves it out.
        margin: how far above 1 / K a share may be, as a fraction.
        adjustment: how much rare classes are preferred by A; 0 leaves it out.
        penalise: "mass": R as above; "share": without m.

    Raises:
        ValueError: a negative number, another `penalise`; when called, examples with targets.
    """
    numbers = {
        "cap": cap,
        "calibration": calibration,
        "temperature": temperature,
        "penalty": penalty,
        "margin": margin,
        "adjustment": adjustment,
    }
    require_choice("penalise", penalise, ("mass", "share"))
    checked = {name: require_number(name, value, "0 or larger", lambda n: n >= 0) for name, value in numbers.items()}
    return ClassBalanced(**checked, penalise=penalise)


def _counted(share: Float[Array, " k"]) -> Float[Array, " k"]:
    """Shares of classes, none so small that its rarity outweighs everything."""
    return jnp.maximum(share, _RAREST / len(share))


class _Smoothed:
    """What losses against smoothed labels share: when they help the victim, and the guards against it."""

    smoothing: Any
    guard: str

    def reverses(self, logits: Logits, examples: Example) -> Flags:
        """Where a step raises the logit of the label, so that an unguarded attack helps the victim, [b].

        It does where p_y > 1 - s + s / k: the victim is more confident than the smoothed label.
        """
        unsure, smoothing = self._unsure(logits, examples.label), in_dtype_of(self.smoothing, logits)
        return unsure < smoothing * (1 - 1 / logits.shape[-1])

    def _unsure(self, logits: Logits, labels: Labels) -> Values:
        """1 - p_y."""
        raise NotImplementedError

    def _guarded(self, logits: Logits, labels: Labels) -> tuple[Logits, Float[Array, "b 1"]]:
        """The logits, constant where the guard holds them, and the smoothing of each example [b, 1]."""
        unsure = jax.lax.stop_gradient(self._unsure(logits, labels))[:, None]
        vanishing = unsure / (1 - 1 / logits.shape[-1])  # the smoothing at which the label's logit has no gradient
        smoothing = jnp.broadcast_to(in_dtype_of(self.smoothing, logits), vanishing.shape)
        if self.guard == "clamp":
            is_held = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool) & (vanishing < smoothing)
            logits = jnp.where(is_held, jax.lax.stop_gradient(logits), logits)
        return logits, jnp.minimum(smoothing, _ANNEALED * vanishing) if self.guard == "anneal" else smoothing


@pytree
class SmoothedCrossEntropy(_Smoothed):
    """Cross entropy against smoothed labels; see `smoothed_cross_entropy`."""

    smoothing: Any
    guard: str = static(default="off")

    def __call__(self, logits: Logits, examples: Example) -> Values:
        def value(labels: Labels) -> Values:
            held, smoothing = self._guarded(logits, labels)
            return -jnp.sum(_smoothed(logits, labels, smoothing) * jax.nn.log_softmax(held), axis=-1)

        return _towards(examples, value)

    def _unsure(self, logits: Logits, labels: Labels) -> Values:
        return jnp.sum(off_label(logits, labels), axis=-1)


@pytree
class IndependentBce(_Smoothed):
    """Binary cross entropies of all classes against smoothed labels; see `independent_bce`."""

    smoothing: Any
    guard: str = static(default="off")

    def __call__(self, logits: Logits, examples: Example) -> Values:
        def value(labels: Labels) -> Values:
            held, smoothing = self._guarded(logits, labels)
            targets = _smoothed(logits, labels, smoothing)
            return jnp.sum(optax.sigmoid_binary_cross_entropy(held, targets), axis=-1)

        return _towards(examples, value)

    def _unsure(self, logits: Logits, labels: Labels) -> Values:
        return jax.nn.sigmoid(-_own(logits, labels))


def smoothed_cross_entropy(smoothing: Scalar = 0.1, guard: str = "off") -> SmoothedCrossEntropy:
    """Cross entropy with the label (1 - s) onehot(y) + s / k; s = 0.1 after Szegedy et al. 2016, section 7.

    Its gradient in the logits is p - label. An attack that maximises it lowers the probabilities of all classes, not
    only that of y, which is our reading of semantics-preserving adversarial training (SPAT), of which only an abstract
    is public. Where p_y > 1 - s + s / k the gradient in z_y is positive: the attack then helps the victim.

    Args:
        smoothing: s.
        guard: against that. "off": none, and right for a training loss. "clamp": the gradient in z_y is at most 0; the
            other logits keep theirs, so that p_y may still rise a little. "anneal": the smoothing of a confident
            example is at most half of that at which the gradient in z_y vanishes, (1 - p_y) k / (k - 1), and constant
            to the gradient; then p_y never rises to first order where all other classes are equally likely. Both are
            our choice.

    Raises:
        ValueError: `smoothing` outside [0, 1], or another guard.
    """
    return SmoothedCrossEntropy(*_smoothing(smoothing, guard))


def independent_bce(smoothing: Scalar = 0.1, guard: str = "off") -> IndependentBce:
    """The sum over classes of binary cross entropies of sigmoid(z_k) with the label (1 - s) onehot(y) + s / k.

    Its gradient in the logits is sigmoid(z) - label. It does not sum to zero, so a change that raises or lowers all
    logits alike counts, which cancels under a softmax. A network trained by softmax leaves the common height of its
    logits undetermined. For SPAT, where it is our choice.

    Args:
        smoothing, guard: as for `smoothed_cross_entropy`, with sigmoid(z_y) for p_y.

    Raises:
        ValueError: `smoothing` outside [0, 1], or another guard.
    """
    return IndependentBce(*_smoothing(smoothing, guard))


def _smoothing(smoothing: Scalar, guard: str) -> tuple[Any, str]:
    require_choice("guard", guard, ("off", "clamp", "anneal"))
    return require_number("smoothing", smoothing, "in [0, 1]", lambda s: 0 <= s <= 1), guard


def _smoothed(logits: Logits, labels: Labels, smoothing: Any) -> Float[Array, "b k"]:
    """(1 - s) onehot(y) + s / k."""
    return (1 - smoothing) * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) + smoothing / logits.shape[-1]


def kl_divergence(logits: Logits, examples: Example) -> Values:
    """KL(p_reference || p), how far the victim's prediction moves from `examples.reference` (Zhang et al. 2019, eq. 5).

    The reference holds clean logits [b, k], constants to the attack. Neither labels nor targets are read.

    Raises:
        ValueError: the examples have no reference.
    """
    if examples.reference is None:
        raise ValueError("examples.reference=None: kl_divergence compares with clean logits; pass reference=logits")
    log_p = jax.nn.log_softmax(examples.reference)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits)), axis=-1)


@pytree
class OnLabels:
    """A loss of logits and labels; see `on_labels`."""

    function: Any

    def __call__(self, logits: Logits, examples: Example) -> Values:
        return _towards(examples, lambda labels: self.function(logits, labels))


def on_labels(function: Callable[[Any, Any], Any]) -> OnLabels:
    """A loss from a function `(logits [b, k], labels [b]) -> values [b]` of one's own, such as one of optax.

    It is maximised; with targets, its negative at the targets is.
    """
    return OnLabels(as_pytree(function))


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
    beyond the cap contribute no gradient, which leaves the other losses their weight. A weight w on noise in radii is
    L2L-DA's lambda times the radius: its 0.02 at 0.3 on MNIST is 0.006 here, its 0.5 at 8/255 on CIFAR-10 is 0.016.

    Args:
        first, second: what two latents have made of the same image; noise in radii makes the value, 0 to 2 / mean|z1 -
            z2|, and with it a weight, independent of the radius.
        z_first, z_second: the latents.
        cap: the largest value that counts.
    """
    apart = jnp.mean(jnp.abs(first - second), axis=(-3, -2, -1))
    return jnp.minimum(apart / (jnp.mean(jnp.abs(z_first - z_second), axis=-1) + 1e-8), cap)


def _towards(examples: Example, value: Callable[[Labels], Values]) -> Values:
    """The value at the label, or with a target its negative at the target."""
    return value(examples.label) if examples.target is None else -value(examples.target)


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
    "class_balanced": class_balanced,
    "smoothed_cross_entropy": smoothed_cross_entropy,
    "independent_bce": independent_bce,
    "kl_divergence": lambda: kl_divergence,
}
"""Constructors of the losses that an attack config may name."""


def loss_from_spec(loss: Any) -> Loss:
    """A loss from its name, from `{"name": ..., options}`, or as it is.

    Raises:
        ValueError: an unknown name or option, or something that cannot be called.
    """
    if callable(loss):
        return as_pytree(loss)
    options = {"name": loss} if isinstance(loss, str) else dict(loss) if isinstance(loss, Mapping) else {}
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"loss={loss!r} must be callable or one of {', '.join(LOSSES)}")
    require_choice("loss", name, tuple(LOSSES))
    try:
        return as_pytree(LOSSES[name](**options))
    except TypeError as error:
        raise ValueError(f"loss={loss!r}: {error}") from error
