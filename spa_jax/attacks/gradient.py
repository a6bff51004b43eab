"""Attacks by gradients on noise alone: FGSM, PGD, that of SPAT, MI-FGSM and APGD."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spa_jax import losses
from spa_jax.attacks.iterative import IterativeAttack, Keep, default_step, make_attack
from spa_jax.attacks.targets import MultiTargeted, multi_targeted
from spa_jax.solvers import apgd, l1_apgd, projected_gradient, rule, shared_mask
from spa_jax.spaces.noise import linf, noise_ball
from spa_jax.types import Count, Scalar, Solver
from spa_jax.validation import is_traced, require_choice, require_count, require_number


def relative_step(
    radius: Scalar,
    num_steps: Count,
    step_size: Scalar | None,
    rel_step_size: Scalar | None,
    default: float,
    carried: bool = False,
) -> Any:
    """A step size as a fraction of the radius.

    Args:
        radius: of the ball.
        num_steps: gradient steps.
        step_size: in the units of the radius, as papers give it.
        rel_step_size: as a fraction of the radius.
        default: the fraction where neither is given.
        carried: whether there will be more steps than those of a call.

    Warns:
        UserWarning: all steps together are shorter than the radius, so that most of the ball cannot be reached.

    Raises:
        ValueError: both are given, or one is negative.
    """
    if step_size is not None and rel_step_size is not None:
        raise ValueError(f"step_size={step_size!r}, rel_step_size={rel_step_size!r}: give one of the two")
    if step_size is not None:
        require_number("step_size", step_size, "0 or larger, in the units of the radius", lambda s: s >= 0)
        rel_step_size = _ratio(step_size, radius)
    rel_step_size = default if rel_step_size is None else rel_step_size
    require_number("rel_step_size", rel_step_size, "0 or larger, a fraction of the radius", lambda s: s >= 0)
    if not (carried or is_traced(rel_step_size)) and 0 < rel_step_size * num_steps < 1 - 1e-6:
        warnings.warn(
            f"num_steps={num_steps} steps of {float(rel_step_size):.3g} radii cannot reach the boundary of the ball; "
            "step_size is in the units of the radius, rel_step_size a fraction of it",
            stacklevel=3,
        )
    return rel_step_size


def _ratio(step_size: Scalar, radius: Scalar) -> Any:
    if is_traced(step_size, radius):
        return jnp.where(radius > 0, step_size / jnp.where(radius > 0, radius, 1), 0)
    return step_size / radius if radius else 0.0


def fgsm(radius: Scalar, norm: str = "linf", loss: Any = "cross_entropy") -> IterativeAttack:
    """One full step along the gradient from the clean image (Goodfellow et al. 2015, section 4).

    Args:
        radius: of the ball, on the [0, 1] scale.
        norm: "linf", "l2" or "l1".
        loss: as for `make_attack`.

    Raises:
        ValueError: a negative radius, an unknown norm or loss.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import fgsm
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = fgsm(radius=0.03)(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{result.x.max():.3f}")
        [ True  True] 0.470
    """
    return make_attack(noise_ball(norm, radius), loss, projected_gradient(1.0), 1, random_start=False)


def pgd(
    radius: Scalar,
    num_steps: Count = 10,
    step_size: Scalar | None = None,
    norm: str = "linf",
    loss: Any = "cross_entropy",
    random_start: bool = True,
    keep: Keep = "best",
    *,
    rel_step_size: Scalar | None = None,
) -> IterativeAttack:
    """Projected gradient descent (Madry et al. 2018, section 2.1).

    With `norm="l1"` it takes sparse steps of one length (SLIDE, Tramer & Boneh 2019), which is a weak attack: a robust
    accuracy in l1 is to be judged by `apgd_ce` and `apgd_dlr`.

    Args:
        radius: of the ball, on the [0, 1] scale.
        num_steps: gradient steps. The default, 10, is our choice: Madry et al. attack MNIST with 40 and CIFAR-10 with 7
            to 20. Where a number is reported, take 40 or more, or APGD.
        step_size: in the units of the radius: `pgd(8/255, step_size=2/255)`.
        norm: "linf", "l2" or "l1".
        loss, random_start, keep: as for `make_attack`.
        rel_step_size: the step size as a fraction of the radius, instead. Default: 2.5 / num_steps, at most 1, the
            heuristic of Madry et al.

    Warns:
        UserWarning: all steps together are shorter than the radius.

    Raises:
        ValueError: a number out of range, both step sizes, an unknown norm or loss.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import pgd
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = pgd(radius=0.03, num_steps=10, step_size=0.01)(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{result.x.max():.3f}")
        [ True  True] 0.470

        The same attack, with class 0 as its target:

        >>> targeted = pgd(radius=0.03)(jax.random.key(0), model, images, labels, target=jnp.array([0, 0]))
        >>> print(targeted.success)
        [ True  True]
    """
    step = relative_step(radius, num_steps, step_size, rel_step_size, default_step(num_steps))
    space = noise_ball(norm, radius)
    return make_attack(space, loss, projected_gradient(step), num_steps, keep=keep, random_start=random_start)


def spat(
    radius: Scalar,
    num_steps: Count = 10,
    step_size: Scalar | None = None,
    loss: str = "smoothed_cross_entropy",
    smoothing: Scalar = 0.1,
    guard: str = "off",
    mask: str | None = None,
    norm: str = "linf",
    random_start: bool = True,
    keep: Keep = "last",
    *,
    rel_step_size: Scalar | None = None,
) -> IterativeAttack:
    """PGD that disturbs what all classes use: the training attack of semantics-preserving adversarial training (SPAT).

    Only an abstract is public: training examples are to keep their meaning, by noise on pixels that are shared among
    all classes. The formulas and defaults are our choice: ascent on the cross entropy with smoothed labels, while the
    outer objective keeps the hard ones. It is an attack to train with, weaker than `pgd` by intent; do not judge by it.

    Args:
        radius, num_steps, step_size, norm, random_start, rel_step_size: as for `pgd`.
        loss: "smoothed_cross_entropy", or "independent_bce", see `spa_jax.losses`.
        smoothing: of the labels that the attack moves away from, in [0, 1]; 0 for the hard ones.
        guard: "off", "clamp" or "anneal": what is done where smoothing makes the attack help a confident victim.
        mask: "min" or "mean" to shorten the steps of pixels that matter to some classes only, see
            `spa_jax.solvers.shared_mask`; a step then costs k backward passes more. None: no mask.
        keep: "last" as in training, or "best".

    Warns:
        UserWarning: all steps together are shorter than the radius.

    Raises:
        ValueError: a number out of range, both step sizes, an unknown norm, loss, guard or mask.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import spat
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = spat(radius=0.03, num_steps=10)(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{result.x.max():.3f}")
        [ True  True] 0.470
    """
    require_choice("loss", loss, ("smoothed_cross_entropy", "independent_bce"))
    step = relative_step(radius, num_steps, step_size, rel_step_size, default_step(num_steps))
    solver: Solver = projected_gradient(step)
    if mask is not None:
        require_choice("mask", mask, ("min", "mean"))
        solver = shared_mask(solver, mask)
    inner = losses.LOSSES[loss](smoothing, guard)
    return make_attack(noise_ball(norm, radius), inner, solver, num_steps, keep=keep, random_start=random_start)


def _accumulate(decay: float) -> optax.GradientTransformation:
    def per_l1_norm(gradient: Any) -> Any:
        return jax.tree.map(lambda g: g / (jnp.sum(jnp.abs(g)) + 1e-12), gradient)

    return optax.chain(optax.stateless(lambda updates, params: per_l1_norm(updates)), optax.trace(decay))


def mi_fgsm(
    radius: Scalar,
    num_steps: Count = 10,
    decay: float = 1.0,
    step_size: Scalar | None = None,
    loss: Any = "cross_entropy",
    keep: Keep = "best",
    *,
    rel_step_size: Scalar | None = None,
) -> IterativeAttack:
    """Momentum iterative FGSM (Dong et al. 2018, algorithm 1): accumulates gradients of unit L1 norm, steps by sign.

    Args:
        radius: of the l-infinity ball, on the [0, 1] scale.
        num_steps: gradient steps; the paper uses 10.
        decay: of the accumulated gradient; 1.0 is the paper's.
        step_size: in the units of the radius.
        loss, keep: as for `pgd`.
        rel_step_size: as a fraction of the radius, instead. Default: 1 / num_steps, the paper's.

    Raises:
        ValueError: a number out of range, both step sizes, an unknown loss.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import mi_fgsm
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = mi_fgsm(radius=0.03, num_steps=5)(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{result.x.max():.3f}")
        [ True  True] 0.470
    """
    num_steps = require_count("num_steps", num_steps)
    step = relative_step(radius, num_steps, step_size, rel_step_size, 1 / num_steps)
    solver = projected_gradient(step, gradient_rule=rule(_accumulate, decay))
    return make_attack(linf(radius), loss, solver, num_steps, keep=keep, random_start=False)


def apgd_ce(radius: Scalar, num_steps: Count = 100, norm: str = "linf") -> IterativeAttack:
    """Auto-PGD on cross entropy (Croce & Hein 2020, algorithm 1); 100 steps as in AutoAttack.

    In l1 it is L1-APGD (Croce & Hein 2021): sparse steps, and larger radii first; see `spa_jax.solvers.l1_apgd`.

    Args:
        radius: of the ball, on the [0, 1] scale.
        num_steps: gradient steps.
        norm: "linf", "l2" or "l1".

    Raises:
        ValueError: a number out of range, or an unknown norm.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import apgd_ce
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = apgd_ce(radius=0.03, num_steps=10)(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{result.x.max():.3f}")
        [ True  True] 0.470
    """
    return make_attack(noise_ball(norm, radius), losses.cross_entropy, _auto(norm), num_steps)


def apgd_dlr(radius: Scalar, num_steps: Count = 100, norm: str = "linf") -> IterativeAttack:
    """Auto-PGD on the DLR loss (Croce & Hein 2020, eq. 6 and, with a target, eq. 7).

    In l1 it is L1-APGD, as `apgd_ce` is.

    Args:
        radius, num_steps, norm: as for `apgd_ce`.

    Raises:
        ValueError: a number out of range, or an unknown norm; when called, fewer than 3 classes (4 with a target).

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import apgd_dlr
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images), light(images) - 1], axis=-1)  # 3 classes
        >>> result = apgd_dlr(radius=0.03, num_steps=10)(jax.random.key(0), model, images, labels)
        >>> print(result.success)
        [ True  True]
    """
    return make_attack(noise_ball(norm, radius), losses.dlr, _auto(norm), num_steps)


def apgd_t(radius: Scalar, num_steps: Count = 100, norm: str = "linf", k: Count = 9) -> MultiTargeted:
    """Auto-PGD on the targeted DLR loss at each of the likeliest other classes (Croce & Hein 2020, eq. 7), APGD-T.

    Any wrong class is a success; see `multi_targeted`. In l1 it is L1-APGD, as `apgd_ce` is.

    Args:
        radius, norm: as for `apgd_ce`.
        num_steps: gradient steps at each target; 100 is AutoAttack's.
        k: how many targets; 9 is AutoAttack's. A victim of fewer classes has one fewer than classes.

    Raises:
        ValueError: a number out of range, or an unknown norm; when called, fewer than 4 classes, or a target.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import apgd_t
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([(i - 1) * light(images) for i in (0, 2, 1.5, 1)], axis=-1)  # 4 classes
        >>> result = apgd_t(radius=0.03, num_steps=10)(jax.random.key(0), model, images, labels)
        >>> print(result.success)
        [ True  True]
    """
    return multi_targeted(apgd_dlr(radius, num_steps, norm), k)


def _auto(norm: str) -> Solver:
    return l1_apgd() if norm == "l1" else apgd()
