"""Victims, `(keys [b], images in [0, 1]) -> logits`; normalisation and purification belong to them, not to attacks."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.inputs import is_traced, require_count
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Images, Keys, Logits, Predict

Purify = Callable[[Any, Any], Any]
"""`(keys [b], images) -> images`, both in [0, 1]."""


@pytree
class Victim:
    """A deterministic network with its weights and its input normalisation; see `classifier` and `victim`."""

    variables: Any
    mean: Any
    std: Any
    apply: Callable[[Any, Any], Any] = static()

    def __call__(self, keys: Keys | None, images: Images) -> Logits:
        return self.apply(self.variables, (images - self.mean) / self.std)


def victim(apply: Callable[[Any, Any], Any], variables: Any, mean: Any = 0.0, std: Any = 1.0) -> Victim:
    """A victim from `apply(variables, images) -> logits`; the weights are leaves, so new weights do not recompile.

    Args:
        apply: keep one function object: a new lambda is a new program.
        variables: weights and statistics, any pytree.
        mean, std: of the pixels on the [0, 1] scale, a number or one per channel; the network sees (x - mean) / std.

    Raises:
        ValueError: a `std` of 0 or below.
    """
    return Victim(variables, *_statistics(mean, std), apply)


def _statistics(mean: Any, std: Any) -> tuple[Any, Any]:
    mean, std = _statistic("mean", mean), _statistic("std", std)
    if not is_traced(std) and bool(np.any(np.asarray(std) <= 0)):
        raise ValueError(f"std={std!r} must be larger than 0 in every channel")
    return mean, std


def _statistic(name: str, value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r} must be a number or one number per channel")
    return jnp.asarray(value, jnp.float32)


class _InferenceMode:
    """`model.apply` in inference mode, comparing equal for equal modules so that compiled attacks are reused."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, variables: Any, images: Images) -> Logits:
        return self.model.apply(variables, images, train=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _InferenceMode) and self.model == other.model

    def __hash__(self) -> int:
        return hash(self.model)


def classifier(model: Any, variables: Any, mean: Any = 0.0, std: Any = 1.0) -> Victim:
    """A victim from a flax.linen module called as `model.apply(variables, images, train=False)`.

    BatchNorm thus uses its running statistics: per-example gradients are independent of the rest of the batch.

    Args:
        model: the module.
        variables: its collections, `{"params": ..., "batch_stats": ...}`.
        mean, std: as for `victim`.
    """
    return victim(_InferenceMode(model), variables, mean, std)


@pytree
class _Normalised:
    predict: Any
    mean: Any
    std: Any

    def __call__(self, keys: Keys | None, images: Images) -> Logits:
        return self.predict(keys, (images - self.mean) / self.std)


def normalize(predict: Predict, mean: Any, std: Any) -> Predict:
    """The victim behind an input normalisation: it sees (x - mean) / std, the attack sees [0, 1].

    Raises:
        ValueError: a `std` of 0 or below.
    """
    return _Normalised(as_pytree(predict), *_statistics(mean, std))


@pytree
class _Purified:
    predict: Any
    purifier: Any

    def __call__(self, keys: Keys | None, images: Images) -> Logits:
        if keys is None:
            return self.predict(None, self.purifier(None, images))
        halves = jax.vmap(jax.random.split)(keys)
        return self.predict(halves[:, 1], self.purifier(halves[:, 0], images))


def purify(predict: Predict, purifier: Purify) -> Predict:
    """The victim behind a purifier `(keys, images) -> images`; each gets keys of its own."""
    return _Purified(as_pytree(predict), as_pytree(purifier))


@pytree
class _StraightThrough:
    purifier: Any

    def __call__(self, keys: Keys | None, images: Images) -> Images:
        return images + jax.lax.stop_gradient(self.purifier(keys, images) - images)


def straight_through(purifier: Purify) -> Purify:
    """The same purifier with the identity as its gradient (BPDA, Athalye et al. 2018, section 4.1).

    A defence with a purifier is judged with its full gradient and with this one, and the worst is reported.
    """
    return _StraightThrough(as_pytree(purifier))


@pytree
class _Averaged:
    predict: Any
    draws: int = static()
    average: str = static(default="logits")

    def __call__(self, keys: Keys | None, images: Images) -> Logits:
        if keys is None:
            raise ValueError("keys=None: eot draws the victim's randomness from one key per image")
        outputs = jax.vmap(self._draw, in_axes=(None, None, 0))(keys, images, jnp.arange(self.draws))
        if self.average == "logits":
            return jnp.mean(outputs, axis=0)
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - jnp.log(float(self.draws))

    def _draw(self, keys: Keys, images: Images, i: Any) -> Logits:
        return self.predict(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i), images)


def eot(predict: Predict, n: int, average: Literal["logits", "probabilities"] = "logits") -> Predict:
    """The expectation over a stochastic victim's randomness, by `n` draws at once (Athalye et al. 2018, section 4.2).

    Args:
        predict: the stochastic victim.
        n: draws per call; compute and memory grow with it.
        average: the mean of logits, or the log of the mean of probabilities.

    Raises:
        ValueError: `n` below 1, or another `average`.
    """
    require_count("n", n)
    if average not in ("logits", "probabilities"):
        raise ValueError(f"average={average!r} must be 'logits' or 'probabilities'")
    return _Averaged(as_pytree(predict), n, average)
