"""FAB: along the nearest linearised boundary, drawn back towards the original image."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax.attacks.boundaries import VECTOR_NORMS, nearest, onto_within_image
from spa_jax.attacks.minimal_norm import (
    MinimalNorm,
    MinimalNormState,
    NormProblem,
    Visit,
    minimal_norm,
    require_candidates,
)
from spa_jax.attacks.targets import MultiTargeted, multi_targeted
from spa_jax.numerics import clip_to_unit, in_dtype_of
from spa_jax.spaces.noise import checked_radius
from spa_jax.trees import pytree, static
from spa_jax.types import Count, Image, Images, Keys, Logits, Scalar
from spa_jax.validation import is_traced, require_number

_SHORTEST = 1e-8
_STARTS = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
"""The radius of a random start where the attack has none: AutoAttack's defaults."""


class FabState(NamedTuple):
    """Where the search stands, before it is put on a grid, and the classes whose boundaries are looked at."""

    points: Images
    classes: Any


@pytree
class Fab:
    """See `fab`."""

    alpha_max: Any
    eta: Any
    beta: Any
    radius: Any
    random_start: bool = static()
    candidates: int = static()

    def init(self, problem: NormProblem, keys: Keys, logits: Logits) -> FabState:
        x, classes = problem.examples.image, problem.likely(logits, self.candidates)
        if not self.random_start:
            return FabState(x, classes)
        radius = in_dtype_of(self.radius, x)
        radius = jnp.where(jnp.isfinite(radius), radius, _STARTS[problem.norm])

        def start(key: Any, image: Image) -> Image:
            if problem.norm == "linf":
                noise = jax.random.uniform(key, image.shape, image.dtype, -1.0, 1.0)
            else:
                noise = jax.random.normal(key, image.shape, image.dtype)
            return clip_to_unit(image + radius / 2 * noise / VECTOR_NORMS[problem.norm](noise))

        return FabState(jax.vmap(start)(keys, x), classes)

    def step(self, problem: NormProblem, state: MinimalNormState, keys: Keys) -> tuple[FabState, Visit]:
        x, own = problem.examples.image, state.own
        gaps, slopes, before = problem.boundaries(problem.shown(own.points), keys, own.classes)
        points = clip_to_unit(jax.vmap(self._along, (None, 0, 0, 0, 0))(problem.norm, x, own.points, gaps, slopes))
        images = problem.shown(points)
        visit = problem.visit(images, problem.predict(keys, images))
        nonfinite = jax.tree.map(jnp.add, before.nonfinite, visit.nonfinite)
        drawn_back = x + in_dtype_of(self.beta, x) * (points - x)
        points = jnp.where(visit.success[:, None, None, None], drawn_back, points)
        return own._replace(points=points), visit._replace(nonfinite=nonfinite)

    def _along(self, norm: str, x: Image, image: Image, gaps: Any, slopes: Any) -> Image:
        """Beyond the nearest boundary, between its projections of the image and of the original (equation 10)."""
        gap, slope = nearest(gaps, slopes, norm)
        project = jax.vmap(lambda start: onto_within_image(start, jnp.sum(slope * (image - start)) - gap, slope, norm))
        onto, onto_from_original = project(jnp.stack([image, x]))
        far, near = (jnp.maximum(VECTOR_NORMS[norm](change), _SHORTEST) for change in (onto, onto_from_original))
        alpha, eta = jnp.minimum(far / (far + near), in_dtype_of(self.alpha_max, x)), in_dtype_of(self.eta, x)
        return (1 - alpha) * (image + eta * onto) + alpha * (x + eta * onto_from_original)

    def last(self, problem: NormProblem, own: FabState) -> None:
        return None


def fab(
    norm: str = "linf",
    radius: Scalar = math.inf,
    num_steps: Count = 100,
    alpha_max: Scalar = 0.1,
    eta: Scalar = 1.05,
    beta: Scalar = 0.9,
    random_start: bool = False,
    candidates: Count = 10,
) -> MinimalNorm:
    """The fast adaptive boundary attack (Croce & Hein 2020, algorithm 1): the nearest image that fools, in three norms.

    Each step projects the image and the original onto the nearest linearised boundary, within [0, 1], and goes beyond
    the first projection, biased to the second; after a success it goes back towards the original. It needs no step
    size, and scaling the logits does not change it. A step takes two forward passes and one backward pass for each
    candidate but the label. With a target it looks at the boundary between the target and the best other class. The
    paper's final search on the segment to the original is left out, as in AutoAttack.

    The defaults are AutoAttack's. Its further restarts begin at random points:
    `restarts(fab(radius=radius, random_start=True), 4)`.

    Args:
        norm: "linf", "l2" or "l1".
        radius: a success farther away than this does not count. Default: any distance counts.
        num_steps: steps, AutoAttack's 100.
        alpha_max: the largest bias to the original.
        eta: how far a step goes, in units of the way to the boundary.
        beta: the share of the noise that is kept after a success.
        random_start: start at a random point half a radius away; without a radius half of 0.3 (linf), 1 (l2) or 5 (l1).
        candidates: how many of the most likely classes are looked at, the label among them; AutoAttack looks at all.
            10 is our choice.

    Raises:
        ValueError: another norm, a number out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import fab
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = fab("linf")(jax.random.key(0), model, images, labels)
        >>> print(result.success, jnp.abs(result.x - images).max() < 0.0205)
        [ True  True] True
    """
    search = Fab(
        require_number("alpha_max", alpha_max, "in [0, 1]", lambda a: 0 <= a <= 1),
        require_number("eta", eta, "1 or larger", lambda e: e >= 1),
        require_number("beta", beta, "in (0, 1]", lambda b: 0 < b <= 1),
        checked_radius(radius),
        bool(random_start),
        require_candidates(candidates),
    )
    return minimal_norm(search, radius, norm, num_steps)


def fab_t(
    norm: str = "linf",
    radius: Scalar = math.inf,
    num_steps: Count = 100,
    k: Count = 9,
    alpha_max: Scalar = 0.1,
    eta: Scalar = 1.05,
    beta: Scalar = 0.9,
    random_start: bool = False,
) -> MultiTargeted:
    """FAB at each of the likeliest other classes, the FAB-T of AutoAttack (Croce & Hein 2020, section 4).

    Any wrong class is a success. Without a radius every target is attacked and the nearest success is kept; with one,
    an image is left alone once a success lies within it.

    Args:
        norm, radius, num_steps, alpha_max, eta, beta, random_start: as for `fab`.
        k: how many targets; 9 is AutoAttack's. A victim of fewer classes has one fewer than classes.

    Raises:
        ValueError: another norm, a number out of range; when called, a target.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import fab_t
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images), light(images) - 1], axis=-1)  # 3 classes
        >>> result = fab_t(num_steps=20)(jax.random.key(0), model, images, labels)
        >>> print(result.success, jnp.abs(result.x - images).max() < 0.0205)
        [ True  True] True
    """
    attack = fab(norm, radius, num_steps, alpha_max, eta, beta, random_start)
    return multi_targeted(attack, k, all_targets=not is_traced(radius) and math.isinf(radius))
