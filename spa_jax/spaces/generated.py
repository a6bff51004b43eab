"""Noise that a learned generator adds in small steps, after L2L-DA (Jang et al. 2019, section 3).

The noise d starts at 0 and moves T times: d' = clip(d + radius * step_share * G(base, g, d, y, z)), where g is the
victim's normalised loss gradient at clip(base + d) and z selects one of many noises. `recursive_noise` is
the recursion over a batch, `generated_noise` the space over z that an attack searches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from spa_jax.losses import cross_entropy
from spa_jax.numerics import (
    at_least_float32,
    clip_to_signed_unit,
    clip_to_unit,
    finite_or_zero,
    in_dtype_of,
    unit_per_channel,
)
from spa_jax.spaces.latent import Latent, latent
from spa_jax.trees import pytree, static
from spa_jax.types import Example, Image, Images, Keys, Labels, Predict, Scalar, Values
from spa_jax.validation import require_count, require_number

_GRADIENT = "victim_gradient"

Look = Callable[[Any], tuple[Any, Any]]
"""`images [b, h, w, c] -> (gradient [b, h, w, c], seen)`: the victim's normalised gradient and, for each
mini-step, any further values that the caller wants (a pytree, or None)."""

Paint = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""`(statistics, images, gradient, noise in radii) -> (direction in (-1, 1), statistics)`: the generator."""


class Recursion(NamedTuple):
    """What T mini-steps have made.

    Attributes:
        noise: [b, h, w, c] in radii, in [-1, 1]; add `radius` times it to the images, and clip.
        every: [T, b, h, w, c], the noise after each mini-step; the last is `noise`.
        seen: what `look` returned beside the gradients at the images BEFORE each mini-step, stacked [T, ...].
        statistics: the generator's running statistics after the last mini-step.
    """

    noise: Any
    every: Any
    seen: Any
    statistics: Any


# --- the recursion --------------------------------------------------------------------------------------------------


def recursive_noise(
    paint: Paint,
    look: Look,
    base: Images,
    radius: Scalar,
    *,
    num_steps: int = 10,
    step_share: Scalar = 0.25,
    statistics: Any = None,
    remat: bool = True,
) -> Recursion:
    """Add a generator's noise to a batch.

    It can be differentiated with respect to the images and to what `paint` holds (weights, z). With `remat` the
    backward pass computes the generator's activations of one mini-step at a time anew, so that memory hardly grows with
    T; the victim's gradients are kept, and so computed once.

    Guarantee: |noise| <= 1 radius in every pixel, in float32 or wider whatever the network computes in.

    Args:
        paint: the generator, of `painter`.
        look: the victim, of `victim_look`.
        base: images [b, h, w, c] in [0, 1] that the noise is added to.
        radius: of the l-infinity ball, on the [0, 1] scale.
        num_steps: T; 10 is L2L-DA's.
        step_share: length of a mini-step in radii; 0.25 is L2L-DA's.
        statistics: the generator's running statistics, threaded through the mini-steps.
        remat: whether activations are computed anew instead of kept.

    Raises:
        ValueError: `num_steps` below 1.
    """
    require_count("num_steps", num_steps)
    start = jnp.zeros(base.shape, at_least_float32(base.dtype))

    def move(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        noise, statistics = carry
        gradient, seen = look(add_noise(base, noise, radius))
        direction, statistics = paint(statistics, base, checkpoint_name(gradient, _GRADIENT), noise)
        noise = clip_to_signed_unit(noise + in_dtype_of(step_share, noise) * direction.astype(noise.dtype))
        return (noise, statistics), (noise, seen)

    if remat:
        policy = jax.checkpoint_policies.save_only_these_names(_GRADIENT)
        move = jax.checkpoint(move, policy=policy, prevent_cse=False)  # a scan already keeps XLA from merging the two
    (noise, statistics), (every, seen) = jax.lax.scan(move, (start, statistics), length=num_steps)
    return Recursion(noise, every, seen, statistics)


def add_noise(base: Images, noise: Images, radius: Scalar) -> Images:
    """The images clip(base + radius * noise) in [0, 1], of the type of `base`; the noise is in radii."""
    return clip_to_unit(base.astype(noise.dtype) + in_dtype_of(radius, noise) * noise).astype(base.dtype)


def painter(model: Any, labels: Labels, z: Float[Array, "b d"], params: Any, train: bool = False) -> Paint:
    """A generator with its weights, for labels [b] and latents [b, d], as `recursive_noise` takes it.

    Args:
        model: a flax.linen module such as `spa_jax.models.NoiseGenerator`, called as
            `(images, gradient, noise, labels, z, train=)`.
        labels: of the images.
        z: which noise each image gets.
        params: the weights; the running statistics go through `recursive_noise`.
        train: normalise by the batch and update the statistics.
    """

    def paint(statistics: Any, images: Images, gradient: Images, noise: Images) -> tuple[Images, Any]:
        variables = {"params": params, "batch_stats": statistics} if statistics else {"params": params}
        inputs = (images, gradient, noise, labels, z)
        if not train:
            return model.apply(variables, *inputs, train=False), statistics
        direction, updates = model.apply(variables, *inputs, train=True, mutable=["batch_stats"])
        return direction, updates.get("batch_stats", statistics)

    return paint


def victim_look(predict: Predict, keys: Keys | None, labels: Labels) -> Callable[[Images], tuple[Images, Values]]:
    """The victim as `recursive_noise` takes it; it also returns the cross entropy [b] of every mini-step.

    Both come from one forward and one backward pass. The gradients are constants to autodiff; the cross entropies can
    be differentiated once with respect to the images, and that derivative is the gradient that is there already.
    """

    def look(images: Images) -> tuple[Images, Values]:
        held = jax.lax.stop_gradient(images)

        def total(images: Images) -> tuple[Any, Values]:
            values = cross_entropy(predict(keys, images), Example(images, labels))
            return jnp.sum(values), values

        raw, values = jax.grad(total, has_aux=True)(held)
        raw = checkpoint_name(finite_or_zero(raw), _GRADIENT)
        return unit_per_channel(raw), values + jnp.sum(raw * (images - held), axis=(1, 2, 3))

    return look


def victim_gradient(example: Example, image: Image, constant: bool = True) -> Image:
    """The victim's cross-entropy gradient at an image, of unit L2 norm per channel (zero where it vanishes).

    This is the input of a learned noise generator (L2L-DA's normalisation).

    Args:
        example: inside an attack; its label and key are used.
        image: [h, w, c], where to take it.
        constant: whether it is a constant to autodiff; False lets second derivatives of the victim through, and then
            the victim sees batches of one image, so that it must have its weights as arguments (`classifier`).

    Raises:
        ValueError: the example does not belong to an attack, so it has neither victim nor label.
    """
    if example.predict is None or example.label is None:
        raise ValueError("Example.predict=None: a space that reads the victim's gradient works only inside an attack")
    seen = (example.key, image, jnp.asarray(example.label))
    if not constant:
        return _gradient(example.predict.victim, *seen)
    held = jax.lax.stop_gradient((example.predict.victim, image))
    return jax.lax.stop_gradient(_gradient_on_the_batch(held[0], example.key, held[1], seen[2]))


def _gradients(predict: Predict, keys: Keys | None, images: Images, labels: Labels) -> Images:
    def total(images: Images) -> Float[Array, ""]:
        return jnp.sum(cross_entropy(predict(keys, images), Example(images, labels)))

    return unit_per_channel(finite_or_zero(jax.grad(total)(images)))


def _gradient(predict: Predict, *seen: Any) -> Image:
    return _gradients(predict, *jax.tree.map(lambda leaf: leaf[None], seen))[0]


_gradient_on_the_batch = jax.custom_batching.custom_vmap(_gradient)
"""The gradient at one image, which `vmap` turns into one call of the victim for the whole batch."""


@_gradient_on_the_batch.def_vmap
def _gradient_batched(size: int, in_batched: Any, predict: Predict, *seen: Any) -> tuple[Any, bool]:
    victims_differ, *are_batched = in_batched
    if any(jax.tree.leaves(victims_differ)):
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(in_batched))
        return jax.vmap(_gradient, in_axes=axes)(predict, *seen), True

    def spread(leaf: Any, is_batched: bool) -> Any:
        return leaf if is_batched else jnp.broadcast_to(leaf, (size, *leaf.shape))

    return _gradients(predict, *jax.tree.map(spread, seen, tuple(are_batched))), True


# --- the space over z -----------------------------------------------------------------------------------------------


@pytree
class NoisePainter:
    """z to noisy image, the decoder of `generated_noise`; radius, step share and weights are leaves.

    The vector 0, which no random draw is, stands for no noise, so that the space has an identity.
    """

    radius: Any
    step_share: Any
    variables: Any
    model: Any = static()
    num_steps: int = static()
    through_gradient: bool = static()
    remat: bool = static()

    def __call__(self, z: Float[Array, " d"], example: Example) -> Image:
        def look(images: Images) -> tuple[Images, None]:
            return victim_gradient(example, images[0], constant=not self.through_gradient)[None], None

        base = example.image[None]
        labels = jnp.asarray(example.label)[None]
        found = recursive_noise(
            painter(self.model, labels, z[None], self.variables["params"]),
            look,
            base,
            self.radius,
            num_steps=self.num_steps,
            step_share=self.step_share,
            statistics=self.variables.get("batch_stats"),
            remat=self.remat,
        )
        noisy, held = add_noise(base, found.noise, self.radius)[0], jax.lax.stop_gradient
        unchanged = held(example.image) + (
            noisy - held(noisy)
        )  # the gradient is the painter's: a search can leave z = 0
        return jnp.where(jnp.any(z != 0), noisy, unchanged)


def generated_noise(
    model: Any,
    variables: Any,
    radius: Scalar,
    *,
    num_steps: int = 10,
    step_share: Scalar = 0.25,
    latent_radius: Scalar = 4.5,
    through_gradient: bool = False,
    remat: bool = True,
) -> Latent:
    """The space of a learned noise generator: a latent z in a ball, decoded to noise around the image.

    `make_attack(generated_noise(...), solver=random_search(), num_steps=10)` is L2L-DA's own attack, 10 random z; with
    a gradient solver z is optimised, alone or chained behind attributes. The generator reads the label and the victim's
    gradient at its running image, so the space works inside attacks only. It leads away from that label; with a
    target, the search picks the z that come nearest to it.

    Guarantees: |x' - image|_inf <= radius and x' in [0, 1], whatever the network computes in; examples do not depend on
    each other. New weights, radii and step shares reuse a compiled attack.

    Args:
        model: a flax.linen module such as `spa_jax.models.NoiseGenerator`; its `latent_dim` is the size of z.
        variables: its `{"params": ..., "batch_stats": ...}`. BatchNorm uses the running statistics.
        radius: of the l-infinity ball, on the [0, 1] scale.
        num_steps: mini-steps T, each with one gradient of the victim; 10 is L2L-DA's.
        step_share: length of a mini-step in radii; 0.25 is L2L-DA's.
        latent_radius: of the ball of z; 4.5 holds 99% of standard normal draws of 8 numbers (our choice).
        through_gradient: differentiate through the victim's gradients, too, at the price of its second derivatives;
            L2L-DA does not.
        remat: compute activations anew in the backward pass instead of keeping those of all mini-steps.

    Raises:
        ValueError: a number out of range.
    """
    require_count("num_steps", num_steps)
    painter = NoisePainter(
        require_number("radius", radius, "a radius, 0 or larger", lambda r: r >= 0),
        require_number("step_share", step_share, "larger than 0, in radii", lambda s: s > 0),
        variables,
        model,
        num_steps,
        through_gradient,
        remat,
    )
    return latent(painter, model.latent_dim, latent_radius)
