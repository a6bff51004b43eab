"""Victims from networks, and what may stand before them; normalisation and purification belong to them, not to attacks.

A victim is any function from images [b, h, w, c] in [0, 1] to logits [b, k]; `randomized(f)` marks one that takes
`(keys, images)`, one key an image. So do purifiers, from images to images.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from spa_jax.errors import listed
from spa_jax.trees import pytree, static
from spa_jax.validation import is_traced
from spa_jax.victims.tracing import call, is_randomized

_Images = Float[Array, "b h w c"]
_Logits = Float[Array, "b k"]


@pytree
class Classifier:
    """A network with its weights and its input normalisation; see `classifier`."""

    variables: Any
    mean: Any
    std: Any
    apply: Callable[[Any, Any], Any] = static()

    def __call__(self, images: _Images) -> _Logits:
        return self.apply(self.variables, _normalised(images, self.mean, self.std))


def _statistics(mean: Any, std: Any) -> tuple[Any, Any]:
    mean, std = _statistic("mean", mean), _statistic("std", std)
    if not is_traced(std) and bool(np.any(np.asarray(std) <= 0)):
        raise ValueError(f"std={std!r} must be larger than 0 in every channel")
    return mean, std


def _statistic(name: str, value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r} must be a number or one number per channel")
    return jnp.asarray(value, jnp.float32)


def _normalised(images: _Images, mean: Any, std: Any) -> _Images:
    mean, std = (jnp.broadcast_to(value.astype(images.dtype), images.shape) for value in (mean, std))
    return (images - mean) / std


class InferenceMode:
    """`model.apply` in inference mode, comparing equal for equal modules so that compiled attacks are reused."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, variables: Any, *inputs: Any) -> Any:
        return self.model.apply(variables, *inputs, train=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InferenceMode) and self.model == other.model

    def __hash__(self) -> int:
        return hash(self.model)


def classifier(model: Any, variables: Any, mean: Any = 0.0, std: Any = 1.0) -> Classifier:
    """A victim from a flax.linen module called as `model.apply(variables, images, train=False)`.

    BatchNorm thus uses its running statistics: per-example gradients are independent of the rest of the batch. The
    weights are leaves, so new weights do not recompile.

    Args:
        model: the module.
        variables: its collections, `{"params": ..., "batch_stats": ...}`.
        mean, std: of the pixels on the [0, 1] scale, a number or one per channel; the network sees (x - mean) / std.

    Raises:
        ValueError: a `std` of 0 or below, something that is not such a module, or parameters without their collection.
    """
    if not callable(getattr(model, "apply", None)):
        raise ValueError(
            f"model={type(model).__name__} must be a flax.linen module; of a function say "
            "jax.tree_util.Partial(function, variables), of an nnx module Partial(*spa_jax.models.from_nnx(module))"
        )
    if not isinstance(variables, Mapping) or (variables and "params" not in variables):
        held = listed(map(str, variables)) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(f'variables={held} must hold params: pass all that init returns, or {{"params": params}}')
    return Classifier(variables, *_statistics(mean, std), InferenceMode(model))


# --- victims that draw at random, and what stands before a victim ---------------------------------------------------


def keys_and_images(is_randomized: bool, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """What a victim or purifier was called with, the keys None where it takes none.

    Raises:
        TypeError: another number of arguments.
    """
    if len(arguments) != 1 + is_randomized:
        raise TypeError(f"takes {'(keys, images)' if is_randomized else '(images)'}, got {len(arguments)} arguments")
    return (None, *arguments) if len(arguments) == 1 else arguments


@pytree
class _Randomized:
    function: Any

    is_randomized = True

    def __call__(self, keys: Key[Array, "..."], images: _Images) -> Any:
        return self.function(keys, images)


def randomized(function: Any) -> Any:
    """Mark `function(keys, images)` as a victim or purifier that draws at random from one key an image.

    With a key of its own, what an image meets does not depend on how a batch is laid out.

    Raises:
        ValueError: `function` is not callable.
    """
    if not callable(function):
        raise ValueError(f"function={function!r} must be a function of (keys, images)")
    return function if is_randomized(function) else _Randomized(function)


@pytree
class _Normalised:
    victim: Any
    mean: Any
    std: Any

    @property
    def is_randomized(self) -> bool:
        return is_randomized(self.victim)

    def __call__(self, *arguments: Any) -> _Logits:
        keys, images = keys_and_images(self.is_randomized, arguments)
        return call(self.victim, keys, _normalised(images, self.mean, self.std))


def normalize(victim: Callable[..., Any], mean: Any, std: Any) -> Any:
    """The victim behind an input normalisation: it sees (x - mean) / std, the attack sees [0, 1].

    Raises:
        ValueError: a `std` of 0 or below.
    """
    return _Normalised(victim, *_statistics(mean, std))


@pytree
class _Purified:
    victim: Any
    purifier: Any

    @property
    def is_randomized(self) -> bool:
        return is_randomized(self.victim) or is_randomized(self.purifier)

    def __call__(self, *arguments: Any) -> _Logits:
        keys, images = keys_and_images(self.is_randomized, arguments)
        own, rest = _halves(keys)
        return call(self.victim, rest, call(self.purifier, own, images))

    def purification_stages(self, keys: Key[Array, " b"] | None, images: _Images) -> dict[str, Any]:
        own, rest = _halves(keys)
        purified = call(self.purifier, own, images)
        return (
            purification_stages(self.victim, rest, purified)
            or purification_stages(self.purifier, own, images)
            or {"purified": purified}
        )


def _halves(keys: Key[Array, " b"] | None) -> tuple[Any, Any]:
    """Keys for a purifier, and others for what stands behind it."""
    if keys is None:
        return None, None
    halves = jax.vmap(jax.random.split)(keys)
    return halves[:, 0], halves[:, 1]


def purify(victim: Callable[..., Any], purifier: Callable[..., Any]) -> Any:
    """The victim behind a purifier, a function from images to images in [0, 1]; each gets keys of its own."""
    return _Purified(victim, purifier)


@pytree
class _StraightThrough:
    purifier: Any

    @property
    def is_randomized(self) -> bool:
        return is_randomized(self.purifier)

    def __call__(self, *arguments: Any) -> _Images:
        keys, images = keys_and_images(self.is_randomized, arguments)
        return images + jax.lax.stop_gradient(call(self.purifier, keys, images) - images)

    def purification_stages(self, keys: Key[Array, " b"] | None, images: _Images) -> dict[str, Any]:
        return purification_stages(self.purifier, keys, images)


def straight_through(purifier: Callable[..., Any]) -> Any:
    """The same purifier with the identity as its gradient (BPDA, Athalye et al. 2018, section 4.1).

    A defence with a purifier is judged with its full gradient and with this one, and the worst is reported.
    """
    return _StraightThrough(purifier)


def purification_stages(victim: Any, keys: Key[Array, " b"] | None, images: _Images) -> dict[str, Any]:
    """What the purifier of a victim makes of images before the network sees them, in the draw of these keys.

    Of several purifiers it is the last one, of a mean or a vote over draws the first draw. A purifier in front of which
    pixels were normalised is passed over.

    Args:
        victim: any victim.
        keys: [b], as `call` would give them to it; None where nothing is drawn.
        images: [b, h, w, c] in [0, 1].

    Returns:
        Images [b, h, w, c] by name: `transformed`, after noise and hidden blocks, where there is a random transform (of
        RT3 the first of its views), and `purified`, where a network or a function follows. Nothing without a purifier.
    """
    own = getattr(victim, "purification_stages", None)
    return own(keys, images) if own else {}


def bypassed(victim: Any) -> Any:
    """The same victim with every purifier in it straight through, however it is wrapped: the surrogate of BPDA.

    `crafted_on(attack, eot(bypassed(victim), n))` is that attack with the mean over draws. A victim without purifiers
    stays as it is.
    """
    inner = getattr(victim, "victim", None)
    if inner is None or not dataclasses.is_dataclass(victim):
        return victim
    changes = {"victim": bypassed(inner)}
    if isinstance(victim, _Purified) and not isinstance(victim.purifier, _StraightThrough):
        changes["purifier"] = straight_through(victim.purifier)
    return dataclasses.replace(victim, **changes)
