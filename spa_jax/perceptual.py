"""Distances in the features of a network, in the form of LPIPS, and noise that is bounded in them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.attacks.iterative import IterativeAttack, Keep, default_step, make_attack
from spa_jax.numerics import Grid, clip_to_unit, in_dtype_of
from spa_jax.solvers import projected_gradient
from spa_jax.spaces.base import SpaceBase
from spa_jax.spaces.noise import onto_grid_inside
from spa_jax.trees import as_pytree, pytree, repeat, static
from spa_jax.types import Count, Example, Image, Images, Scalar, Values
from spa_jax.validation import require_count, require_number

_SMALLEST_NORM = 1e-10


@pytree
class PerceptualDistance:
    """See `perceptual_distance`."""

    features: Any
    weights: Any = None

    def __call__(self, x: Images, y: Images) -> Values:
        """The distances [b] of images from others, [b, h, w, c] each."""
        pairs = list(zip(self.features(x), self.features(y), strict=True))
        weights = [None] * len(pairs) if self.weights is None else self.weights
        distances = [_layer_distance(a, b, own) for (a, b), own in zip(pairs, weights, strict=True)]
        return functools.reduce(jnp.add, distances)


def _layer_distance(a: Any, b: Any, weights: Any) -> Values:
    """Squared differences of features of unit length, weighted over channels and averaged over space."""
    if a.ndim != 4:
        raise ValueError(f"features.shape={a.shape!r} must be [b, h, w, c] for every layer")
    squared = (_unit(a) - _unit(b)) ** 2
    squared = squared if weights is None else squared * jnp.asarray(weights, a.dtype)[None, None, None]
    return jnp.mean(jnp.sum(squared, axis=-1), axis=(1, 2))


def _unit(features: Any) -> Any:
    """Every pixel's channels divided by their length; the gradient is finite where all are 0."""
    squared = jnp.sum(features**2, axis=-1, keepdims=True)
    is_zero = squared == 0
    return features / (jnp.sqrt(jnp.where(is_zero, 1, squared)) + _SMALLEST_NORM)


def perceptual_distance(
    features: Callable[[Any], Sequence[Any]], weights: Sequence[Any] | None = None
) -> PerceptualDistance:
    """A distance of images in the features of a network, in the form of LPIPS (Zhang et al. 2018, equation 1).

    In every layer each pixel's channels are brought to unit length; squared differences are weighted, summed over the
    channels and averaged over the pixels, and the layers are added up. Without weights it is the form that Laidlaw et
    al. (2021) attack in, up to a square root: their distance of features is the Euclidean one, this is its square.

    Args:
        features: images [b, h, w, c] in [0, 1] to one array [b, h', w', c'] for each layer; a function with LPIPS's
            network inside, or `captured_features` of a network of one's own. A pytree keeps its weights as leaves.
        weights: [c'] of each layer, 0 or larger, such as those that LPIPS has learned. Default: 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from spa_jax.perceptual import perceptual_distance
        >>> distance = perceptual_distance(lambda images: [jnp.concatenate([images, 1 - images], axis=-1)])
        >>> print(distance(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))))  # two unit vectors at a right angle
        [2.]
    """
    return PerceptualDistance(as_pytree(features), None if weights is None else tuple(weights))


@pytree
class CapturedFeatures:
    """See `captured_features`."""

    variables: Any
    mean: Any
    std: Any
    model: Any = static()
    layers: tuple[str, ...] | None = static(default=None)

    def __call__(self, images: Images) -> list[Float[Array, "b _ _ _"]]:
        """The outputs of the layers, [b, h, w, c] each, in the order of their names as the network has them."""
        images = (images - self.mean) / self.std
        _, seen = self.model.apply(
            self.variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        outputs = _outputs(seen["intermediates"])
        chosen = [name for name, output in outputs.items() if self.layers is None and output.ndim == 4]
        missing = sorted(set(self.layers or ()) - set(outputs))
        if missing or not (chosen or self.layers):
            raise ValueError(f"layers={missing} are not in the network; it has {', '.join(outputs)}")
        return [outputs[name] for name in self.layers or chosen]


def _outputs(tree: Any, path: str = "") -> dict[str, Any]:
    """What each module has returned, by its path, as `Conv_0` or `Block_0/Conv_1`."""
    found = {}
    for name, own in tree.items():
        if name == "__call__":
            found[path or "output"] = own[0]
        else:
            found |= _outputs(own, f"{path}/{name}".lstrip("/"))
    return found


def captured_features(
    model: Any, variables: Any, layers: Sequence[str] | None = None, mean: Any = 0.0, std: Any = 1.0
) -> CapturedFeatures:
    """The intermediate outputs of a flax.linen network, as features for `perceptual_distance`.

    Args:
        model: called as `model.apply(variables, images, train=False)`.
        variables: its parameters and statistics.
        layers: paths of modules, as `Conv_0`. Default: every module that returns [b, h, w, c], after its convolution
            and before any nonlinearity outside of it.
        mean, std: normalisation before the network, numbers or [c].

    Raises:
        ValueError: when it is called, a layer that is not in the network, or none with pixels.
    """
    return CapturedFeatures(variables, mean, std, model, None if layers is None else tuple(layers))


# --- noise that is bounded in it ------------------------------------------------------------------------------------


@pytree
class PerceptualBall(SpaceBase):
    """Noise within a distance of the image; see `perceptual_ball`."""

    distance: Any
    bound: Any
    radius: Any
    bisections: int = static(default=10)

    def scaled(self, share: Any) -> "PerceptualBall":
        return PerceptualBall(self.distance, share * self.bound, self.radius, self.bisections)

    def init(self, key: Any, example: Example) -> Any:
        image = example.image
        noise = jax.random.uniform(key, image.shape, image.dtype, -1, 1)
        return self.project(in_dtype_of(self.radius, image) * noise, example)

    def identity(self, example: Example) -> Any:
        return jnp.zeros_like(example.image)

    def project(self, v: Any, example: Example | None) -> Any:
        if example is None:
            raise ValueError("perceptual_ball is around an image: it takes no shared variables")
        v = clip_to_unit(example.image + v) - example.image
        return self._largest_share(v, example) * v

    def direction(self, g: Any) -> Any:
        return in_dtype_of(self.radius, g) * jnp.sign(g)

    def apply(self, v: Any, example: Example) -> Image:
        return clip_to_unit(example.image + v)

    def onto_grid(self, image: Image, example: Example, grid: Grid) -> Image:
        return onto_grid_inside(image, example, lambda x: self._holds(x, example), grid)

    def _holds(self, image: Image, example: Example) -> Any:
        distance = self.distance(image[None], example.image[None])[0]
        return distance <= in_dtype_of(self.bound, distance)

    def _largest_share(self, v: Any, example: Example) -> Any:
        """The largest share of noise whose image is within the bound, by bisection; 1 where all of it is."""

        def holds(share: Any) -> Any:
            return self._holds(self.apply(share * v, example), example)

        def halve(interval: tuple[Any, Any]) -> tuple[Any, Any]:
            low, high = interval
            middle = (low + high) / 2
            inside = holds(middle)
            return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

        one = jnp.ones((), v.dtype)
        low, _ = repeat(halve, (0 * one, one), self.bisections)
        return jnp.where(holds(one), one, low)


def perceptual_ball(
    distance: PerceptualDistance, bound: Scalar, radius: Scalar = 0.1, bisections: Count = 10
) -> PerceptualBall:
    """Noise whose image lies within a perceptual distance of the original; a space for `spa_jax.make_attack`.

    Noise that is too large is shrunk towards 0 until it fits, by bisection (Laidlaw et al. 2021, appendix: projection
    by bisection). The image found always fits; it is the farthest on its line where the distance grows along it.

    Args:
        distance: of `perceptual_distance`, or any pytree that gives [b] from two batches of images.
        bound: the largest distance, 0 or larger.
        radius: length of a step of one radius in every pixel; it bounds nothing but the random start.
        bisections: their number; each costs a pass of the features, at every step.

    Raises:
        ValueError: a number out of range; when used, shared variables.
    """
    return PerceptualBall(
        as_pytree(distance),
        require_number("bound", bound, "0 or larger", lambda b: b >= 0),
        require_number("radius", radius, "larger than 0", lambda r: r > 0),
        require_count("bisections", bisections),
    )


def perceptual_attack(
    distance: PerceptualDistance,
    bound: Scalar,
    num_steps: Count = 40,
    radius: Scalar = 0.1,
    loss: Any = "margin",
    keep: Keep = "best",
) -> IterativeAttack:
    """PGD within a perceptual distance of each image (after Laidlaw et al. 2021), with steps of signs (our choice).

    Args:
        distance, bound, radius: as for `perceptual_ball`.
        num_steps: gradient steps; 40 is the paper's.
        loss, keep: as for `spa_jax.make_attack`.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax.perceptual import perceptual_attack, perceptual_distance
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> distance = perceptual_distance(lambda images: [jnp.concatenate([images, 1 - images], axis=-1)])
        >>> result = perceptual_attack(distance, 0.01)(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{distance(result.x, images).max():.3f}")
        [ True  True] 0.010
    """
    space = perceptual_ball(distance, bound, radius)
    solver = projected_gradient(default_step(num_steps))
    return make_attack(space, loss, solver, num_steps, keep=keep)
