"""Victims whose accuracy under attack is known in closed form, and the data they see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.data.types import Split


def linear_logits(weights, images):
    """Two classes: the logit of class 1 is the weighted sum of the centred pixels."""
    score = (images - 0.5).reshape(images.shape[0], -1) @ weights.reshape(-1)
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)


@pytest.fixture
def linear_victim():
    """Classifies by w . (x - 0.5) > 0; its weights are a leaf."""
    weights = np.random.default_rng(0).normal(size=(4, 4, 1)).astype(np.float32)
    return jax.tree_util.Partial(linear_logits, jnp.asarray(weights))


@pytest.fixture
def split():
    """101 images with pixels in [0.4, 0.6], labelled by the linear victim except for every tenth."""
    rng = np.random.default_rng(1)
    weights = np.random.default_rng(0).normal(size=(4, 4, 1)).astype(np.float32)
    images = rng.uniform(0.4, 0.6, size=(101, 4, 4, 1)).astype(np.float32)
    labels = ((images - 0.5).reshape(101, -1) @ weights.reshape(-1) > 0).astype(np.int32)
    labels[::10] = 1 - labels[::10]
    return Split(images, labels)


@pytest.fixture
def margins(linear_victim, split):
    """Each image's distance to the boundary in l-infinity, by float64; negative where misclassified."""
    weights = np.asarray(linear_victim.args[0], np.float64).reshape(-1)
    scores = (split.images.astype(np.float64) - 0.5).reshape(len(split), -1) @ weights
    return np.where(split.labels == 1, scores, -scores) / np.abs(weights).sum()
