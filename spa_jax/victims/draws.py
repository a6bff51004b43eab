"""Many draws of a randomised victim as one: their mean, their vote; and one draw that stays the same."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from spa_jax.numerics import at_least_float32
from spa_jax.trees import pytree, static
from spa_jax.types import Count
from spa_jax.validation import checked_keys, require_choice, require_count
from spa_jax.victims.tracing import call, is_randomized
from spa_jax.victims.wrappers import purification_stages

_Images = Float[Array, "b h w c"]
_Logits = Float[Array, "b k"]


@pytree
class _Drawn:
    """What is made of several draws of a victim."""

    victim: Any
    draws: int = static()
    at_once: int | None = static()

    is_randomized = True

    def outputs(self, keys: Key[Array, "..."] | None, images: _Images) -> Float[Array, "n b k"]:
        """The logits of every draw, from the images' keys folded with its number."""
        if keys is None:
            raise ValueError("keys=None: eot and majority_vote draw from one key per image")

        def draw(i: Any) -> _Logits:
            return call(self.victim, _of_draw(keys, i), images)

        numbers = jnp.arange(self.draws)
        if self.at_once is None:
            # One after the other, a draw's activations stay in a CPU's cache: 1.1 times 20 single draws instead of 1.5.
            return jax.lax.map(draw, numbers) if jax.default_backend() == "cpu" else jax.vmap(draw)(numbers)
        return jax.lax.map(jax.checkpoint(draw, prevent_cse=False), numbers, batch_size=self.at_once)

    def purification_stages(self, keys: Key[Array, "..."], images: _Images) -> dict[str, Any]:
        """Those of the first draw; see the function of this name."""
        return purification_stages(self.victim, _of_draw(keys, 0), images)


def _of_draw(keys: Key[Array, "..."], i: Any) -> Key[Array, "..."]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)


def _checked(victim: Any, n: Any, at_once: Any) -> tuple[Any, int, int | None]:
    n = require_count("n", n)
    if at_once is None or require_count("at_once", at_once) >= n:
        return victim, n, None
    return victim, n, int(at_once)


@pytree
class _Averaged(_Drawn):
    average: str = static(default="logits")

    def __call__(self, keys: Key[Array, "..."] | None, images: _Images) -> _Logits:
        outputs = self.outputs(keys, images)
        if self.average == "logits":
            return jnp.mean(outputs, axis=0)
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - jnp.log(float(self.draws))


def eot(
    victim: Callable[..., Any],
    n: Count,
    average: Literal["logits", "probabilities"] = "logits",
    at_once: Count | None = None,
) -> Any:
    """The expectation over a randomized victim's draws (Athalye et al. 2018, section 4.2).

    The same keys give the same draws whatever `at_once` is.

    Args:
        victim: a randomized one; the draws of any other are all equal.
        n: draws per call; compute grows with it.
        average: the mean of logits, or the log of the mean of probabilities.
        at_once: draws held in memory together, with what their gradient needs; the gradient then computes every draw
            once more, which costs a further forward pass a draw. None: all of them, and nothing is computed twice.

    Raises:
        ValueError: `n` or `at_once` below 1, or another `average`.
    """
    require_choice("average", average, ("logits", "probabilities"))
    return _Averaged(*_checked(victim, n, at_once), average)


@pytree
class _Voted(_Drawn):
    def __call__(self, keys: Key[Array, "..."] | None, images: _Images) -> _Logits:
        outputs = jax.lax.stop_gradient(self.outputs(keys, images))
        votes = jax.nn.one_hot(jnp.argmax(outputs, axis=-1), outputs.shape[-1], dtype=at_least_float32(outputs.dtype))
        return jnp.sum(votes, axis=0)


def majority_vote(victim: Callable[..., Any], n: Count, at_once: Count | None = None) -> Any:
    """The class that most of `n` draws of a randomized victim answer; of equally many, the lowest.

    Its logits are the counts of answers, from 0 to `n` (as in Cohen et al. 2019, section 3.2). They have no gradient,
    so a vote is attacked through the mean: `crafted_on(attack, eot(victim, n))`.

    Args:
        victim: a randomized one; the draws of any other are all equal.
        n: draws per call; compute grows with it.
        at_once: draws held in memory together. None: all of them.

    Raises:
        ValueError: `n` or `at_once` below 1.
    """
    return _Voted(*_checked(victim, n, at_once))


@pytree
class _Fixed:
    victim: Any
    words: Any

    def __call__(self, images: _Images) -> _Logits:
        return call(self.victim, self._keys(images), images)

    def purification_stages(self, keys: Any, images: _Images) -> dict[str, Any]:
        return purification_stages(self.victim, self._keys(images), images)

    def _keys(self, images: _Images) -> Key[Array, " b"]:
        return jnp.broadcast_to(jax.random.wrap_key_data(self.words), len(images))


def fixed_draw(victim: Callable[..., Any], key: Key[Array, ""]) -> Any:
    """A randomized victim that draws the same at every call and for every image: one mask, one noise for all.

    It is a control, and no defence: how much of a victim's robustness its randomness carries is seen by what this one
    loses (the fixed mask of AToP's ablation, Lin et al. 2024).

    Args:
        victim: a randomized one; any other is returned as it is.
        key: what it draws from.

    Raises:
        ValueError: `key` is not a single key.
    """
    if not is_randomized(victim):
        return victim
    return _Fixed(victim, jax.random.key_data(checked_keys(key, 1, shared=True)))
