"""One small dense network for the embedded digits, honest: it hides nothing, and attacks find what there is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from spa_jax import pgd
from spa_jax.data.digits import load
from spa_jax.data.types import Split

HIDDEN, STEPS = 64, 200


def split(count=96):
    """Test images in [0, 1] with their labels."""
    test = load().test.subset(np.arange(count))
    return Split(test.images.astype(np.float32) / np.float32(255), test.labels)


def stored():
    """All training images in [0, 1]."""
    return jnp.asarray(load().train.images, jnp.float32) / 255


def mlp(params, images):
    inner, bias, outer = params
    return jax.nn.relu((images - 0.5).reshape(len(images), -1) @ inner + bias[None]) @ outer


@functools.lru_cache
def trained(attacked=False, radius=0.1):
    """The network, trained on clean images, or on those that PGD makes at each step."""
    images, labels = stored(), jnp.asarray(load().train.labels)
    rng = np.random.default_rng(0)
    shapes = (64, HIDDEN), (HIDDEN,), (HIDDEN, 10)
    params = [jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32) for shape in shapes]
    attack, rule = pgd(radius, 5, keep="last"), optax.adam(1e-2)

    @jax.jit
    def step(carry, key):
        params, state = carry
        seen = attack(key, Partial(mlp, params), images, labels).x if attacked else images

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(mlp(params, seen), labels).mean()

        with jax.numpy_dtype_promotion("standard"):
            updates, state = rule.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, rule.init(params)), jax.random.split(jax.random.key(0), STEPS))
    return Partial(mlp, params)
