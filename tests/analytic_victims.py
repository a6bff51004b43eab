"""Victims whose strongest attack is known, and the float64 mathematics that knows it, independent of the library."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.optimize import linprog

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


def shortest(norm, g, x, shortfall):
    """The smallest norm of a change of each image, within [0, 1], that raises g . x by its shortfall, in float64."""
    g, x = np.asarray(g, np.float64), np.asarray(x, np.float64)
    programs = {"linf": linf_program, "l1": l1_program, "l2": l2_bisection}
    return np.array([programs[norm](*case) for case in zip(g, x, shortfall, strict=True)])


def linf_program(g, x, shortfall):
    """min t such that |d| <= t, the image stays in [0, 1], and g . d is the shortfall at least."""
    count, ones = x.size, np.ones((x.size, 1))
    rows = [np.hstack([np.eye(count), -ones]), np.hstack([-np.eye(count), -ones]), [[*-g.ravel(), 0.0]]]
    bounds = [*zip(-x.ravel(), 1 - x.ravel(), strict=True), (0, None)]
    return linprog([0.0] * count + [1.0], np.vstack(rows), [0.0] * 2 * count + [-shortfall], bounds=bounds).fun


def l1_program(g, x, shortfall):
    """The same for the sum of what each pixel rises and falls."""
    gain = [[*-g.ravel(), *g.ravel()]]
    bounds = [(0, most) for most in (*(1 - x).ravel(), *x.ravel())]
    return linprog(np.ones(2 * x.size), gain, [-shortfall], bounds=bounds).fun


def l2_bisection(g, x, shortfall):
    room, low, high = np.where(g > 0, 1 - x, x), 0.0, 10.0
    for _ in range(60):
        radius = (low + high) / 2
        reached = np.sum(np.abs(g) * water_filled(np.abs(g), room, radius)) >= shortfall
        low, high = (low, radius) if reached else (radius, high)
    return high


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
