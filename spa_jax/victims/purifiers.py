"""A purifier: a random transform of images, and a network that fills in what it hid and takes away noise."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from spa_jax.trees import pytree, static
from spa_jax.types import Images
from spa_jax.victims.tracing import call
from spa_jax.victims.transforms import RandomTransform
from spa_jax.victims.wrappers import InferenceMode, keys_and_images, purification_stages


@pytree
class Purifier:
    """A transform and a network with its weights; see `purifier`."""

    variables: Any
    transform: Any
    apply: Callable[..., Any] = static()

    @property
    def is_randomized(self) -> bool:
        """Whether it takes keys: without a transform nothing is drawn."""
        return self.transform is not None

    def __call__(self, *arguments: Any) -> Images:
        """The purified images [b, h, w, c] of `(keys, images)`, or of `(images)` without a transform."""
        keys, images = keys_and_images(self.is_randomized, arguments)
        complete = functools.partial(self.apply, self.variables)
        if self.transform is None:
            return complete(images, jnp.zeros((*images.shape[:3], 1), images.dtype))
        return self.transform.completed(complete, keys, images)

    def purification_stages(self, keys: Any, images: Images) -> dict[str, Any]:
        """The images transformed, where there is a transform, and purified; see the function of this name."""
        return purification_stages(self.transform, keys, images) | {"purified": call(self, keys, images)}


def purifier(model: Any, variables: Any, transform: Any = None) -> Purifier:
    """A purifier from images to images, `g(t(x))`, as `purify` and `straight_through` take it.

    `purify(classifier(...), purifier(...))` is the whole system of AToP (Lin et al. 2024): its gradient passes through
    classifier, network and transform. `purify(classifier(...), straight_through(purifier(...)))` is attacked through
    the identity.

    Args:
        model: a flax.linen module of `spa_jax.models`, called as
            `model.apply(variables, images [n, h, w, c], masks [n, h, w, 1], train=False) -> images` in [0, 1]; masks
            are 1 where pixels are hidden.
        variables: its collections. They are leaves, so new weights do not recompile.
        transform: such as `rt2()`; None shows the network the images as they are.

    Raises:
        ValueError: something that is not a module, or not a transform.
    """
    if not callable(getattr(model, "apply", None)):
        raise ValueError(f"model={type(model).__name__} must be a flax.linen module")
    if not isinstance(transform, RandomTransform | None):
        raise ValueError(f"transform={transform!r} must be a transform such as rt2(), or None")
    return Purifier(variables, transform, InferenceMode(model))
