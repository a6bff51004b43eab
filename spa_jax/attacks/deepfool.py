"""DeepFool: step after step over the nearest boundary of the linearised logits."""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax.attacks.boundaries import nearest, onto
from spa_jax.attacks.minimal_norm import (
    MinimalNorm,
    MinimalNormState,
    NormProblem,
    Visit,
    minimal_norm,
    require_candidates,
)
from spa_jax.numerics import in_dtype_of
from spa_jax.trees import pytree, static
from spa_jax.types import Count, Image, Images, Keys, Logits, Scalar
from spa_jax.validation import require_choice, require_number

_LINEAR_SURPLUS = 1e-4
"""By how much a step aims beyond the boundary, in logits, so that one that starts on it still moves."""


def over_nearest(gaps: Any, slopes: Any, norm: str) -> Image:
    """DeepFool's step of ONE image: the shortest one over the nearest of its linearised boundaries [m]."""
    gap, slope = nearest(gaps, slopes, norm)
    return onto(jnp.abs(gap) + _LINEAR_SURPLUS, slope, norm)


class DeepFoolState(NamedTuple):
    """The sum of the steps so far, and the classes whose boundaries are looked at."""

    total: Images
    classes: Any


@pytree
class DeepFool:
    """See `deepfool`."""

    overshoot: Any
    candidates: int = static()
    stops: ClassVar[bool] = True

    def init(self, problem: NormProblem, keys: Keys, logits: Logits) -> DeepFoolState:
        return DeepFoolState(jnp.zeros_like(problem.examples.image), problem.likely(logits, self.candidates))

    def step(self, problem: NormProblem, state: MinimalNormState, keys: Keys) -> tuple[DeepFoolState, Visit]:
        own = state.own
        gaps, slopes, visit = problem.boundaries(self.last(problem, own), keys, own.classes)

        step = jax.vmap(lambda gaps, slopes: over_nearest(gaps, slopes, problem.norm))(gaps, slopes)
        return own._replace(total=own.total + step), visit

    def last(self, problem: NormProblem, own: DeepFoolState) -> Images:
        return problem.shown(problem.examples.image + in_dtype_of(1 + self.overshoot, own.total) * own.total)


def deepfool(
    norm: str = "l2",
    radius: Scalar = math.inf,
    num_steps: Count = 50,
    overshoot: Scalar = 0.02,
    candidates: Count = 10,
) -> MinimalNorm:
    """DeepFool (Moosavi-Dezfooli et al. 2016, algorithm 2 and section 3.3): over the nearest linearised boundary.

    Quick and rough: a few steps are enough, and `fmn` or `fab` find images that are nearer. A step takes one forward
    pass and one backward pass for each candidate but the label; once every image of the batch fools, the remaining
    steps do nothing. With a target it steps over the boundary between the target and the best other class.

    Args:
        norm: "l2" or "linf".
        radius: a success farther away than this does not count. Default: any distance counts.
        num_steps: at most so many; the authors' code has 50.
        overshoot: by how much the sum of the steps is lengthened, the authors' 0.02.
        candidates: how many of the most likely classes are looked at, the label among them. The authors' code has 10.

    Raises:
        ValueError: another norm, a number out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import deepfool
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = deepfool("linf")(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{jnp.abs(result.x - images).max():.4f}")
        [ True  True] 0.0205
    """
    require_choice("norm", norm, ("l2", "linf"))
    search = DeepFool(
        require_number("overshoot", overshoot, "0 or larger", lambda o: o >= 0),
        require_candidates(candidates),
    )
    return minimal_norm(search, radius, norm, num_steps)
