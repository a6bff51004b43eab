"""Victims whose strongest attack is known, and the float64 mathematics that knows it, independent of the library."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

SIZE = (4, 4, 1)


def images(seed=0, batch=4, size=SIZE, low=0.0, high=1.0):
    """Random images of which a fifth of the pixels lie exactly on a bound."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, (batch, *size))
    x = np.where(rng.uniform(size=x.shape) < 0.1, low, x)
    x = np.where(rng.uniform(size=x.shape) < 0.1, high, x)
    return jnp.asarray(x, jnp.float32)


def labels(batch=4):
    return jnp.arange(batch) % 2


def weights(seed=1, size=SIZE):
    return jnp.asarray(np.random.default_rng(seed).normal(size=size), jnp.float32)


def linear_logits(w, x):
    """Two classes whose margin for label 0 is w . (x - 0.5)."""
    score = jnp.tensordot(x - 0.5, w, 3)
    return jnp.stack([-score / 2, score / 2], axis=-1)


def linear(w):
    """The victim `linear_logits`; its weights are leaves, so that all tests share the compiled attacks."""
    return Partial(linear_logits, w)


def ascent(w, y):
    """The gradient [b, h, w, c] of `linear`'s margin."""
    sign = 1 - 2 * np.asarray(y, np.float64)
    return sign[:, None, None, None] * np.asarray(w, np.float64)


def margins(w, x, y):
    return np.sum(ascent(w, y) * (np.asarray(x, np.float64) - 0.5), axis=(1, 2, 3))


def strongest(norm, g, x, radius):
    """argmax g . x' over the ball around each image and [0, 1], in float64."""
    g, x = np.asarray(g, np.float64), np.asarray(x, np.float64)
    spend = {"linf": np.minimum, "l2": water_filled, "l1": greedy}[norm]
    moves = []
    for gain, room in zip(np.abs(g), np.where(g > 0, 1 - x, x), strict=True):
        moves.append(spend(radius, room) if norm == "linf" else spend(gain, room, radius))
    return x + np.sign(g) * np.array(moves)


def greedy(gain, room, budget):
    """Spend the budget on the most profitable pixels first."""
    spent = np.zeros_like(room)
    for i in np.argsort(-gain, axis=None):
        spent.flat[i] = min(room.flat[i], budget - spent.sum())
    return spent


def water_filled(gain, room, radius):
    """min(room, t gain) with t such that the norm is the radius."""
    low, high = 0.0, 1e9
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if np.linalg.norm(np.minimum(room, t * gain)) < radius else (low, t)
    return np.minimum(room, high * gain)


def mlp_parameters(seed=3, size=SIZE, hidden=6, classes=3):
    rng = np.random.default_rng(seed)
    pixels = int(np.prod(size))
    return rng.normal(size=(pixels, hidden)) / 2, rng.normal(size=(hidden, classes)) * 2


def mlp_logits(parameters, x):
    """A small smooth victim with several classes."""
    inner, outer = parameters
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ inner) @ outer


def mlp(seed=3, **options):
    return Partial(mlp_logits, jax.tree.map(jnp.asarray, mlp_parameters(seed, **options)))
