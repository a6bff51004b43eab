"""DDN and FMN: gradient steps within a ball whose radius grows while the victim is right and shrinks while it errs."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax.attacks.boundaries import distance_to
from spa_jax.attacks.minimal_norm import DISTANCES, MinimalNorm, MinimalNormState, NormProblem, Visit, minimal_norm
from spa_jax.losses import cross_entropy, margin
from spa_jax.numerics import clip_to_unit, in_dtype_of
from spa_jax.spaces.noise import NORMS, TINY, unit_l2
from spa_jax.trees import pytree, static
from spa_jax.types import Count, Example, Image, Images, Keys, Logits, Scalar, Values
from spa_jax.validation import require_count, require_number

_FINAL_SHARE = 0.01
_FINAL_GAMMA = 0.001


def _annealed(first: Any, last: Any, step: Any, num_steps: int) -> Any:
    """From the first value to the last one along half a cosine."""
    share = (1 + jnp.cos(jnp.pi * step.astype(jnp.float32) / num_steps)) / 2
    return last + (first - last) * share


def _farthest(problem: NormProblem) -> Values:
    """How far the farthest image of [0, 1] lies, [b]."""
    x = problem.examples.image
    return DISTANCES[problem.norm](jnp.maximum(x, 1 - x), jnp.zeros_like(x))


def _per_image(numbers: Values) -> Any:
    return numbers[:, None, None, None]


# --- DDN ------------------------------------------------------------------------------------------------------------


class DdnState(NamedTuple):
    """The noise, the radius of its ball [b], and a direction of length 1 for where the gradient vanishes."""

    noise: Images
    epsilon: Values
    spare: Images


@pytree
class Ddn:
    """See `ddn`."""

    initial_epsilon: Any
    gamma: Any
    num_steps: int = static()

    def init(self, problem: NormProblem, keys: Keys, logits: Logits) -> DdnState:
        x = problem.examples.image
        spare = jax.vmap(lambda key: unit_l2(jax.random.normal(key, x.shape[1:], x.dtype)))(keys)
        return DdnState(jnp.zeros_like(x), jnp.full_like(x[:, 0, 0, 0], self.initial_epsilon), spare)

    def step(self, problem: NormProblem, state: MinimalNormState, keys: Keys) -> tuple[DdnState, Visit]:
        x, own = problem.examples.image, state.own
        _, gradient, visit = problem.climb(cross_entropy, self.last(problem, own), keys)
        vanishes = jnp.all(gradient == 0, axis=(1, 2, 3), keepdims=True)
        direction = jnp.where(vanishes, own.spare, jax.vmap(unit_l2)(gradient))
        length = _annealed(1.0, _FINAL_SHARE, state.step, self.num_steps).astype(x.dtype)
        noise = own.noise + length * direction
        gamma = in_dtype_of(self.gamma, x)
        epsilon = own.epsilon * jnp.where(visit.success, 1 - gamma, 1 + gamma)
        epsilon = jnp.minimum(epsilon, _farthest(problem))
        noise = noise * _per_image(epsilon / (DISTANCES["l2"](noise, jnp.zeros_like(noise)) + TINY))
        return own._replace(noise=clip_to_unit(x + noise) - x, epsilon=epsilon), visit

    def last(self, problem: NormProblem, own: DdnState) -> Images:
        return problem.shown(problem.examples.image + own.noise)


def ddn(
    radius: Scalar = math.inf, num_steps: Count = 100, initial_epsilon: Scalar = 1.0, gamma: Scalar = 0.05
) -> MinimalNorm:
    """Decoupled direction and norm (Rony et al. 2019, algorithm 1): the nearest image in l2 that fools.

    Each step goes along the gradient of the cross entropy, of length 1 at first and 0.01 at last (a cosine); then the
    noise is given the length epsilon, which shrinks by gamma while the victim errs and grows by gamma while it is
    right.

    Args:
        radius: a success farther away than this in l2 does not count. Default: any distance counts.
        num_steps: gradient steps, the paper's smallest budget; it also reports 300 and 1000.
        initial_epsilon: the first length, the paper's 1.
        gamma: share by which the length changes, the paper's 0.05.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import ddn
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = ddn()(jax.random.key(0), model, images, labels)
        >>> print(result.success, jnp.linalg.norm(result.x - images, axis=(1, 2)).max() < 0.085)
        [ True  True] True
    """
    num_steps = require_count("num_steps", num_steps)
    search = Ddn(
        require_number("initial_epsilon", initial_epsilon, "larger than 0", lambda e: e > 0),
        require_number("gamma", gamma, "in (0, 1)", lambda g: 0 < g < 1),
        num_steps,
    )
    return minimal_norm(search, radius, "l2", num_steps)


# --- FMN ------------------------------------------------------------------------------------------------------------


class FmnState(NamedTuple):
    """The noise, and the radius of its ball [b]."""

    noise: Images
    epsilon: Values


@pytree
class Fmn:
    """See `fmn`."""

    step_size: Any
    gamma: Any
    num_steps: int = static()

    def init(self, problem: NormProblem, keys: Keys, logits: Logits) -> FmnState:
        x = problem.examples.image
        return FmnState(jnp.zeros_like(x), jnp.full_like(x[:, 0, 0, 0], jnp.inf))

    def step(self, problem: NormProblem, state: MinimalNormState, keys: Keys) -> tuple[FmnState, Visit]:
        x, own = problem.examples.image, state.own
        margins, gradient, visit = problem.climb(margin, self.last(problem, own), keys)
        epsilon = self._epsilon(problem, state, margins, gradient, visit)
        first = in_dtype_of(self.step_size, x)
        length = _annealed(first, _FINAL_SHARE * first, state.step, self.num_steps).astype(x.dtype)
        noise = own.noise + length * jax.vmap(unit_l2)(gradient)

        def project(epsilon: Any, noise: Image, image: Image) -> Image:
            return NORMS[problem.norm](epsilon).project(noise, Example(image))

        return FmnState(jax.vmap(project)(epsilon, noise, x), epsilon), visit

    def _epsilon(
        self, problem: NormProblem, state: MinimalNormState, margins: Values, gradient: Images, visit: Visit
    ) -> Values:
        """Onto the linearised boundary until something fools; then smaller where the victim errs, larger elsewhere."""
        size, epsilon = problem.distance(visit.images), state.own.epsilon
        gamma = _annealed(in_dtype_of(self.gamma, size), _FINAL_GAMMA, state.step, self.num_steps).astype(size.dtype)
        shortest = jnp.minimum(state.distance, jnp.where(visit.success, size, jnp.inf))
        boundary = size + jax.vmap(lambda gap, slope: distance_to(gap, slope, problem.norm))(margins, gradient)
        boundary = jnp.maximum(boundary, size * (1 + gamma))
        while_right = jnp.where(jnp.isfinite(shortest), epsilon * (1 + gamma), boundary)
        while_wrong = jnp.minimum(epsilon * (1 - gamma), shortest)
        return jnp.minimum(jnp.where(visit.success, while_wrong, while_right), _farthest(problem))

    def last(self, problem: NormProblem, own: FmnState) -> Images:
        return problem.shown(problem.examples.image + own.noise)


def fmn(
    norm: str = "l2",
    radius: Scalar = math.inf,
    num_steps: Count = 100,
    step_size: Scalar = 1.0,
    gamma: Scalar = 0.05,
) -> MinimalNorm:
    """The fast minimum-norm attack (Pintor et al. 2021, algorithm 1): the nearest image that fools, in three norms.

    Each step goes along the gradient of the margin and back into the ball around the image, whose radius follows the
    linearised boundary until something fools, then shrinks by gamma while the victim errs and grows while it is right.
    Two things are our choice: the projection is the exact one onto ball and image box together, where the paper cuts to
    the box afterwards; and before the first success the ball grows by gamma at least, because on the linearised
    boundary rounding decides who wins.

    Args:
        norm: "l2", "linf" or "l1".
        radius: a success farther away than this does not count. Default: any distance counts.
        num_steps: gradient steps; 100 as in the authors' code. The paper's figures go up to 1000.
        step_size: length in l2 of the first step, 1 as in the authors' code; a hundredth of it at last (a cosine). In
            linf it decides: against a PGD-trained network on MNIST the median distance of 100 images was 0.39 with 1,
            0.33 with 10 and 0.30 with 30, where `fab` found 0.25.
        gamma: share by which the radius changes at first, the paper's 0.05; 0.001 at last.

    Raises:
        ValueError: another norm, a number out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import fmn
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = fmn("linf")(jax.random.key(0), model, images, labels)
        >>> print(result.success, jnp.abs(result.x - images).max() < 0.0205)
        [ True  True] True
    """
    num_steps = require_count("num_steps", num_steps)
    search = Fmn(
        require_number("step_size", step_size, "larger than 0", lambda s: s > 0),
        require_number("gamma", gamma, "in (0, 1)", lambda g: 0 < g < 1),
        num_steps,
    )
    return minimal_norm(search, radius, norm, num_steps)
