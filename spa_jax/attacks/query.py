"""Attacks that only ask the victim for its logits, without gradients: Square."""

from typing import Any

from spa_jax import solvers
from spa_jax.attacks.iterative import IterativeAttack, make_attack
from spa_jax.spaces.noise import noise_ball
from spa_jax.types import Count, Scalar


def square(
    radius: Scalar, num_steps: Count = 5000, norm: str = "linf", share: float = 0.8, loss: Any = "margin"
) -> IterativeAttack:
    """Square attack (Andriushchenko et al. 2020): random squares of noise, by queries alone.

    It sees victims as they are, whatever they do to gradients: images that it breaks and gradient attacks do not are a
    sign of gradient masking. See `spa_jax.solvers.square`.

    Args:
        radius: of the ball, on the [0, 1] scale.
        num_steps: queries; 5,000 is AutoAttack's.
        norm: "linf", "l2" or "l1".
        share: of the pixels in the first square; 0.8 is AutoAttack's.
        loss: as for `make_attack`; the margin is the paper's for untargeted attacks.

    Raises:
        ValueError: a number out of range, an unknown norm or loss.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import square
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = square(radius=0.03, num_steps=50)(jax.random.key(0), model, images, labels)
        >>> print(result.success)
        [ True  True]
    """
    return make_attack(noise_ball(norm, radius), loss, solvers.square(share), num_steps, random_start=False)
