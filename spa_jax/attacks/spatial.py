"""Attacks that move pixels and keep their brightness."""

from typing import Any

from spa_jax.attacks.gradient import relative_step
from spa_jax.attacks.iterative import IterativeAttack, Keep, default_step, make_attack
from spa_jax.solvers import projected_gradient
from spa_jax.spaces.flow import flow
from spa_jax.types import Count, Scalar


def stadv(
    radius: Scalar,
    num_steps: Count = 20,
    step_size: Scalar | None = None,
    smoothness: Scalar = 0.05,
    loss: Any = "margin",
    keep: Keep = "best",
    *,
    rel_step_size: Scalar | None = None,
) -> IterativeAttack:
    """StAdv (Xiao et al. 2018): every pixel is read from a place nearby, neighbours from neighbouring places.

    From the clean image on, the search maximises the margin, the paper's loss of Carlini & Wagner, less `smoothness`
    times the paper's flow loss. The bound on displacements and the sign steps within it are ours; the paper has L-BFGS
    and no bound.

    Args:
        radius: the largest displacement of a pixel along each axis, in pixels; see `spa_jax.spaces.flow`.
        num_steps: gradient steps; the default is our choice.
        step_size: in pixels.
        smoothness: the paper's tau, 0.05 there.
        loss, keep: as for `pgd`. `Result.value` is the loss less the penalty, but for a randomised victim, which judges
            the images alone.
        rel_step_size: the step size as a fraction of the radius, instead. Default: 2.5 / num_steps, at most 1.

    Raises:
        ValueError: a number out of range, both step sizes, an unknown loss.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import stadv
        >>> images, labels = jnp.tile(jnp.linspace(0.0, 1.0, 6)[None, None, :, None], (2, 6, 1, 1)), jnp.array([1, 1])
        >>> light = lambda images: images[:, :, 3].mean((1, 2)) - 0.55
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright column
        >>> result = stadv(radius=1.0, num_steps=10, smoothness=0.0001)(jax.random.key(0), model, images, labels)
        >>> print(result.success, result.x.shape, result.variables.shape)
        [ True  True] (2, 6, 6, 1) (2, 6, 6, 2)
    """
    step = relative_step(radius, num_steps, step_size, rel_step_size, default_step(num_steps))
    solver = projected_gradient(step)
    return make_attack(flow(radius, smoothness), loss, solver, num_steps, keep=keep, random_start=False)
